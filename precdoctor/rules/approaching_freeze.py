"""PD105: with the schedule given, updates will be lost from some step on, or have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from precdoctor.evidence import Evidence, Histogram
from precdoctor.rules.descent import edq_at, expected_rise, is_meant, quality
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.measures import measured, sample_note
from precdoctor.rules.prescriptions import for_lost_updates
from precdoctor.rules.reading import Stepped, by_cause, format_locations, parameter_subjects, stepped
from precdoctor.rules.rule import Rule
from precdoctor.rules.swallowed_update import MIN_JUDGED
from precdoctor.rules.wording import count, number, percent

#: expected EDQ under which a parameter counts as freezing: half of the descent is lost
FREEZING_EDQ = 0.5
#: EDQ (lower bound) from which a parameter is healthy now; less is PD102's (error) business
HEALTHY_EDQ = 0.7
#: share of the steps, to come or made, that must be lost: every schedule that ends at 0 loses its last few
MIN_LOST_SHARE = 0.1
#: stretches of the timeline, the last ones, that must say so of a run that has come to its end
MIN_STRETCHES = 3
#: relative change of the learning rate that a scheduler is expected to have made
RATE_CHANGE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """When a parameter's updates will be lost."""

    item: Stepped
    #: step of its optimizer from which EDQ stays under one half, and the learning rate there
    step: int
    lr: float
    #: lowest EDQ from there to the end of the schedule, and share of the steps to come that lie there
    edq_lowest: float
    lost_future_share: float
    #: the schedule has an end; one that falls for ever says nothing about the length of the training
    is_bounded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """Since when a parameter's updates have been lost to a rate that has fallen."""

    item: Stepped
    #: step of its optimizer from which EDQ stayed under one half, and the share of all steps since
    step: int
    share: float


