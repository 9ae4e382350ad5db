"""PD301: the second moment is held in a format in which it cannot fall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Parameter, Place, State
from precdoctor.formats import Format
from precdoctor.rules.averages import stuck_averages
from precdoctor.rules.finding import Finding, Prescription, Severity, Subject
from precdoctor.rules.prescriptions import Settings, ranked
from precdoctor.rules.reading import (
    FLOAT32_BITS,
    cause_of_format,
    format_named,
    locations,
    optimizer_of,
)
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, number, short_type, size

#: EDQ of the intended decreases below which the moment counts as unable to fall
MAX_EDQ_DOWN = 0.5
#: stored over exact second moment from which steps are visibly too small: sqrt(4) = half the step
WARNING_OVER_EXACT = 4.0
#: the same for an error: a quarter of the step, as measured (18.8) where the loss stalled
ERROR_OVER_EXACT = 16.0
#: a warning is due before that, where the value stays at what the gradients were: from 1.5 times the exact
#: average on (steps 1.22x too small; rounding an average once moves it by 0.4 % at most) ...
RISING_OVER_EXACT = 1.5
#: ... where the last gradients lead the exact one to a value this many times smaller, at which steps would be
#: ten times as large (measured: 100 to 12,000 after bursts)
RISING_OVER_GRADIENT = 100.0


class StagnantSecondMoment(Rule):
    """The second moment is held in a format in which it cannot fall.

    ## What it means

    Adam multiplies its average of squared gradients by beta2 each step. With beta2 = 0.999 that takes away
    0.1 %, and half an ulp of bfloat16 is 0.2 to 0.4 % of the value: the product rounds back to the value.
    The average can rise and cannot fall. A bfloat16 second moment of 1.0 stays 1.0 through a thousand steps
    of zero gradient, where it should have fallen to 0.37.

    ## Why it hurts

    Steps are divided by the root of this average. One early burst of large gradients (warm-up, a
    re-weighted loss, a bad batch) makes every later step too small: with the average 19 times too large, by
    more than four. It looks like a learning rate that is too low, and only for some parameters.

    ## Criterion

    A state tensor below float32 that regression recognises as an average of squared gradients; of its
    intended decreases less than half arrives (EDQ of the decreases below 0.5); and 1 - beta2 is below the
    largest half-ulp, as a share of the value. It is a warning when the stored values are 4 times the exact
    average or more (median), an error from 16 on, and a note as long as it has done little harm. A short
    run gives the exact average no time to fall that far: there a warning is due from 1.5 times on, where
    the stored values are at least 100 times the mean of the last 8 to 16 observed squared gradients, to
    which it falls. Averages of what is made from gradients and never negative that the program updates
    itself, without a `torch.optim.Optimizer`, are judged as averages are (PD304).

    ## Blind spots

    Averages that are kept in an unusual form (a square root, a factored or block-quantized state) are not
    recognised. The exact average is followed from the first observed step on.

    ## Remedies

    Keep the second moment in float32 (2 bytes more per parameter than bfloat16), or round it
    stochastically. In bfloat16 beta2 up to 0.99 can fall; 0.999 and 0.9999 are themselves 1.0 in it.

    ## References

    - Kingma and Ba 2015, Adam, arXiv 1412.6980
    - Nerogar/OneTrainer issue 1005; pytorch/torchdistx issue 52
    """

    id: ClassVar[str] = "PD301"
    name: ClassVar[str] = "stagnant-second-moment"
    example: ClassVar[str] = "stagnant_second_moment.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per optimizer and format, as grave as its gravest state; harmless ones apart."""
        by_name = {p.name: p for p in evidence.parameters}
        sorts: dict[tuple[int | None, str, str, bool], list[State]] = {}
        for state in evidence.states:
            parameter = by_name.get(state.parameter)
            if parameter is not None and _is_stagnant(state):
                key = (parameter.optimizer, state.key, state.format, _severity(state) == "note")
                sorts.setdefault(key, []).append(state)
        found = [cls._finding(evidence, by_name, states) for states in sorts.values()]
        squares = (record for record in evidence.accumulations if record.squares)
        return [*found, *stuck_averages(evidence, squares, (cls.id, cls.name), "second moment")]

    @classmethod
    def _finding(cls, evidence: Evidence, by_name: dict[str, Parameter], states: Sequence[State]) -> Finding:
        worst = max(states, key=lambda s: s.over_exact or 0.0)
        severity = _severity(worst)
        fmt = format_named(worst.format)
        assert fmt is not None
        parameters = [by_name[s.parameter] for s in states]
        optimizer = optimizer_of(evidence, parameters[0])
        who = (
            f"{worst.key} of {worst.parameter}"
            if len(states) == 1
            else f"{worst.key} of {count(len(states), 'parameter')}"
        )
        text = f"{who} is {worst.format} and cannot fall: "
        if worst.beta is not None:
            text += f"beta2 = {worst.beta:.4g} takes {number(1 - worst.beta)} of it away per step, "
        text += f"half an ulp is {number(fmt.eps / 4)} .. {number(fmt.eps / 2)} of it"
        if worst.over_exact is not None and severity != "note":
            text += (
                f". It stands at {number(worst.over_exact)} times the exact average ({worst.parameter}), so "
                f"steps are {number(worst.over_exact**0.5)}x too small"
            )
            if worst.over_exact < WARNING_OVER_EXACT and worst.over_gradient is not None:
                text += (
                    f", and at {number(worst.over_gradient)} times the last squared gradients, where the "
                    "exact average goes"
                )
        else:
            shrank = worst.over_exact is not None and worst.over_exact >= RISING_OVER_EXACT
            text += ". It has done little harm so far" if shrank else ". It has done no harm so far"
            text += ": the gradients shrank by little" if shrank else ": the gradients did not shrink"
        follows = all(p.format == worst.format for p in parameters)
        built = [optimizer.place] if optimizer is not None else []
        casts = [cause_of_format(p) for p in parameters] if follows else []
        causes: list[Place | None] = [*casts] if any(casts) else [*built]
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            # a state goes by the name of its parameter; its key is among the measured values
            subjects=tuple(Subject(kind="state", name=s.parameter) for s in states),
            message=text + ".",
            locations=locations(causes, built),
            measured={
                "state": worst.key,
                "format": worst.format,
                "beta2": worst.beta,
                "edq_down": worst.edq_down,
                "lost_share": worst.lost_share,
                "over_exact": worst.over_exact,
                "over_gradient": worst.over_gradient,
                "half_ulp_share_min": fmt.eps / 4,
                "half_ulp_share_max": fmt.eps / 2,
            },
            prescriptions=()
            if severity == "note"
            else _cures(fmt, parameters, follows, short_type(optimizer.type) if optimizer else "it"),
        )


