"""What came of a trial: its numbers, read from its evidence, and its outcome beside the runs of comparison.

Pure functions of evidence. The outcome says what happened to those that were ill, not what a remedy promises.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from precdoctor.evidence import Evidence, Parameter
from precdoctor.rules import SEVERITIES, diagnose
from precdoctor.rules.descent import quality
from precdoctor.rules.reading import Stepped, stepped
from precdoctor.rules.wording import number, percent
from precdoctor.trials.trial import Outcome, Trial

#: EDQ from which, and up to one over which, the descent counts as restored: below it PD102 warns
CURED_EDQ = 0.9
#: rise of EDQ that counts as help
HELPED_EDQ = 0.1
#: share of float32's travel within which a run goes where float32 goes
TRAVEL_LOW, TRAVEL_HIGH = 0.5, 2.0
#: a run is harmed when its loss at the end is worse by this many standard errors and by this share of what
#: the untreated run gained
HARMED_ERRORS, HARMED_SHARE = 3.0, 0.05
#: part of the steps over which a loss at the beginning or the end is averaged
QUARTER = 4
#: remedies that keep what rounding loses outside the optimizer: unlike for one that keeps it inside, what is
#: meant in a step holds nothing left over from earlier ones, so the sums over the whole run are compared
OUTSIDE = frozenset(("master-weights", "stochastic-rounding", "kahan"))

#: (rule, name of the parameter; empty where the finding names none) to the position in SEVERITIES
Illnesses = Mapping[tuple[str, str], int]
WARNING, ERROR = SEVERITIES.index("warning"), SEVERITIES.index("error")


def judge(
    trial: Trial,
    evidence: Evidence,
    untreated: Evidence,
    float32: Evidence | None = None,
    *,
    untreated_distance: float | None = None,
) -> Trial:
    """Return a trial of a remedy with its numbers, its outcome and the reason for it.

    ``trial`` names the remedy, the rules that asked for it, its subjects (empty: all parameters), and the
    numbers that evidence does not hold (travel, time, memory). A run that failed is told by `Trial.error`.
    ``untreated_distance`` is the `Trial.travel_distance` of the untreated run, by the same parameters.
    """
    if trial.error:
        return dataclasses.replace(
            trial, outcome="does not apply", why=f"the program fails under it: {trial.error}"
        )
    by = judged_by(trial.subjects, untreated)
    after, before = measure(trial, evidence, by), measure(trial, untreated, by)
    comparison = _Comparison(
        before=before,
        after=after,
        float32=measure(trial, float32, by) if float32 is not None else None,
        was_ill=illnesses(untreated),
        is_ill=illnesses(evidence),
        preserved=_all_preserved(by, evidence),
        untreated_distance=untreated_distance,
        broke=_is_finite(untreated) and not _is_finite(evidence),
        loss=_difference(evidence, untreated),
    )
    outcome = comparison.outcome()
    loss, error = comparison.loss or (None, None)
    return dataclasses.replace(
        after,
        outcome=outcome,
        why=comparison.why(outcome),
        loss_difference=loss,
        loss_difference_error=error,
    )


def judged_by(subjects: Sequence[str], untreated: Evidence) -> tuple[str, ...]:
    """Return the gravest ill among the subjects: those with an error, where any has one.

    Those that are only going to be ill would hide beside them what becomes of these.
    """
    errors = {name for (_, name), grade in illnesses(untreated).items() if grade == ERROR}
    return tuple(name for name in subjects if name in errors) or tuple(subjects)


def measure(trial: Trial, evidence: Evidence, by: Sequence[str]) -> Trial:
    """Return a trial with what its evidence shows of some parameters (empty: of all); no outcome."""
    named = [p for p in evidence.parameters if _concerns(by, p.name)]
    items = [i for i in stepped(evidence) if _concerns(by, i.parameter.name)]
    intended = sum(i.updates.intended for i in items)
    losses = _loss_by_step(evidence)
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    quarter = max(len(losses) // QUARTER, 1)
    return dataclasses.replace(
        trial,
        steps=evidence.run.steps,
        seconds=evidence.run.seconds,
        found=tuple(sorted({rule for rule, _ in illnesses(evidence)})),
        edq=_pooled_edq(items, evidence, outside=trial.remedy in OUTSIDE),
        lost_share=sum(i.updates.intended * i.updates.lost_share for i in items) / intended
        if intended
        else None,
        ups=sum(i.updates.ups_applied for i in items),
        downs=sum(i.updates.downs_applied for i in items),
        mean_first=_mean(named, lambda p: p.weight.mean_first if p.weight else None),
        mean_last=_mean(named, lambda p: p.weight.mean_last if p.weight else None),
        loss_first=fmean(list(losses.values())[:quarter]) if finite and len(finite) == len(losses) else None,
        loss_last=fmean(list(losses.values())[-quarter:]) if finite and len(finite) == len(losses) else None,
        losses=evidence.losses,
    )


def illnesses(evidence: Evidence) -> Illnesses:
    """Return who is ill, and how gravely, by rule and parameter: errors and warnings."""
    found: dict[tuple[str, str], int] = {}
    for finding in diagnose(evidence).findings:
        severity = SEVERITIES.index(finding.severity)
        names = [s.name for s in finding.subjects if s.kind in ("parameter", "state")]
        if severity >= WARNING:
            found.update({(finding.rule, name): severity for name in names or [""]})
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
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

    def outcome(self) -> Outcome:
        if self.broke or self.new_errors or self.loss_is_worse:
            return "harmed"
        if not self.asked:
            return "no effect"
        if not (self.left or self.new) and self.descends:
            return "cured" if self.travels is not False else "helped"
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
    def strays(self) -> bool:
        """Tell whether the subjects end further from float32 than untreated: drift, not descent."""
        own, untreated = self.after.travel_distance, self.untreated_distance
        return own is not None and untreated is not None and own > untreated

    @property
    def loss_is_worse(self) -> bool:
        if self.loss is None:
            return False
        difference, error = self.loss
        first, last = self.before.loss_first, self.before.loss_last
        gained = max(first - last, 0.0) if first is not None and last is not None else 0.0
        return difference > HARMED_ERRORS * error and difference > HARMED_SHARE * gained

    def _on_subjects(self, ill: Illnesses) -> Illnesses:
        subjects = self.after.subjects
        return {key: grade for key, grade in ill.items() if not key[1] or _concerns(subjects, key[1])}

    # ------------------------------------------------------------------ in words

    def why(self, outcome: Outcome) -> str:
        """Return the reason in a sentence with its numbers."""
        parts = []
        if outcome == "harmed":
            parts += self._harm()
        if not self.asked:
            parts.append("nothing asked for it")
        parts += self._descent()
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
            return [f"EDQ {before.edq:.3f} -> {after.edq:.3f}"]
        if before.lost_share is not None and after.lost_share is not None:
            return [f"lost updates {percent(before.lost_share)} -> {percent(after.lost_share)}"]
        return []

    def _drift(self) -> list[str]:
        """Return which way the weights went, where that is another way than float32's."""
        parts, after = [], self.after
        if after.ups != after.downs and (after.lost_share or 0.0) > 0.5:
            parts.append(f"{after.ups:,} ups against {after.downs:,} downs")
        own, there = after.mean_last, self.float32.mean_last if self.float32 is not None else None
        if own is not None and there is not None and f"{own:.4f}" != f"{there:.4f}":
            parts.append(f"mean {own:.4f} where float32 goes to {there:.4f}")
        return parts


