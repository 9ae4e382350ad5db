"""What came of a trial: its numbers, read from its evidence, and its outcome beside the runs of comparison.

Pure functions of evidence. The outcome says what happened to those that were ill, not what a remedy promises.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev

from precdoctor.evidence import Evidence, Parameter
from precdoctor.rules import SEVERITIES, diagnose
from precdoctor.rules.descent import quality
from precdoctor.rules.reading import Stepped, stepped
from precdoctor.trials.comparison import ERROR, WARNING, Comparison, Illnesses, concerns
from precdoctor.trials.trial import Trial

#: part of the steps over which a loss at the beginning or the end is averaged
QUARTER = 4
#: remedies that keep what rounding loses outside the optimizer: unlike for one that keeps it inside, what is
#: meant in a step holds nothing left over from earlier ones, so the sums over the whole run are compared
OUTSIDE = frozenset(("master-weights", "stochastic-rounding", "kahan"))


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
    comparison = Comparison(
        before=before,
        after=after,
        float32=measure(trial, float32, by) if float32 is not None else None,
        was_ill=illnesses(untreated),
        is_ill=illnesses(evidence),
        preserved=_all_preserved(by, evidence),
        untreated_distance=untreated_distance,
        broke=_is_finite(untreated) and not _is_finite(evidence),
        loss=_difference(evidence, untreated),
        gap=_difference(untreated, float32) if float32 is not None else None,
        was_seen=evidence.probed or not untreated.probed,
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
    named = [p for p in evidence.parameters if concerns(by, p.name)]
    items = [i for i in stepped(evidence) if concerns(by, i.parameter.name)]
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


# ---------------------------------------------------------------------- reading evidence


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
    items = [i for i in stepped(evidence) if concerns(by, i.parameter.name)]
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
