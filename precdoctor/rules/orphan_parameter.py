"""PD407: trainable, gets gradients, and in no optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Parameter
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.orphans import is_replaced, orphans
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import MIN_STEPS, locations, parameter_subjects
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, several


class OrphanParameter(Rule):
    """A parameter is trainable and gets gradients, and no optimizer steps it.

    ## What it means

    Backward computes the parameter's gradient; nobody uses it. Either it was registered after the optimizer
    had been constructed, or its module is not registered in the model (kept in a plain list or dict, so that
    `model.parameters()` misses it), or it was left out of the groups.

    ## Why it hurts

    The layer works with its random initialisation for the whole run, and a checkpoint of `state_dict()` does
    not even hold an unregistered one. Its gradients cost time and memory.

    ## Criterion

    Trainable, reached by the loss, with a gradient other than zero, in no optimizer, not the copy of a
    float32 master, and bit-identical at the first and the last look at it (what a loop moves by hand is no
    orphan), while an optimizer made at least 3 steps. It is a warning when it was created after the
    optimizer, or does not belong to the model whose parameters the optimizer steps, unless it was seen to run
    outside that model's forward; else a note, since groups may leave it out on purpose. When the optimizer
    holds stale tensors at the same time, PD406 tells the whole story.

    ## Blind spots

    A frozen helper network through which gradients pass (a perceptual loss, say) whose `requires_grad` was
    left on is a note; it looks like a forgotten layer where it runs inside the model's forward, or where that
    was not observed. `requires_grad_(False)` settles it and saves the work.

    ## Remedies

    Register the layer (`nn.ModuleList` instead of a list), construct the optimizer after it, or add it to a
    group; `requires_grad_(False)` if it is meant to rest.

    ## References

    - PyTorch documentation, `nn.ModuleList`: modules in a plain list are not registered
    - PyTorch documentation, `Optimizer.add_param_group`
    """

    id: ClassVar[str] = "PD407"
    name: ClassVar[str] = "orphan-parameter"
    example: ClassVar[str] = "orphan_parameter.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per severity."""
        if is_replaced(evidence) or not any(o.steps >= MIN_STEPS for o in evidence.optimizers):
            return []
        found = orphans(evidence)
        findings = []
        for severity in ("warning", "note"):
            members = [p for p in found if _severity(evidence, p) == severity]
            if members:
                findings.append(cls._finding(evidence, members, severity))
        return findings

    @classmethod
    def _finding(cls, evidence: Evidence, members: Sequence[Parameter], severity: Severity) -> Finding:
        one = len(members) == 1
        who = (
            members[0].name
            if one
            else f"{count(len(members), 'parameter')} ({several([p.name for p in members])})"
        )
        text = (
            f"{who} {'gets' if one else 'get'} gradients and {'is' if one else 'are'} in no optimizer: "
            f"{count(sum(p.numel for p in members), 'element')} that never moved"
        )
        if all(p.created_after_optimizer for p in members):
            text += f"; {'it was' if one else 'they were'} created after the optimizer"
        elif not any(p.in_model for p in members):
            text += f"; {'it is' if one else 'they are'} not registered in the model that the optimizer steps"
        elif severity == "note":
            text += "; if on purpose, requires_grad_(False) saves the work"
        reasons = [
            (
                "add-to-optimizer",
                "register it before the optimizer is constructed, or add_param_group",
            ),
            ("freeze", "requires_grad_(False) if it is meant to rest: no gradient is computed for it then"),
        ]
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=parameter_subjects(members),
            message=text + ".",
            locations=locations([o.place for o in evidence.optimizers], [p.created for p in members]),
            measured={
                "parameters": len(members),
                "elements": sum(p.numel for p in members),
                "steps_with_gradient": min(p.gradient.present for p in members),
            },
            prescriptions=ranked(reasons if severity == "warning" else reasons[::-1]),
        )


def _severity(evidence: Evidence, parameter: Parameter) -> Severity:
    if parameter.created_after_optimizer:
        return "warning"
    # an optimizer that steps no module's parameters (an image, a perturbation) has no model to miss one
    steps_a_model = any(p.optimizer is not None and p.module for p in evidence.parameters)
    # a network that runs beside the model, such as one that measures a loss, is not a part that it misses
    beside = parameter.used_by_model is False
    return "warning" if not parameter.in_model and steps_a_model and not beside else "note"