# ---------------------------------------------------------------------- reading evidence


def _concerns(subjects: Sequence[str], name: str) -> bool:
    return not subjects or name in subjects


def _pooled_edq(items: Iterable[Stepped], evidence: Evidence, *, outside: bool) -> float | None:
    """Return the EDQ of all parameters together, each weighted by the energy of its intended updates."""
    arrived = meant = 0.0
    for item in items:
        share, energy = _arrived(item, evidence, outside=outside), item.updates.headroom_energy.total
        if share is not None and energy > 0:
            arrived, meant = arrived + share * energy, meant + energy
    return arrived / meant if meant > 0 else None


def _arrived(item: Stepped, evidence: Evidence, *, outside: bool) -> float | None:
    """Return the EDQ of one parameter; None where it can't be told."""
    if item.preserves and item.updates.replay != "none" and item.bench is not None:
        # by chance: each step is right in the mean. Kept outside the optimizer: the whole run is.
        window = 1 if item.bench.random else 0
        if item.bench.random or outside:
            found = [w.edq for w in item.updates.edq if w.window == window and math.isfinite(w.edq)]
            return found[0] if found else None
    found_quality = quality(item, evidence.run)
    return found_quality.edq if found_quality is not None else None


def _all_preserved(by: Sequence[str], evidence: Evidence) -> bool:
    items = [i for i in stepped(evidence) if _concerns(by, i.parameter.name)]
    return bool(items) and all(item.preserves for item in items)


def _mean(parameters: Iterable[Parameter], of: Callable[[Parameter], float | None]) -> float | None:
    """Return the mean over the watched elements of all parameters; None where it is not a number."""
    known = [(value, p.watched) for p in parameters if (value := of(p)) is not None]
    total = sum(watched for _, watched in known)
    mean = sum(value * watched for value, watched in known) / total if total else math.nan
    return mean if math.isfinite(mean) else None


def _loss_by_step(evidence: Evidence) -> dict[int, float]:
    """Return the mean loss of each step, in order."""
    steps: dict[int, list[float]] = {}
    for step, loss in evidence.losses:
        steps.setdefault(step, []).append(loss)
    return {step: fmean(losses) for step, losses in sorted(steps.items())}


def _difference(evidence: Evidence, untreated: Evidence) -> tuple[float, float] | None:
    """Return the mean of (loss - untreated loss) over the last quarter of the steps, and its error."""
    own, other = _loss_by_step(evidence), _loss_by_step(untreated)
    steps = [step for step in own if step in other]
    last = steps[-max(len(steps) // QUARTER, 1) :]
    differences = [own[step] - other[step] for step in last]
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    return fmean(differences), stdev(differences) / math.sqrt(len(differences))


def _is_finite(evidence: Evidence) -> bool:
    weights = sum(p.weight.non_finite for p in evidence.parameters if p.weight is not None)
    return not weights and all(math.isfinite(loss) for _, loss in evidence.losses)
