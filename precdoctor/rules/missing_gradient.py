"""PD201: trainable, in an optimizer, and .grad stays None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Parameter, Place
from precdoctor.rules.finding import Finding, Prescription, Severity
from precdoctor.rules.gradients import is_detached, without_gradient
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import gets_gradient, locations, optimizer_of, parameter_subjects
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, several, short_type


class MissingGradient(Rule):
    """A parameter is trainable and in an optimizer, and its gradient stays None.

    ## What it means

    `.grad` is None when the optimizer steps, every time. The loss does not depend on the parameter as
    autograd sees it: the forward used a detached copy (`weight.data`, `.detach()`, `.item()`, a cached or
    quantized tensor made under `no_grad`), or did not use it at all, or something cleared the gradient
    between backward and step. Optimizers skip such parameters without a word, weight decay included.

    ## Why it hurts

    The parameter stays at its initial value while the rest trains around it. In a published FP4 experiment
    `F.linear(x, dequantize(*quantize(self.weight.data)))` cut off all 29,491,200 quantized weights;
    embeddings and norms learned through a frozen random network, the loss fell, and the format was blamed.

    ## Criterion

    A trainable parameter of an optimizer without a gradient at all of at least 3 observed steps. It is an
    error when its module ran its forward all the same, or when none of the optimizer's parameters gets a
    gradient; a warning when it was not observed whether the module ran; a note when the module never ran (an
    unused head or pooler). When the loss reaches no parameter at all, PD202 says so instead.

    ## Blind spots

    A parameter of a module that is not called, but whose weight is used by others, reads as unused until it
    gets a gradient. An expert to which no token was routed reads as unused too.

    ## Remedies

    Use the parameter itself in the forward; through a quantizer by a straight-through estimator,
    `w + (q(w) - w).detach()`. If it is meant to rest, `requires_grad_(False)` says so and saves memory.

    ## References

    - Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432
    - PyTorch documentation, Autograd mechanics: locally disabling gradient computation
    """

    id: ClassVar[str] = "PD201"
    name: ClassVar[str] = "missing-gradient"
    example: ClassVar[str] = "missing_gradient.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per optimizer and severity."""
        if is_detached(evidence):
            return []
        sorts: dict[tuple[int | None, Severity], list[Parameter]] = {}
        for parameter in without_gradient(evidence):
            key = (parameter.optimizer, _severity(evidence, parameter))
            sorts.setdefault(key, []).append(parameter)
        return [cls._finding(evidence, members, key[1]) for key, members in sorts.items()]

    @classmethod
    def _finding(cls, evidence: Evidence, members: Sequence[Parameter], severity: Severity) -> Finding:
        optimizer, backward = optimizer_of(evidence, members[0]), evidence.backward
        assert optimizer is not None
        elements = sum(p.numel for p in members)
        steps = min(p.gradient.absent for p in members)
        reached = backward is not None and all(p.name in backward.reaches for p in members)
        who = (
            members[0].name
            if len(members) == 1
            else f"{count(len(members), 'parameter')} ({several([p.name for p in members])})"
        )
        text = (
            f"{who}: .grad is None at all {steps:,} observed steps, so {short_type(optimizer.type)} skips "
            f"{count(elements, 'element')}, weight decay included"
        )
        if reached:
            text += ". The loss does depend on them: something clears the gradient between backward and step"
        elif severity == "note":
            text += ". Their modules never ran: nothing is wrong if they are unused on purpose"
        elif all(p.used for p in members):
            text += ". Their modules ran: the forward used a detached copy"
        elif _is_all(evidence, members[0].optimizer):
            text += ". No parameter of this optimizer gets a gradient"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=parameter_subjects(members),
            message=text + ".",
            locations=locations(_cuts(evidence, members), [*(p.created for p in members), optimizer.place]),
            measured={
                "parameters": len(members),
                "elements": elements,
                "steps_without_gradient": steps,
                "steps_with_gradient": 0,
            },
            prescriptions=_cures(severity, reached),
        )


def _cuts(evidence: Evidence, members: Sequence[Parameter]) -> list[Place | None]:
    """Return the lines seen to use the parameters without their history."""
    names = {p.name for p in members}
    return [q.used_at for q in evidence.quantizers if q.kind == "detached" and q.parameter in names]


def _severity(evidence: Evidence, parameter: Parameter) -> Severity:
    if parameter.used or _is_all(evidence, parameter.optimizer):
        return "error"
    return "warning" if parameter.used is None else "note"


def _is_all(evidence: Evidence, optimizer: int | None) -> bool:
    """Tell whether no trainable parameter of an optimizer got a gradient."""
    return not any(gets_gradient(p) for p in evidence.parameters if p.optimizer == optimizer and p.trainable)


def _cures(severity: Severity, reached: bool) -> tuple[Prescription, ...]:
    rest = (
        "freeze",
        "if they are meant to rest, requires_grad_(False) says so and saves the work",
    )
    if severity == "note":
        return ranked([rest])
    if reached:
        return ranked([("keep-gradient", "step before the gradients are cleared: backward, step, zero_grad")])
    return ranked(
        [
            (
                "reconnect",
                "use the parameter itself in the forward, not .data, .detach() or a cached copy",
            ),
            ("ste", "through a quantizer: w + (q(w) - w).detach() passes the gradient on to w"),
            rest,
        ]
    )
