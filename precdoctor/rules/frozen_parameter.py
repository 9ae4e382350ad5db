"""PD101: updates are intended, and none or almost none arrives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.rules.by_hand import is_frozen_by_hand, updated_by_hand
from precdoctor.rules.descent import (
    MIN_INTENDED,
    arithmetic,
    frozen_parameters,
    is_replayed,
    quality,
)
from precdoctor.rules.finding import Finding
from precdoctor.rules.measures import measured, sample_note
from precdoctor.rules.prescriptions import for_lost_updates, ranked
from precdoctor.rules.reading import (
    MIN_STEPS,
    Stepped,
    by_cause,
    format_locations,
    locations,
    lr_place,
    parameter_subjects,
    stepped,
)
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, number, percent, short_type

#: EDQ below which an optimizer that fails the bench is held to blame: half of the descent is missing
UNWRITTEN_EDQ = 0.5


class FrozenParameter(Rule):
    """Updates are intended for a parameter, and none or almost none arrives.

    ## What it means

    The optimizer computes an update, adds it to the weight, and rounding to the weight's format gives the
    old weight back. This happens whenever the update is smaller than half the gap to the next
    representable value (half an ulp). In bfloat16 (8 significand bits) half an ulp lies between 1/512 and
    1/256 of the weight: at 1.0, where norm scales start, a decrease has to exceed 0.00195 and an increase
    0.0039. Adam's updates are about as large as its learning rate, so with lr 3e-4 such a weight is
    2.7 bits short and stays exactly 1.0 for ever.

    ## Why it hurts

    Nothing tells you. The loss falls because other weights learn, gradients and optimizer state look right,
    and nothing overflows. In a small language model all 448 norm weights stayed at
    1.0 and the loss ended 0.32 higher; in a published run 0 of 768 moved where 768 did in float32.

    ## Criterion

    The intended update of the watched elements is replayed in float64. A parameter is frozen when the
    effective descent quality, EDQ = <applied, intended> / <intended, intended>, is below 0.05 at the upper
    end of its 95 % interval; more than 99 % of the updates are lost or more than 90 % of the elements never
    moved; at least 20 updates over 3 observed steps were intended (8 where nothing moved from the first of
    20 steps or more to the last: a scalar); and they are not negligible (1e-6 of the weight per step or
    more, which is 1 % in 10,000 steps). Only formats below float32 are judged so.
    An optimizer that brings small updates through in the long run (Kahan summation, its own float32
    masters, stochastic rounding: found out by a bench test, not by name) is judged by its net travel. When
    the learning rate is still going to rise, the updates at its peak decide.

    Where the bench shows that the optimizer does not write updates of several ulp either, the optimizer is
    named as the cause. Where an optimizer can't be replayed, weights that never moved although gradients
    were not zero are the evidence (over 20 observed steps in float32 and wider), and the message says so.

    Weights that a line of the program updates itself (`p -= lr * p.grad`) are judged alike by what exact
    arithmetic makes of that line, over at least 8 updates that were looked at.

    ## Blind spots

    Of weights changed outside `torch.optim.Optimizer` only what elementwise operations in place, or a copy,
    write into them is seen, while the operation probe is awake. Of large tensors a sample is watched; the
    message gives the interval. A weight that oscillates between two values moves and still goes nowhere:
    that shows as swallowed-update (PD102).

    ## Remedies

    Keep the weights in float32 and compute under `torch.autocast` (autocast on top of bfloat16 weights does
    not help); float32 master weights; stochastic rounding; Kahan summation; where it is a few modules such
    as the norms, those alone in float32. A larger learning rate is not a cure: at 1.0 with lr 3e-3 the
    decreases pass and the increases do not (28 against 129 measured), so the weights drift. A smaller
    initialisation thaws elements (98 % move at 0.1) and still loses 99 % of the updates.

    ## References

    - Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192
    - Yu et al. 2024, Collage: Light-Weight Low-Precision Strategy for LLM Training, arXiv 2405.03637 (EDQ)
    - vllm-project/speculators issues 668 and 765; fla-org/flame issue 47
    """

    id: ClassVar[str] = "PD101"
    name: ClassVar[str] = "frozen-parameter"
    example: ClassVar[str] = "frozen_parameter.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per cause: the line that gave the format, or the optimizer."""
        items = frozen_parameters(evidence)
        findings = []
        for group in by_cause(i for i in items if i.is_low):
            findings.append(cls._by_format(evidence, group))
        for group in _by_optimizer(i for i in items if not i.is_low):
            findings.append(cls._still(group))
        for group in _by_optimizer(i for i in stepped(evidence) if _unwritten(i, evidence)):
            findings.append(cls._by_writer(evidence, group))
        by_hand = updated_by_hand(
            evidence, (cls.id, cls.name), lambda record: "error" if is_frozen_by_hand(record) else None
        )
        return [*findings, *by_hand]

    @classmethod
    def _by_format(cls, evidence: Evidence, items: Sequence[Stepped]) -> Finding:
        numbers, replayed = arithmetic(items), [i for i in items if is_replayed(i) or i.preserves]
        text = f"{_who(items)} frozen"
        if numbers is not None:
            text += (
                f": |w| = {number(numbers.weight)}, half-ULP {number(numbers.half_ulp_down)} down / "
                f"{number(numbers.half_ulp_up)} up, intended update {number(numbers.intended)}"
            )
            if numbers.grows is not None:
                text += " up" if numbers.grows else " down"
            if numbers.headroom_bits < 0:
                text += f": {-numbers.headroom_bits:.1f} bits short"
        intended = sum(i.updates.intended for i in replayed)
        if intended:
            lost = sum(i.updates.intended * i.updates.lost_share for i in replayed) / intended
            text += f"; {percent(lost)} of {intended:,} observed updates lost"
        text += sample_note(evidence, items)
        if len(replayed) < len(items):
            text += (
                f". {_unreplayed(items)}: for {count(len(items) - len(replayed), 'parameter')} this rests on "
                "gradients other than zero and elements that never moved"
            )
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=parameter_subjects(i.parameter for i in items),
            message=text + ".",
            locations=format_locations(items),
            measured=measured(evidence, items),
            prescriptions=for_lost_updates(items, among=evidence.parameters),
        )

    @classmethod
    def _still(cls, items: Sequence[Stepped]) -> Finding:
        optimizer = items[0].optimizer
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=parameter_subjects(i.parameter for i in items),
            message=(
                f"{_who(items)} frozen: no watched element moved in {optimizer.observed:,} observed steps of "
                f"{short_type(optimizer.type)} although gradients were not zero. {_unreplayed(items)}, so "
                f"what it meant to do is not known; {items[0].format.name} is not the reason."
            ),
            locations=locations([], [*map(lr_place, items), optimizer.place]),
            measured={"moved_share": 0.0, "observed_steps": optimizer.observed},
        )

    @classmethod
    def _by_writer(cls, evidence: Evidence, items: Sequence[Stepped]) -> Finding:
        optimizer, bench = items[0].optimizer, items[0].bench
        share = bench.edq_large if bench is not None else None
        values = measured(evidence, items)
        values["bench_edq_large"] = share
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=parameter_subjects(i.parameter for i in items),
            message=(
                f"{_who(items)} not written: the updates would survive, {short_type(optimizer.type)} does "
                f"not write them. Alone on the bench, with updates of several ulp, it stored "
                f"{percent(max(share or 0.0, 0.0))} of the travel of its float64 twin"
                f"{sample_note(evidence, items)}."
            ),
            locations=locations([optimizer.place], map(lr_place, items)),
            measured=values,
            prescriptions=ranked(
                [
                    (
                        "plain-optimizer",
                        f"use another implementation of {short_type(optimizer.type)} (fused=False, "
                        "foreach=False): the plain loop writes what it computes",
                    ),
                    ("autocast", f"float32 weights: the fault was seen with {items[0].format.name} weights"),
                ]
            ),
        )


def _unwritten(item: Stepped, evidence: Evidence) -> bool:
    if not item.writes_nothing or item.preserves or item.optimizer.observed < MIN_STEPS:
        return False
    found = quality(item, evidence.run)
    return found is not None and item.updates.intended >= MIN_INTENDED and found.high < UNWRITTEN_EDQ


def _by_optimizer(items: Iterable[Stepped]) -> list[list[Stepped]]:
    sorts: dict[int | None, list[Stepped]] = {}
    for item in items:
        sorts.setdefault(item.parameter.optimizer, []).append(item)
    return list(sorts.values())


def _who(items: Sequence[Stepped]) -> str:
    if len(items) == 1:
        return f"{items[0].parameter.name} ({items[0].format.name}) is"
    return f"{count(len(items), 'parameter')} in {items[0].format.name} are"


def _unreplayed(items: Sequence[Stepped]) -> str:
    item = next((i for i in items if not is_replayed(i)), items[0])
    why = item.updates.why_not or "its updates, replayed, do not match what it stored"
    return f"{short_type(item.optimizer.type)} could not be replayed ({why})"
