"""PD103: at a binade's edge rounding lets updates pass in one direction only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from precdoctor.evidence import Evidence, Weight
from precdoctor.formats import half_ulp
from precdoctor.rules.descent import rounds_inside
from precdoctor.rules.finding import Finding
from precdoctor.rules.measures import measured, sample_note
from precdoctor.rules.prescriptions import EDGE_SHARE, for_lost_updates
from precdoctor.rules.reading import Stepped, by_cause, format_locations, parameter_subjects, stepped
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, number, percent

#: applied moves from which their directions are compared
MIN_MOVES = 20
#: standard errors by which the share of increases must be off: one false alarm in 30,000
MIN_Z = 4.0
#: the same as a difference of shares, so that a tiny bias in a long run is not an illness
MIN_DIFFERENCE = 0.15
#: intended increases, and decreases, as a share of all: with less there is only one side to begin with
MIN_BOTH_SHARE = 0.05
#: share of updates lost below which rounding can't have chosen the directions
MIN_LOST_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Directions of the moves of one parameter."""

    #: share of increases among intended and among applied moves
    intended_up: float
    applied_up: float
    #: applied moves
    moves: int

    @property
    def z(self) -> float:
        """Return the difference in standard errors of the applied share (binomial)."""
        error = math.sqrt(self.intended_up * (1 - self.intended_up) / self.moves)
        return (self.applied_up - self.intended_up) / error


class OneSidedUpdate(Rule):
    """Rounding lets updates pass in one direction only: the weights drift.

    ## What it means

    At a power of two the gap towards zero is half the gap away from it. Weights that start at exactly 1.0,
    as norm scales do, can take a bfloat16 decrease of 0.00195 but need 0.0039 for an increase. Updates in
    between pass when they shrink the weight and vanish when they grow it.

    ## Why it hurts

    The parameter moves, so it looks alive, and what moves it is the number format: RMSNorm weights at lr
    3e-3 made 28 increases and 129 decreases where 54 % of the intended updates were increases, and ended
    with a mean of 0.994 where float32 gives 1.014: the wrong side. It is what one gets for curing a frozen
    parameter by a larger learning rate.

    ## Criterion

    In a format below float32: at least 20 % of the watched weights are powers of two, or their mean was one
    exactly at the start (all were 1.0); updates were intended both ways (5 % or more each) and at least
    10 % of them were lost; of at least 20 applied moves the share away from zero is smaller than intended
    by more than 0.15 and by at least 4 standard errors.

    ## Blind spots

    Weights of mixed signs, whose drifts towards zero go both ways, cancel in the count. Optimizers that
    bring small updates through in the long run are not judged.

    ## Remedies

    Those of PD101, float32 weights first. Neither a larger nor a smaller learning rate: the one drifts
    less, the other freezes.

    ## References

    - Higham 2002, Accuracy and Stability of Numerical Algorithms, section 2.1 (wobbling precision)
    - Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192
    """

    id: ClassVar[str] = "PD103"
    name: ClassVar[str] = "one-sided-update"
    example: ClassVar[str] = "one_sided_update.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per cause."""
        return [cls._finding(evidence, group) for group in by_cause(filter(_is_one_sided, stepped(evidence)))]

    @classmethod
    def _finding(cls, evidence: Evidence, items: Sequence[Stepped]) -> Finding:
        item = max(items, key=lambda i: i.updates.ups_applied + i.updates.downs_applied)
        updates, found = item.updates, sides(item)
        assert found is not None
        edge = _edge(item.parameter.weight)
        values = measured(evidence, items)
        values |= {
            "edge": edge,
            "ups_intended": updates.ups_intended,
            "downs_intended": updates.downs_intended,
            "ups_applied": updates.ups_applied,
            "downs_applied": updates.downs_applied,
            "z": found.z,
            "drift_intended": updates.drift_intended,
            "drift_applied": updates.drift_applied,
        }
        one = f"{item.parameter.name} ({item.format.name}) drifts"
        many = f"{count(len(items), 'parameter')} in {item.format.name} drift"
        text = (
            f"{one if len(items) == 1 else many} one-sidedly: {updates.ups_applied:,} increases and "
            f"{updates.downs_applied:,} decreases arrived where {percent(found.intended_up)} of the intended "
            f"updates were increases"
        )
        if len(items) > 1:
            text += f" ({item.parameter.name})"
        towards, away = half_ulp(item.format, edge, -1), half_ulp(item.format, edge, +1)
        text += (
            f"; at |w| = {number(edge)} a move towards zero has to exceed {number(towards)}, one away "
            f"from it {number(away)}"
        )
        text += f"; mean travel {number(updates.drift_applied)} instead of {number(updates.drift_intended)}"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=parameter_subjects(i.parameter for i in items),
            message=f"{text}{sample_note(evidence, items)}.",
            locations=format_locations(items),
            measured=values,
            prescriptions=for_lost_updates(items, scaling=False),
        )


def sides(item: Stepped) -> Sides | None:
    """Return the directions of intended and applied moves; None where there are too few, or one side only."""
    updates = item.updates
    intended = updates.ups_intended + updates.downs_intended
    moves = updates.ups_applied + updates.downs_applied
    if moves < MIN_MOVES or intended == 0:
        return None
    share = updates.ups_intended / intended
    if not MIN_BOTH_SHARE <= share <= 1 - MIN_BOTH_SHARE:
        return None
    return Sides(intended_up=share, applied_up=updates.ups_applied / moves, moves=moves)


def _is_one_sided(item: Stepped) -> bool:
    weight = item.parameter.weight
    if not item.is_low or item.preserves or item.writes_nothing or rounds_inside(item) or weight is None:
        return False
    at_edge = _starts_at_edge(weight) or weight.power_of_two_share >= EDGE_SHARE
    if not at_edge or item.updates.lost_share < MIN_LOST_SHARE:
        return False
    found = sides(item)
    if found is None:
        return False
    # towards zero: decreases of positive weights, increases of negative ones
    away = math.copysign(1.0, weight.mean_first) * (found.applied_up - found.intended_up)
    return away < -MIN_DIFFERENCE and abs(found.z) >= MIN_Z


def _starts_at_edge(weight: Weight) -> bool:
    """Tell whether all start at one power of two: drifting away from it, they are not there at the end."""
    return weight.mean_first != 0 and abs(math.frexp(weight.mean_first)[0]) == 0.5


def _edge(weight: Weight | None) -> float:
    """Return the power of two at which the weights are, or were before they drifted."""
    assert weight is not None
    typical = abs(weight.mean_first) if _starts_at_edge(weight) else weight.abs_median
    return 2.0 ** round(math.log2(typical)) if typical else 0.0