def _is_stagnant(state: State) -> bool:
    fmt = format_named(state.format)
    if state.role != "second moment" or fmt is None or fmt.bits >= FLOAT32_BITS:
        return False
    # just above a power of two half an ulp is eps/2 of the value, just below the next one eps/4
    rounds_away = state.beta is None or 1 - state.beta < fmt.eps / 2
    return rounds_away and state.edq_down < MAX_EDQ_DOWN


def _severity(state: State) -> Severity:
    over = state.over_exact or 0.0
    ahead = state.over_gradient or 0.0
    if RISING_OVER_EXACT <= over < WARNING_OVER_EXACT and ahead >= RISING_OVER_GRADIENT:
        return "warning"
    return "error" if over >= ERROR_OVER_EXACT else "warning" if over >= WARNING_OVER_EXACT else "note"


def _cures(
    fmt: Format, parameters: Sequence[Parameter], follows: bool, optimizer: str
) -> tuple[Prescription, ...]:
    numel = sum(p.numel for p in parameters)
    extra = size(numel * (FLOAT32_BITS - fmt.bits) / 8)
    state = ("float32-state", f"keep the second moment in float32 (+{extra}): it then falls at any beta2")
    reasons: list[tuple[str, str] | tuple[str, str, Settings]] = [state]
    if follows:  # torch's own optimizers make their state in the weight's format
        weights = (
            "autocast",
            f"float32 weights under torch.autocast: {optimizer} makes its state in their format",
        )
        reasons = [weights, state]
    reasons.append(
        ("stochastic-rounding", "round the state stochastically: its mean then falls as it should")
    )
    beta = math.floor(100 * (1 - fmt.eps / 2)) / 100
    reasons.append(
        (
            "beta2",
            f"beta2 of {beta:.2f} or less can fall in {fmt.name}; it also averages over fewer steps",
            {"beta2": beta},
        )
    )
    return ranked(reasons)
