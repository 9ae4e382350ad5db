"""A treated run beside those it is compared with, and what that says: the outcome and its reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from precdoctor.rules import SEVERITIES
from precdoctor.rules.wording import number, percent
from precdoctor.trials.trial import Outcome, Trial

#: EDQ from which, and up to one over which, the descent counts as restored: below it PD102 warns
CURED_EDQ = 0.9
#: rise of EDQ that counts as help
HELPED_EDQ = 0.1
#: share of float32's travel within which a run goes where float32 goes
TRAVEL_LOW, TRAVEL_HIGH = 0.5, 2.0
#: a run is harmed when its loss at the end is worse, by this many standard errors and by this share of what
#: the untreated run gained, than that of the untreated run and that of float32: a cure that goes where
#: float32 goes does no harm, even where the sick run happens to be ahead
HARMED_ERRORS, HARMED_SHARE = 3.0, 0.05
#: share of the loss that float32 gains over the untreated run, and a cure of missing gradients makes up
CLOSED_SHARE = 0.5
#: rules on weights that get no gradient, are written over, or not used as they are: that shows in the loss
OF_GRADIENTS = ("PD106", "PD2", "PD6")
#: rules that rest on what the operation probe sees
OF_OPERATIONS = ("PD106", "PD6")

#: (rule, name of the parameter; empty where the finding names none) to the position in SEVERITIES
Illnesses = Mapping[tuple[str, str], int]
WARNING, ERROR = SEVERITIES.index("warning"), SEVERITIES.index("error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A treated run beside the runs it is compared with; the numbers are those of its subjects."""

    before: Trial
    after: Trial
    float32: Trial | None
    was_ill: Illnesses
    is_ill: Illnesses
    #: every subject's optimizer brings small updates through in the long run
    preserved: bool
    #: of the untreated run from float32's travel
    untreated_distance: float | None
    #: not finite, where the untreated run was
    broke: bool
    #: mean of (loss - untreated loss) over the last quarter and its standard error; None: not known
    loss: tuple[float, float] | None
    #: the same of (untreated loss - float32 loss)
    gap: tuple[float, float] | None
    #: the probe saw forward passes, if it did in the untreated run
    was_seen: bool

    def outcome(self) -> Outcome:
        """Return what came of the treatment."""
        if self.broke or self.new_errors or self.loss_is_worse:
            return "harmed"
        if not self.asked:
            return "no effect"
        if self.is_unseen:
            return "helped" if self.closes else "no effect"
        if not (self.left or self.new) and self.descends:
            return "cured" if self.travels is not False and self.closes is not False else "helped"
        if self.closes:
            return "helped"
        before, after = self.before.edq, self.after.edq
        if before is not None and after is not None and after - before >= HELPED_EDQ and not self.strays:
            return "helped"
        fewer = len({name for _, name in self.still}) < len({name for _, name in self.asked})
        milder = after is None and max(self.still.values(), default=0) < max(self.asked.values())
        return "helped" if fewer or milder else "no effect"

    @property
    def asked(self) -> Illnesses:
        """What the remedy was to cure."""
        rules = self.after.rules
        return {key: grade for key, grade in self._on_subjects(self.was_ill).items() if key[0] in rules}

    @property
    def still(self) -> Illnesses:
        """What those that were to be cured have now, by whatever rule."""
        patients = {name for _, name in self.asked}
        return {key: grade for key, grade in self.is_ill.items() if key[1] in patients}

    @property
    def left(self) -> Illnesses:
        """What was to be cured and is still there."""
        return {key: grade for key, grade in self.is_ill.items() if key in self.asked}

    @property
    def new(self) -> Illnesses:
        """Illnesses of the subjects that were not there."""
        return {k: grade for k, grade in self._on_subjects(self.is_ill).items() if k not in self.was_ill}

    @property
    def new_errors(self) -> Illnesses:
        """Errors of those that had no illness: one that turns into another is not new."""
        patients = {name for _, name in self.was_ill}
        return {k: g for k, g in self.is_ill.items() if g == ERROR and k[1] not in patients}

    @property
    def descends(self) -> bool:
        """Tell whether the descent arrives, as far as that is known."""
        edq = self.after.edq
        return edq is None or self.preserved or CURED_EDQ <= edq <= 1 / CURED_EDQ

    @property
    def travels(self) -> bool | None:
        """Tell whether the subjects go as far as in float32; None where that is not known."""
        share = self.after.travel_share
        return None if share is None else TRAVEL_LOW <= share <= TRAVEL_HIGH

    @property
    def is_of_gradients(self) -> bool:
        """Tell whether the illness is one that shows in the loss."""
        return any(rule.startswith(OF_GRADIENTS) for rule, _ in self.asked)

    @property
    def is_unseen(self) -> bool:
        """Tell whether it can't be known if the illness is gone."""
        return not self.was_seen and any(rule.startswith(OF_OPERATIONS) for rule, _ in self.asked)

    @property
    def closes(self) -> bool | None:
        """Tell whether the loss makes up half of what float32 gains; None where it surely gains nothing."""
        first, there = self.before.loss_first, self.float32.loss_last if self.float32 is not None else None
        if (
            not self.is_of_gradients
            or self.gap is None
            or self.loss is None
            or first is None
            or there is None
        ):
            return None
        gap, error = self.gap
        if there >= first or gap <= HARMED_ERRORS * error or gap <= HARMED_SHARE * (first - there):
            return None
        return -self.loss[0] >= CLOSED_SHARE * gap

    @property
    def strays(self) -> bool:
        """Tell whether the subjects end further from float32 than untreated: drift, not descent."""
        own, untreated = self.after.travel_distance, self.untreated_distance
        return own is not None and untreated is not None and own > untreated

    @property
    def loss_is_worse(self) -> bool:
        """Tell whether the loss ends clearly above the untreated one, and above float32 where known."""
        if self.loss is None:
            return False
        difference, error = self.loss
        if self.gap is not None:
            difference, error = min(difference, difference + self.gap[0]), max(error, self.gap[1])
        first, last = self.before.loss_first, self.before.loss_last
        gained = max(first - last, 0.0) if first is not None and last is not None else 0.0
        return difference > HARMED_ERRORS * error and difference > HARMED_SHARE * gained

    def _on_subjects(self, ill: Illnesses) -> Illnesses:
        subjects = self.after.subjects
        return {key: grade for key, grade in ill.items() if not key[1] or concerns(subjects, key[1])}

    # ------------------------------------------------------------------ in words

    def why(self, outcome: Outcome) -> str:
        """Return the reason in a sentence with its numbers."""
        parts = []
        if outcome == "harmed":
            parts += self._harm()
        if not self.asked:
            parts.append("nothing asked for it")
        if self.is_unseen:
            parts.append("what becomes of its weights outside the step was not seen")
        parts += self._descent()
        parts += self._losses()
        if outcome != "cured":
            parts += self._drift()
        share, distance = self.after.travel_share, self.after.travel_distance
        if share is not None:
            off = f" (distance {number(distance)})" if distance is not None else ""
            parts.append(f"travel {number(share)} x float32's{off}")
        if outcome != "cured":
            for word, ill in (("left", self.left), ("new", self.new)):
                parts += [f"{word}: {rule}" for rule in sorted({rule for rule, _ in ill})]
        return "; ".join(parts)

    def _harm(self) -> list[str]:
        parts = ["losses or weights are no longer finite"] if self.broke else []
        if self.loss_is_worse and self.loss is not None:
            parts.append(
                f"the loss ends {number(self.loss[0])} ± {number(self.loss[1])} above the untreated one"
            )
        return parts + [f"{rule} in {name or 'the run'}" for rule, name in list(self.new_errors)[:1]]

    def _descent(self) -> list[str]:
        before, after = self.before, self.after
        if before.edq is not None and after.edq is not None:
            was, now = f"{before.edq:.3f}", f"{after.edq:.3f}"
            return [] if self.is_of_gradients and was == now else [f"EDQ {was} -> {now}"]
        if before.lost_share is not None and after.lost_share is not None:
            return [f"lost updates {percent(before.lost_share)} -> {percent(after.lost_share)}"]
        return []

    def _losses(self) -> list[str]:
        """Return what the loss came to, where the illness shows in it."""
        before, after = self.before.loss_last, self.after.loss_last
        if not self.is_of_gradients or before is None or after is None:
            return []
        there = self.float32.loss_last if self.float32 is not None else None
        beside = f", in float32 {there:.4g}" if there is not None else ""
        return [f"loss {before:.4g} -> {after:.4g}{beside}"]

    def _drift(self) -> list[str]:
        """Return which way the weights went, where that is another way than float32's."""
        parts, after = [], self.after
        if after.ups != after.downs and (after.lost_share or 0.0) > 0.5:
            parts.append(f"{after.ups:,} ups against {after.downs:,} downs")
        own, there = after.mean_last, self.float32.mean_last if self.float32 is not None else None
        if own is not None and there is not None and f"{own:.4f}" != f"{there:.4f}":
            parts.append(f"mean {own:.4f} where float32 goes to {there:.4f}")
        return parts


def concerns(subjects: Sequence[str], name: str) -> bool:
    """Tell whether a parameter is among the subjects; without subjects every one is."""
    return not subjects or name in subjects
