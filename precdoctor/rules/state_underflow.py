"""PD302: optimizer state flushes to zero in its format while gradients do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Parameter, State
from precdoctor.formats import FLOAT16
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import (
    FLOAT32_BITS,
    cause_of_format,
    format_named,
    group_of,
    locations,
    optimizer_of,
)
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, number, percent, short_type

#: share of the elements with a gradient whose state is stored as 0, from which a warning and an error are due
WARNING_SHARE, ERROR_SHARE = 0.1, 0.5
#: the largest one in use: with it squares of the gradients must underflow where state is not known as a
#: moment
USUAL_BETA2 = 0.999


class StateUnderflow(Rule):
    """A moment of the optimizer flushes to zero in its format, although the gradients are not zero.

    ## What it means

    Adam's second moment holds squares of gradients, at first times 1 - beta2 = 0.001. In float16, whose
    smallest positive number is 6e-8, that is zero for every gradient below 0.008, and below 2.4e-4 for good.
    The update is then divided by eps alone. A first moment below 6e-8 is a gradient that is forgotten.

    ## Why it hurts

    Divided by eps = 1e-8 an update is a hundred thousand times too large, or inf in float16; with a large eps
    the method is plain gradient descent with momentum for these elements. Other elements of the same tensor
    are scaled as they should be, so the direction is wrong as well.

    ## Criterion

    Among the watched elements and observed steps with a gradient other than zero, where the exact arithmetic
    leaves the state other than zero, it is stored as zero: an error from 50 % on, a warning from 10 %. An
    optimizer that rounds its state itself shows no exact one: there elements of a float16 state that are zero
    at all steps count where the squares of their gradients, times 0.001, are below float16's range.

    ## Blind spots

    Optimizers that cannot be replayed element by element, and state in an unusual form (block-quantized,
    factored, square roots).

    ## Remedies

    Keep the moments in float32, or in bfloat16, which has float32's range; scale the loss and leave the
    gradients scaled while they are squared.

    ## References

    - Kingma and Ba 2015, Adam, arXiv 1412.6980
    - pytorch/pytorch issue 8860; afiaka87/glide-finetune issue 5
    """

    id: ClassVar[str] = "PD302"
    name: ClassVar[str] = "state-underflow"
    example: ClassVar[str] = "state_underflow.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per optimizer, key and severity."""
        by_name = {p.name: p for p in evidence.parameters}
        sorts: dict[tuple[int | None, str, str, Severity], list[State]] = {}
        for state in evidence.states:
            parameter, severity = by_name.get(state.parameter), _severity(state)
            if parameter is not None and severity is not None:
                key = (parameter.optimizer, state.key, state.format, severity)
                sorts.setdefault(key, []).append(state)
        return [cls._finding(evidence, by_name, states, key[3]) for key, states in sorts.items()]

    @classmethod
    def _finding(
        cls, evidence: Evidence, by_name: dict[str, Parameter], states: Sequence[State], severity: Severity
    ) -> Finding:
        worst = max(states, key=_share)
        fmt = format_named(worst.format)
        assert fmt is not None
        parameters = [by_name[s.parameter] for s in states]
        optimizer, group = optimizer_of(evidence, parameters[0]), group_of(evidence, parameters[0])
        who = (
            f"{worst.key} of {worst.parameter}"
            if len(states) == 1
            else f"{worst.key} of {count(len(states), 'parameter')}"
        )
        text = (
            f"{who} is {worst.format}, whose smallest positive value is {number(fmt.min_subnormal)}: "
            f"{percent(_share(worst))} of what gradients go into is stored as 0 ({worst.parameter})"
        )
        if worst.role == "second moment" and group is not None and group.eps is not None:
            text += f". Updates there are divided by eps = {number(group.eps)} alone"
        follows = all(p.format == worst.format for p in parameters)
        built = [optimizer.place] if optimizer is not None else []
        casts = [cause_of_format(p) for p in parameters] if follows else []
        kind = short_type(optimizer.type) if optimizer is not None else "the optimizer"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=tuple(Subject(kind="state", name=s.parameter) for s in states),
            message=text + ".",
            locations=locations(casts if any(casts) else built, built),
            measured={
                "state": worst.key,
                "role": worst.role,
                "format": worst.format,
                "flushed_share": _share(worst),
                "largest_gradient": worst.never_largest_gradient,
                "min_subnormal": fmt.min_subnormal,
                "eps": group.eps if group is not None else None,
            },
            prescriptions=ranked(
                [
                    *(
                        [
                            (
                                "autocast",
                                f"float32 weights under torch.autocast: {kind} makes its state in "
                                "their format",
                            )
                        ]
                        if follows
                        else []
                    ),
                    ("float32-state", "moments in float32 hold squares down to 1e-45"),
                ]
            ),
        )


def _severity(state: State) -> Severity | None:
    fmt = format_named(state.format)
    if fmt is None or fmt.bits >= FLOAT32_BITS:
        return None
    if state.role == "other":  # what is mostly 0, or rounded by the optimizer itself, shows no moment
        squared = state.never_largest_gradient**2 * (1 - USUAL_BETA2)
        if fmt.name != FLOAT16.name or squared >= fmt.min_subnormal:
            return None
    share = _share(state)
    return "error" if share >= ERROR_SHARE else "warning" if share >= WARNING_SHARE else None


def _share(state: State) -> float:
    return state.never_share if state.role == "other" else state.flushed_share