class ApproachingFreeze(Rule):
    """With the schedule given, updates will be lost from some step on: a forecast.

    ## What it means

    Updates shrink with the learning rate, half an ulp does not. A run that is healthy now freezes when its
    schedule has brought the rate down far enough, parameter by parameter, the largest weights first.

    ## Why it hurts

    The late, small steps are where a schedule earns its keep, and in a low format they are the ones that
    round away: bfloat16 matrices of standard deviation 0.02 keep 96 % of the descent at lr 3e-4 and 23 % at
    3e-5, one tenth of it, where most cosine schedules end.

    ## Criterion

    For a run that was cut short (it has a future) with a scheduler that can be asked for the rates to come.
    Each parameter's squared intended updates, by headroom in bits, are kept as if every rate had been
    1, the latest steps weighing most (Adam's first updates, or those of a warm-up, say little about later
    ones), and shifted by the rates to come. What is looked for is the step from which the expected EDQ stays
    under 0.5, for parameters in a format below float32 that are healthy now (EDQ 0.7 or more at the lower end
    of its interval), or will be once the rate has risen to its peak. It is a warning when 10 % or more of the
    steps up to the end of the schedule are under it; else, and for a schedule without an end (exponential,
    every so many steps), a note. A schedule ends where its rate, having fallen, reaches 0, stays at a floor
    or turns up again.

    Of a run that has come to its end, what was foreseen is seen: EDQ stayed under 0.5 in the last 10 % or
    more of its steps, and the updates kept as above say that it would be 0.7 or more at the largest rate of
    the run: it is the rate that has fallen, not the gradient of a run that has converged.

    ## Blind spots

    Gradients and weights are taken to stay as they are, so the forecast comes late rather than early. While
    gradients still agree from step to step, Adam's updates are near the rate; where noise rules they are down
    to sqrt((1 - beta1) / (1 + beta1)), 0.23 of it: up to 2.1 bits less headroom than was seen. Those of SGD
    follow the gradient itself, and weights that grow lose sooner under any optimizer. Trained on to the end
    (`benchmarks/forecast.py`), a forecast after 200 of 1,000 or 1,500 steps is off by, in the median, 4 % of
    the run for a language model under AdamW (one parameter in ten by 24 % or more: its head grows), by 6 %
    for SGD with momentum and by 16 % for a regression whose updates shrink for 300 steps, these two nearly
    always late; after 50 steps by 5 %, 10 % and 24 %. Norm biases and others that start at 0 may be missed.

    Rates set by hand have no future that could be asked for. The training may end before its schedule does.
    A scheduler stepped once per epoch is recognised by a rate that should have changed and did not; nothing
    is said then.

    ## Remedies

    Those of PD101. A floor under the learning rate above the step's rate also avoids it.

    ## References

    - Yu et al. 2024, Collage, arXiv 2405.03637
    - Loshchilov and Hutter 2017, SGDR, arXiv 1608.03983 (schedules that end near zero)
    """

    id: ClassVar[str] = "PD105"
    name: ClassVar[str] = "approaching-freeze"
    example: ClassVar[str] = "approaching_freeze.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per cause and severity."""
        if evidence.run.ended not in ("stopped", "watched"):
            ended = {id(f.item): f for f in (frozen(i, evidence) for i in stepped(evidence)) if f is not None}
            groups = by_cause(f.item for f in ended.values())
            return [cls._seen(evidence, [ended[id(i)] for i in group]) for group in groups]
        found = {id(f.item): f for f in (forecast(i, evidence) for i in stepped(evidence)) if f is not None}
        findings = []
        for severity in ("warning", "note"):
            items = [f.item for f in found.values() if _severity(f) == severity]
            for group in by_cause(items):
                findings.append(cls._foreseen(evidence, [found[id(i)] for i in group], severity))
        return findings

    @classmethod
    def _seen(cls, evidence: Evidence, found: Sequence[Frozen]) -> Finding:
        items = [f.item for f in found]
        first = min(found, key=lambda f: f.step)
        group = first.item.group
        text = (
            f"{_who(items, 'loses', 'lose')} more than half of the descent from about step "
            f"{first.step:,} on ({percent(first.share)} of the run), where the learning rate fell from "
            f"{number(group.lr_max or 0.0)} to {number(group.lr_last or 0.0)}"
        )
        if len(items) > 1:
            text += f" ({first.item.parameter.name}, the first)"
        return cls._finding(
            evidence, items, "warning", text, freeze_step=first.step, lost_share_at_end=first.share
        )

    @classmethod
    def _foreseen(cls, evidence: Evidence, found: Sequence[Forecast], severity: Severity) -> Finding:
        items = [f.item for f in found]
        first = min(found, key=lambda f: f.step)
        item = first.item
        now = "now" if expected_rise(item, evidence.run) <= 1 else "once the rate has risen"
        text = (
            f"{_who(items, 'is', 'are')} healthy {now} and will lose more than half of the descent from "
            f"about step {first.step:,} on, when the schedule reaches lr {number(first.lr)}; "
            f"EDQ falls to {number(first.edq_lowest)}"
        )
        if len(items) > 1:
            text += f" ({item.parameter.name}, the first)"
        if first.is_bounded:
            text += f"; {percent(first.lost_future_share)} of the steps up to the schedule's end are lost so"
        else:
            text += ", should the training go on that long"
        return cls._finding(
            evidence,
            items,
            severity,
            text,
            freeze_step=first.step,
            freeze_lr=first.lr,
            edq_lowest=first.edq_lowest,
            lost_future_share=first.lost_future_share,
        )

    @classmethod
    def _finding(
        cls, evidence: Evidence, items: Sequence[Stepped], severity: Severity, text: str, **values: float
    ) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=parameter_subjects(i.parameter for i in items),
            message=f"{text}{sample_note(evidence, items)}.",
            locations=format_locations(items),
            measured={**measured(evidence, items), **values},
            prescriptions=for_lost_updates(items, scaling=False),
        )


def forecast(item: Stepped, evidence: Evidence) -> Forecast | None:
    """Return when a parameter loses its updates that is healthy, or will be at the peak; None if never."""
    group, energy, found = item.group, item.updates.headroom_per_lr, quality(item, evidence.run)
    future, is_bounded = _until_its_end(group.lr_future)
    if not item.is_low or item.preserves or item.writes_nothing or found is None or not future:
        return None
    if group.lr_last is None or not is_meant(item, evidence.run, MIN_JUDGED) or _has_another_pace(item):
        return None
    points = [(0, group.lr_last), *future]
    expected = [edq_at(energy, lr) for _, lr in points]
    healthy = found.low if expected_rise(item, evidence.run) <= 1 else max(expected)
    if healthy < HEALTHY_EDQ or expected[-1] >= FREEZING_EDQ:
        return None
    # where it goes under for good: a warm-up may begin under it as well
    first = max((i for i, value in enumerate(expected) if value >= FREEZING_EDQ), default=-1) + 1
    step, lr = points[first] if first == 0 else _crossing(energy, points[first - 1], points[first])
    return Forecast(
        item=item,
        step=item.optimizer.steps + step,
        lr=lr,
        edq_lowest=min(expected[first:]),
        lost_future_share=1 - step / points[-1][0],
        is_bounded=is_bounded,
    )


