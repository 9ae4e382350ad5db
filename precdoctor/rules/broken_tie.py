"""PD605: weights that were tied are two tensors now, and go apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Contents, Evidence, Place, Tie
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import MIN_STEPS, locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, number, percent, several, size

#: correlation from which one tensor is taken for a copy of the other: a quantization of 2 dB, as that to two
#: bits is, has 0.6; two matrices drawn apart have 0.0, +-0.03 over 4,096 elements
MIN_SIMILARITY = 0.5
#: share of its norm by which an exact copy must have gone elsewhere
MIN_PARTING = 1e-3
#: motion of one, the other at rest, after which a quantized copy that follows would have changed codes: at
#: 1 % of the norm some 4 % of four-bit codes do
MIN_MOTION = 0.01
#: part of the change of their difference by which two that move must have become more distant. A copy
#: quantized anew in each step keeps its distance
MIN_GROWTH = 0.5


class BrokenTie(Rule):
    """Weights that were one parameter in two places are two tensors now, and go apart.

    ## What it means

    An embedding and an output head, say, shared a parameter. Then one of the two modules was replaced by a
    quantized or adapted one that made a weight of its own, or was copied alone, or `load_state_dict(...,
    assign=True)` or a conversion that makes new parameters gave each place its own. From then on each side
    gets its own part of the gradient, or, as a buffer, none.

    ## Why it hurts

    It is another model than the one that was meant: it has more parameters (64 % more in the four-bit
    language model of the sample programs, 18.9 million) and takes their memory, gradients and optimizer
    state, each side learns from half of what the shared weight learned from, and a frozen copy falls behind.
    A checkpoint loaded into the tied model keeps one of the two.

    ## Criterion

    Where optimizer steps begin, over at least 3 of them, a place where a tied parameter was registered holds
    another tensor of the same shape in other memory: a copy, by a correlation of 0.5 or more at first sight
    (the two may be equal, cast or quantized), that goes apart. An exact copy goes apart when the difference
    changes by 0.1 % of the norm; others when one rests while the other moves by 1 % or more, or when their
    distance grows by half of the change of the difference or more. It is an error where loading or a
    conversion of the model did it, or where what stands apart gets no gradient; else a warning: somebody may
    have untied them on purpose. Of two checkpoints (`precdoctor diff`): names that share one storage in the
    first file (a warning) or have equal bits there (a note) have different data in the second.

    ## Blind spots

    Only parameters that were registered in two places are known to be tied; a module that uses another one's
    weight in its forward, and a module that is itself registered twice, are not followed. Copies with another
    shape (packed codes, another vocabulary) and tensors of special classes (DTensor, torchao's) are not
    compared. What is done before torch was imported, or before `with Doctor(...)`, is not seen.

    ## Remedies

    Let the new module use the parameter of the old one (`self.weight = linear.weight`) and quantize it on the
    way; or tie again, `head.weight = embedding.weight`, after the last change of the model and before
    the optimizer is constructed. Where the quantizer passes no gradient (PD601), cure that first: tied to a
    frozen head, the embedding fits it instead of learning (accuracy 8 % instead of 39 % was measured).

    ## References

    - Press and Wolf 2017, Using the Output Embedding to Improve Language Models, arXiv 1608.05859
    - PyTorch documentation, `Module.load_state_dict`: assign=True keeps the properties of the tensors loaded
    """

    id: ClassVar[str] = "PD605"
    name: ClassVar[str] = "broken-tie"
    example: ClassVar[str] = "broken_tie.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per line that broke ties, and severity."""
        sorts: dict[tuple[Place | None, Severity], list[Tie]] = {}
        for tie in evidence.ties:
            if is_broken(tie):
                sorts.setdefault((tie.broken, _severity(tie)), []).append(tie)
        found = [cls._finding(members, key[1]) for key, members in sorts.items()]
        return found + ([] if evidence.contents is None else cls._in_files(evidence.contents))

    @classmethod
    def _in_files(cls, contents: Contents) -> list[Finding]:
        """Return a finding for names that one file has the same data for, and the other does not."""
        return [
            Finding(
                rule=cls.id,
                name=cls.name,
                severity="warning" if shared.by == "storage" else "note",
                subjects=tuple(Subject(kind="parameter", name=name) for name in shared.names),
                message=(
                    f"{several(shared.names)} are "
                    + ("stored once" if shared.by == "storage" else "equal to the last bit")
                    + f" in {contents.files[0].path} and differ in {contents.files[1].path}."
                ),
                measured={"names": len(shared.names), "by": shared.by},
                prescriptions=ranked([("re-tie", "tie them again before the optimizer is constructed")]),
            )
            for shared in contents.shared
            if shared.broken
        ]

    @classmethod
    def _finding(cls, ties: Sequence[Tie], severity: Severity) -> Finding:
        first = ties[0]
        elements, extra = sum(t.numel for t in ties), sum(t.extra_bytes for t in ties)
        names = [name for t in ties for name in (t.kept, t.apart)]
        text = (
            f"{first.kept} and {first.apart} were one parameter{at(first.made)} and are two tensors of "
            f"{count(first.numel, 'element')}{_since(first)}: {_apart(first)}"
        )
        if len(ties) > 1:
            text += f"; so are {several([f'{t.kept} and {t.apart}' for t in ties[1:]])}"
        text += f". That takes {size(extra)} more"
        if first.trainable:
            text += ", and as much for the gradient and each state of the optimizer"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=tuple(
                Subject(
                    kind="buffer" if any(t.kind == "buffer" and t.apart == n for t in ties) else "parameter",
                    name=n,
                )
                for n in dict.fromkeys(names)
            ),
            message=text + ".",
            locations=locations([t.broken for t in ties], [t.made for t in ties]),
            measured={
                "ties": len(ties),
                "elements": elements,
                "extra_bytes": extra,
                "how": first.how,
                "kind": first.kind,
                "similarity": first.similarity,
                "distance_first": first.distance_first,
                "distance_last": first.distance_last,
                "kept_moved": first.kept_moved,
                "apart_moved": first.apart_moved,
                "steps_apart": first.last_step - first.first_step,
            },
            prescriptions=ranked([("re-tie", _cure(first))]),
        )


