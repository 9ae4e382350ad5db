"""PD303: eps rounds to zero in the denominator's format."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence, Parameter
from precdoctor.formats import Format, round_to
from precdoctor.rules.finding import Finding
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import (
    FLOAT32_BITS,
    bench_of,
    cause_of_format,
    format_named,
    group_of,
    locations,
    optimizer_of,
    parameter_subjects,
)
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, number, short_type


class VanishingEpsilon(Rule):
    """The optimizer's eps rounds to zero in the format it is added in: it divides by zero.

    ## What it means

    Adam divides by sqrt(v) + eps. The smallest positive float16 is 6.0e-8, so the default eps of 1e-8
    rounds to 0 when the sum is formed in float16; squares of gradients below 2.4e-4 round to 0 as well.
    What is left is g / 0, or 0 / 0 for an element without gradient.

    ## Why it hurts

    The weights are inf or NaN after the first step, and the loss after the second. Where no element happens
    to have a zero second moment it is a bomb: the first dead unit sets it off.

    ## Criterion

    A group's eps above 0 rounds to 0 in the format, below float32, of its parameters or of their second
    moment, and the optimizer itself, asked on the bench, turns a step with zero gradient into inf or NaN;
    or the bench could not ask and weights are not finite already. An optimizer that forms the sum in
    float32 (torch's fused Adam) stays finite on the bench and is not reported.

    ## Blind spots

    An eps that is not zero but far too small for its format is not reported. Bfloat16 has float32's range:
    eps vanishes there only beside a large sqrt(v), where it is not needed.

    ## Remedies

    Float32 weights under autocast; optimizer state and arithmetic in float32; an eps of 1e-4 or so, which
    also damps small steps.

    ## References

    - pytorch/pytorch issue 8860; keras-team/keras issue 11860
    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740
    """

    id: ClassVar[str] = "PD303"
    name: ClassVar[str] = "vanishing-epsilon"
    example: ClassVar[str] = "vanishing_epsilon.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per optimizer group and format."""
        moments = {s.parameter: s.format for s in evidence.states if s.role == "second moment"}
        sorts: dict[tuple[int | None, int | None, str], list[Parameter]] = {}
        for parameter in evidence.parameters:
            fmt = _vanishes_in(evidence, parameter, moments.get(parameter.name))
            if fmt is not None and _divides_by_zero(evidence, parameter):
                sorts.setdefault((parameter.optimizer, parameter.group, fmt.name), []).append(parameter)
        return [cls._finding(evidence, members, key[2]) for key, members in sorts.items()]

    @classmethod
    def _finding(cls, evidence: Evidence, members: list[Parameter], name: str) -> Finding:
        optimizer, group, fmt = (
            optimizer_of(evidence, members[0]),
            group_of(evidence, members[0]),
            format_named(name),
        )
        assert optimizer is not None
        assert group is not None
        assert fmt is not None
        weights = [p.weight for p in members if p.weight is not None]
        ill, watched = sum(w.non_finite for w in weights), sum(p.watched for p in members)
        bench = bench_of(evidence, members[0])
        text = (
            f"eps = {number(group.eps)} of {short_type(optimizer.type)} is 0 in {name}, whose smallest "
            f"positive value is {number(fmt.min_subnormal)}: updates of {count(len(members), 'parameter')} "
            "may be divided by zero"
        )
        if bench is not None and bench.zero_gradient_finite is False:
            text += ". On the bench a step with zero gradient gave inf or NaN"
        if ill:
            text += f"; {ill:,} of {watched:,} watched weights of this run are not finite"
        follows = all(p.format == name for p in members)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=parameter_subjects(members),
            message=text + ".",
            locations=locations(
                map(cause_of_format, members) if follows else [optimizer.place],
                [group.place, optimizer.place],
            ),
            measured={
                "eps": group.eps,
                "format": name,
                "min_subnormal": fmt.min_subnormal,
                "eps_in_format": 0.0,
                "non_finite_weights": ill,
                "watched_weights": watched,
            },
            prescriptions=ranked(
                [
                    ("autocast", f"float32 weights under torch.autocast: {number(group.eps)} is not 0 there"),
                    (
                        "float32-state",
                        "second moment and denominator in float32, as fused implementations have them",
                    ),
                    (
                        "eps",
                        f"an eps of 1e-4 survives in {name} (smallest normal {number(fmt.min_normal)}); "
                        "it damps the steps of elements with gradients below that",
                        {"eps": 1e-4},
                    ),
                ]
            ),
        )


def _vanishes_in(evidence: Evidence, parameter: Parameter, moment: str | None) -> Format | None:
    """Return the low format of the parameter or of its second moment in which its group's eps is 0."""
    group = group_of(evidence, parameter)
    if group is None or not group.eps or group.eps <= 0 or not parameter.trainable:
        return None
    for name in (parameter.format, moment):
        fmt = format_named(name) if name is not None else None
        if fmt is not None and fmt.bits < FLOAT32_BITS and round_to(fmt, group.eps) == 0:
            return fmt
    return None


def _divides_by_zero(evidence: Evidence, parameter: Parameter) -> bool:
    bench = bench_of(evidence, parameter)
    if bench is not None and bench.zero_gradient_finite is not None:
        return not bench.zero_gradient_finite
    return parameter.weight is not None and parameter.weight.non_finite > 0