def frozen(item: Stepped, evidence: Evidence) -> Frozen | None:
    """Return since when a parameter of a run that has ended loses its updates to a rate that has fallen."""
    group, energy, found = item.group, item.updates.headroom_per_lr, quality(item, evidence.run)
    if not item.is_low or item.preserves or item.writes_nothing or found is None or found.low < HEALTHY_EDQ:
        return None
    if group.lr_last is None or not group.lr_max or not is_meant(item, evidence.run, MIN_JUDGED):
        return None
    at_least = edq_at(energy, group.lr_last) if group.lr_last > 0 else 0.0
    if edq_at(energy, group.lr_max) < HEALTHY_EDQ or at_least >= FREEZING_EDQ:
        return None
    seen = [(s, e) for s, e in zip(evidence.timeline, item.updates.timeline, strict=False) if e is not None]
    before = max((i for i, (_, edq) in enumerate(seen) if edq >= FREEZING_EDQ), default=-1)
    lost = seen[before + 1 :]
    if before < 0 or len(lost) < MIN_STRETCHES:
        return None
    since = seen[before][0]
    share = 1 - since / lost[-1][0]
    return Frozen(item=item, step=since + 1, share=share) if share >= MIN_LOST_SHARE else None


def _crossing(energy: Histogram, above: tuple[int, float], below: tuple[int, float]) -> tuple[int, float]:
    """Return the first step that is under, and its rate, between two points of a schedule."""
    while below[0] - above[0] > 1:
        middle = (above[0] + below[0]) // 2
        part = (middle - above[0]) / (below[0] - above[0])
        lr = above[1] + part * (below[1] - above[1])
        if edq_at(energy, lr) < FREEZING_EDQ:
            below = middle, lr
        else:
            above = middle, lr
    return below


def _until_its_end(
    future: tuple[tuple[int, float], ...],
) -> tuple[list[tuple[int, float]], bool]:
    """Return a schedule up to its end, and whether it has one.

    It ends where the rate, once it has fallen, is 0, turns up again (a period of a cosine) or stays.
    """
    points = [(offset, lr) for offset, lr in future if offset > 0]
    rates = [lr for _, lr in points]
    has_fallen = False
    for index in range(1, len(points)):
        has_fallen = has_fallen or rates[index] < rates[index - 1]
        if has_fallen and (rates[index] <= 0 or rates[index] > rates[index - 1]):
            return points[:index], True
    last = len(points) - 1
    while last > 0 and rates[last - 1] == rates[-1]:
        last -= 1
    at_floor = last < len(points) - 1 and points[-1][0] > 2 * points[last][0]
    return points[: last + 1], at_floor


def _has_another_pace(item: Stepped) -> bool:
    """Tell whether the scheduler is not stepped with the optimizer, but once per epoch, say.

    It foresees that the rate changes within as many steps as were already made, in which it did not.
    """
    group = item.group
    if group.lr_first != group.lr_last or not group.lr_last:
        return False
    near = [lr for offset, lr in group.lr_future if offset <= item.optimizer.steps]
    return any(abs(lr - group.lr_last) > RATE_CHANGE * group.lr_last for lr in near)


def _who(items: Sequence[Stepped], one: str, several: str) -> str:
    """Return the parameters with their verb."""
    item = items[0]
    if len(items) == 1:
        return f"{item.parameter.name} ({item.format.name}) {one}"
    return f"{count(len(items), 'parameter')} in {item.format.name} {several}"


def _severity(found: Forecast) -> Severity:
    return "warning" if found.is_bounded and found.lost_future_share >= MIN_LOST_SHARE else "note"
