"""PD202: the path from the loss to the parameters is cut."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Backward, Evidence, Parameter
from precdoctor.rules.finding import Finding
from precdoctor.rules.gradients import is_detached, with_zero_gradient, without_gradient
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import locations, optimizer_of, parameter_subjects
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, several

#: observed steps from which a gradient of zeros without a visible reason is worth a note
MIN_NOTED_STEPS = 10


class SeveredGradient(Rule):
    """The path from the loss to the parameters is cut: they get no gradient, or exact zeros.

    ## What it means

    Either the graph of the loss ends before it reaches a parameter: the loss was rebuilt from numbers
    (`.item()`, `torch.tensor(...)`, numpy), detached, or computed under `no_grad`; `requires_grad=True` on
    the new tensor only silences the error. Or the path is there and multiplies by zero: `round`, `floor`,
    `sign` and comparisons have the derivative zero wherever they have one.

    ## Why it hurts

    Backward runs, the step runs, the loss is printed and wanders. Optimizers skip parameters without
    gradient; those with a zero gradient change by weight decay alone: with AdamW they shrink by
    1 - exp(-weight_decay x sum of lr) and learn nothing (measured 0.1015, predicted 0.1012).

    ## Criterion

    An error when the graph of the loss reached no parameter while parameters in an optimizer stayed
    without gradient for at least 3 observed steps; and when a gradient was exactly zero at every one of at
    least 3 observed steps and the graph reaches the parameter through nodes of zero derivative only. Exact
    zeros without such a node are a note (from 10 steps): a loss term with weight 0, dead ReLUs, the far side
    of a zero-initialised adapter and embedding rows that do not occur are healthy.

    ## Blind spots

    The graph is looked at in the first backward passes. The line of the cut is found by reading the source
    of the function that called backward, and marked as likely. Custom autograd functions that return
    zeros look like any node.

    ## Remedies

    Build the loss from the tensors themselves (`torch.stack(losses).mean()`); a straight-through estimator
    around the rounding: `x + (round(x) - x).detach()`.

    ## References

    - Bengio et al. 2013, arXiv 1308.3432 (straight-through estimator)
    - PyTorch documentation, `torch.tensor`: "copies data"; it has no history
    """

    id: ClassVar[str] = "PD202"
    name: ClassVar[str] = "severed-gradient"
    example: ClassVar[str] = "severed_gradient.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding for a detached loss, for zero derivatives and for unexplained zeros."""
        findings = []
        cut = without_gradient(evidence) + with_zero_gradient(evidence)
        if is_detached(evidence) and evidence.backward is not None and cut:
            return [cls._detached(evidence.backward, cut)]
        names = set(evidence.backward.zero_derivative) if evidence.backward is not None else set()
        zero = with_zero_gradient(evidence)
        blocked = [p for p in zero if p.name in names]
        if blocked and evidence.backward is not None:
            findings.append(cls._blocked(evidence.backward, blocked))
        unexplained = [p for p in zero if p.name not in names and p.gradient.present >= MIN_NOTED_STEPS]
        if unexplained:
            findings.append(cls._unexplained(evidence, unexplained))
        return findings

    @classmethod
    def _detached(cls, backward: Backward, members: list[Parameter]) -> Finding:
        cuts = [f"{place.file}:{place.line}" for place in backward.cuts]
        steps = min(max(p.gradient.absent, p.gradient.all_zero) for p in members)
        text = (
            f"backward{at(backward.place)} reaches no parameter: the graph of the loss ends in a tensor "
            f"without history, and {_who(members)} got no gradient at {steps:,} observed steps"
        )
        if cuts:
            text += f"; likely cut at {several(cuts)}"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=parameter_subjects(members),
            message=text + ".",
            locations=locations(backward.cuts, [backward.place]),
            measured=_measured(members),
            prescriptions=ranked(
                [
                    (
                        "reconnect",
                        "build the loss from the tensors themselves, for example torch.stack(losses).mean(): "
                        ".item(), torch.tensor(), .detach() and numpy drop their history",
                    )
                ]
            ),
        )

    @classmethod
    def _blocked(cls, backward: Backward, members: list[Parameter]) -> Finding:
        nodes = several(backward.zero_nodes)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=parameter_subjects(members),
            message=(
                f"The gradient of {_who(members)} was exactly zero at all "
                f"{min(p.gradient.present for p in members):,} observed steps: the loss reaches "
                f"{'it' if len(members) == 1 else 'them'} through {nodes} only, whose derivative is zero."
            ),
            locations=locations([], [backward.place, *(p.created for p in members)]),
            measured=_measured(members) | {"zero_nodes": ", ".join(backward.zero_nodes)},
            prescriptions=ranked(
                [("ste", f"pass the gradient around {nodes}: x + (q(x) - x).detach() has the derivative one")]
            ),
        )

    @classmethod
    def _unexplained(cls, evidence: Evidence, members: list[Parameter]) -> Finding:
        optimizer = optimizer_of(evidence, members[0])
        half = any(p.gradient.format == "float16" for p in members)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="note",
            subjects=parameter_subjects(members),
            message=(
                f"The gradient of {_who(members)} was exactly zero at all "
                f"{min(p.gradient.present for p in members):,} observed steps; the graph shows no reason. A "
                "loss term with weight 0 or inactive units do this"
                + (", and float16 gradients below 3e-8, which flush to zero." if half else ".")
            ),
            locations=locations([], [optimizer.place if optimizer is not None else None]),
            measured=_measured(members),
        )


def _who(members: list[Parameter]) -> str:
    if len(members) == 1:
        return members[0].name
    return f"{count(len(members), 'parameter')} ({several([p.name for p in members])})"


def _measured(members: list[Parameter]) -> dict[str, float | int | str | None]:
    return {
        "parameters": len(members),
        "elements": sum(p.numel for p in members),
        "steps_without_gradient": min(p.gradient.absent for p in members),
        "steps_with_zero_gradient": min(p.gradient.all_zero for p in members),
    }