def is_broken(tie: Tie) -> bool:
    """Tell whether the two were copies of each other, and went apart."""
    if tie.last_step - tie.first_step < MIN_STEPS or (tie.similarity or 0.0) < MIN_SIMILARITY:
        return False
    if tie.distance_first == 0:
        return tie.difference_moved >= MIN_PARTING
    if min(tie.kept_moved, tie.apart_moved) == 0:
        return max(tie.kept_moved, tie.apart_moved) >= MIN_MOTION
    growth = tie.distance_last**2 - tie.distance_first**2
    return tie.difference_moved >= MIN_PARTING and growth >= (MIN_GROWTH * tie.difference_moved) ** 2


def _severity(tie: Tie) -> Severity:
    return "error" if _is_library(tie) or not tie.trainable else "warning"


def _is_library(tie: Tie) -> bool:
    """Tell whether loading or a conversion of the model put the other tensor there: nobody meant to untie."""
    return tie.how in ("load_state_dict", "from_pretrained") or tie.how.startswith("module.")


def _since(tie: Tie) -> str:
    if tie.broken is None:
        return ""
    if _is_library(tie):
        return f" since {tie.how}(){at(tie.broken)}"
    what = {
        "module replaced": f"the module of {tie.apart} was replaced",
        "registered": f"{tie.apart} became a buffer",
    }
    return f" since {what.get(tie.how, f'{tie.apart} became another one')}{at(tie.broken)}"


def _apart(tie: Tie) -> str:
    alike = "equal" if tie.distance_first == 0 else f"{percent(tie.distance_first)} of the norm apart"
    text = (
        f"{alike} at step {tie.first_step:,}, {percent(tie.distance_last)} of the norm apart at step "
        f"{tie.last_step:,}"
    )
    if tie.apart_moved == 0:
        text += (
            f"; {tie.apart}"
            + ("" if tie.trainable else f", a {tie.kind} without gradient,")
            + " has not moved"
        )
    elif tie.kept_moved == 0:
        text += f"; {tie.kept} has not moved"
    return text


def _cure(tie: Tie) -> str:
    holder = tie.apart.rpartition(".")[0] or "the model"
    if _is_library(tie):
        return (
            f"tie {tie.apart} to {tie.kept} again after {tie.how}() and before the optimizer is constructed"
        )
    return (
        f"let {holder} use the parameter {tie.kept} itself, quantized on the way if need be; or, if the two "
        f"are meant to differ, never tie them (correlation {number(tie.similarity)} at first)"
    )
