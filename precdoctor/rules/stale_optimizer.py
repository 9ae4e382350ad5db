"""PD406: the optimizer steps tensors that are not, or no longer, the model's."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from precdoctor.evidence import Evidence, Optimizer
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.orphans import orphans
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.quantized import explained_by_quantizer
from precdoctor.rules.reading import locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, several, short_type


class StaleOptimizer(Rule):
    """The optimizer steps tensors that are not, or no longer, the model's.

    ## What it means

    An optimizer holds the tensors it was given, not their names. When the model later gets new ones
    (`resize_token_embeddings`, a replaced head, `load_state_dict(assign=True)`, wrapping, some casts and
    device moves), the optimizer keeps stepping the old ones, which nobody uses, and the new ones are in no
    optimizer.

    ## Why it hurts

    The new layer, often the embedding of new tokens or the head of a new task, stays at its random
    initialisation. Gradients flow into it and are thrown away; everything else trains, so the loss falls.

    ## Criterion

    An optimizer holds tensors that belong to no live module and never got a gradient, while trainable
    parameters of the model get gradients, are in no optimizer and never move: an error. Without such
    parameters it is a note: layers may have been removed on purpose.

    ## Blind spots

    Which old tensor was replaced by which new one is not known. A replaced parameter that gets no gradient
    shows up as the note only.

    ## Remedies

    Construct the optimizer after the model has got its final parameters, or `add_param_group` for the new
    ones.

    ## References

    - PyTorch documentation, torch.optim: construct optimizers after moving or changing the model
    - huggingface/transformers, `resize_token_embeddings`
    """

    id: ClassVar[str] = "PD406"
    name: ClassVar[str] = "stale-optimizer"
    example: ClassVar[str] = "stale_optimizer.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per optimizer that holds stale tensors."""
        explained = explained_by_quantizer(evidence)
        optimizers = [
            replace(o, stale=tuple(name for name in o.stale if name not in explained))
            for o in evidence.optimizers
        ]
        return [cls._finding(evidence, optimizer) for optimizer in optimizers if optimizer.stale]

    @classmethod
    def _finding(cls, evidence: Evidence, optimizer: Optimizer) -> Finding:
        replaced = orphans(evidence)
        severity: Severity = "error" if replaced else "note"
        text = (
            f"{short_type(optimizer.type)}{at(optimizer.place)} holds "
            f"{count(len(optimizer.stale), 'tensor')} of no live module that never got a gradient"
        )
        if replaced:
            gets, are = ("gets", "is") if len(replaced) == 1 else ("get", "are")
            text += (
                f", while {several([p.name for p in replaced])} of the model {gets} gradients and {are} "
                "in no optimizer: the model was changed after the optimizer had been constructed"
            )
        else:
            text += ": layers removed from the model, perhaps"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=(
                Subject(kind="optimizer", name=optimizer.type),
                *(Subject(kind="parameter", name=name) for name in optimizer.stale),
                *(Subject(kind="parameter", name=p.name) for p in replaced if p.name not in optimizer.stale),
            ),
            message=text + ".",
            locations=locations([optimizer.place], [p.replaced or p.created for p in replaced]),
            measured={
                "stale_tensors": len(optimizer.stale),
                "parameters_without_optimizer": len(replaced),
                "elements_without_optimizer": sum(p.numel for p in replaced),
            },
            prescriptions=ranked(
                [
                    ("rebuild-optimizer", "construct the optimizer after the last change of the model"),
                    ("add-param-group", "or hand the new parameters over: optimizer.add_param_group(...)"),
                ]
            )
            if replaced
            else (),
        )
