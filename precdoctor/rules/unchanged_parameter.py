"""PD701: a weight has the same bits in two checkpoints between which it should have moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Contents, Evidence, Tensor
from precdoctor.rules.checkpoints import elements, in_store, is_all_ones, is_low, numel, subjects, trainable
from precdoctor.rules.descent import FROZEN_LOST_SHARE
from precdoctor.rules.finding import Finding, Prescription, Severity
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, number, percent, several

#: elements from which the largest half-ulp that was overcome is known well enough
MIN_MOVED = 1000


class UnchangedParameter(Rule):
    """A weight has the same bits in two checkpoints between which it should have moved.

    ## What it means

    Between two checkpoints of one run some weights moved and others are identical to the last bit. Where
    those that stand still are the ones with the largest gaps between representable values, rounding held
    them: the weights of norms at 1.0 in bfloat16 are the usual case.

    ## Why it hurts

    What has not moved has not learned, and nothing else shows it: the loss falls, since the rest learns. Of
    a public model trained in bfloat16, 0 of 768 elements of a norm had moved; with float32 masters all had.

    ## Criterion

    By cause, as far as the files tell it:

    - An error where state of the optimizer is there and says that the weight is trained: its memory of the
      gradient is not zero, and 99 % of its next update would be lost in the weight's format.
    - A warning where rounding explains it: a format below float32, and 99 % of its elements have a larger
      half-ulp than any over which elements moved elsewhere (99th percentile over at least 1,000 elements
      that moved). So it is where one file alone has a weight of one dimension that is 1.0 in every element,
      in a format below float32, although its optimizer has a gradient for it.
    - A note otherwise: frozen on purpose, without gradient, or the files are copies. So is what stands beside
      weights that rounding cannot have held: where these have more elements than all that move (a frozen
      backbone), or are all that the smallest module around the weight has (a frozen block).

    Buffers are left out: what the optimizer does not hold, integers, masks, tables of positions or
    frequencies. So are weights of which the optimizer keeps a float32 master.

    ## Blind spots

    Without the optimizer's state it is not known what is trained; a norm frozen on purpose beside small
    weights that move looks like a frozen one, and so does, over few steps, the bfloat16 copy of a float32
    master that is kept elsewhere. In float32 rounding is never blamed.

    ## Remedies

    Float32 weights under autocast, float32 master weights, stochastic rounding or Kahan summation;
    `precdoctor scan` on the training script names the line and tries them.

    ## References

    - Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training, arXiv 1905.12322: float32 masters
    - Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192
    """

    id: ClassVar[str] = "PD701"
    name: ClassVar[str] = "unchanged-parameter"
    example: ClassVar[str] = "unchanged_parameter.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per severity."""
        contents = evidence.contents
        if contents is None:
            return []
        if len(contents.files) == 1:
            return cls._at_their_start(contents)
        compared = [t for t in trainable(contents) if t.travel is not None and numel(t) and _in_one_format(t)]
        still = [t for t in compared if t.identical and t.stepped is not False and not t.has_master]
        moved = [t for t in compared if not t.identical]
        sorts: dict[Severity, list[Tensor]] = {"error": [], "warning": [], "note": []}
        if moved:
            passed = _passed(moved)
            for tensor in still:
                sorts[_severity(tensor, passed)].append(tensor)
            unexplained = [t for t in sorts["note"] if not _is_held(t, passed)]
            mostly_frozen = elements(unexplained) > elements(moved)
            on_purpose = [
                t for t in sorts["warning"] if mostly_frozen or _is_beside_frozen(t, moved, unexplained)
            ]
            sorts["note"] += on_purpose
            sorts["warning"] = [t for t in sorts["warning"] if t not in on_purpose]
        elif still:
            return [cls._all_still(still)]
        return [cls._finding(s, tensors, moved) for s, tensors in sorts.items() if tensors]

    @classmethod
    def _finding(cls, severity: Severity, tensors: Sequence[Tensor], moved: Sequence[Tensor]) -> Finding:
        ones = [t for t in tensors if is_all_ones(t)]
        half = min(t.travel.half_ulp_low for t in tensors if t.travel is not None)
        passed, typical = _passed(moved) or 0.0, _typical(moved)
        text = f"{len(tensors):,} of {count(len(tensors) + len(moved), 'weight')} "
        text += f"({count(elements(tensors), 'element')}) are identical to the last bit in both files"
        if ones:
            which = "all" if len(ones) == len(tensors) else f"{len(ones)}"
            text += f", {which} of them exactly 1.0 in every element"
        formats = sorted({t.last.format for t in tensors if t.last is not None})
        told = [p for t in tensors if (p := in_store(t)) is not None and p.intended]
        if severity == "error" and told:
            worst = max(told, key=lambda p: p.weight)
            text += (
                f". The optimizer trains them, but {percent(worst.lost_share)} of the next update would be "
                f"lost in {worst.format}: {number(worst.update)} at weights of {number(worst.weight)}"
            )
        elif severity == "warning":
            text += (
                f". Half an ulp of {several(formats)} is {number(half)} or more there, and no element "
                f"that moved anywhere had more than {number(passed)}; those moved by {number(typical)} "
                "(median). Rounding explains it, unless they are frozen on purpose"
            )
        else:
            text += ". Nothing in the numbers says that rounding did it: frozen on purpose, or no gradient"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=subjects(tensors),
            message=text + ".",
            measured={
                "weights": len(tensors),
                "elements": elements(tensors),
                "exactly_one": len(ones),
                "half_ulp": half,
                "half_ulp_passed": passed,
                "typical_travel": typical,
            },
            prescriptions=() if severity == "note" else _cures(formats),
        )

    @classmethod
    def _all_still(cls, still: Sequence[Tensor]) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="note",
            subjects=subjects(still),
            message=(
                f"All {count(len(still), 'weight')} that both files have are identical to the last bit: they "
                "are one checkpoint, or nothing was trained between them."
            ),
            measured={"weights": len(still), "elements": elements(still)},
        )

    @classmethod
    def _at_their_start(cls, contents: Contents) -> list[Finding]:
        """Return what one file alone tells: weights of norms that are still 1.0."""
        found = [t for t in trainable(contents) if is_all_ones(t) and numel(t) > 1 and not t.has_master]
        others = [t for t in trainable(contents) if t.last is not None and t.last.constant is None]
        if not others:
            return []
        findings = []
        held = [t for t in found if is_low(t.last) and t.stepped and t.driven]
        rest = [t for t in found if t not in held]
        if held:
            findings.append(cls._ones(held, "warning", "although the optimizer has a gradient for them"))
        if rest:
            findings.append(cls._ones(rest, "note", "as norms begin: not trained, or held there by rounding"))
        return findings

    @classmethod
    def _ones(cls, tensors: Sequence[Tensor], severity: Severity, why: str) -> Finding:
        formats = sorted({t.last.format for t in tensors if t.last is not None})
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=subjects(tensors),
            message=(
                f"{count(len(tensors), 'weight')} ({count(elements(tensors), 'element')}, "
                f"{several(formats)}) are exactly 1.0 in every element, {why}."
            ),
            measured={"weights": len(tensors), "elements": elements(tensors), "exactly_one": len(tensors)},
            prescriptions=() if severity == "note" else _cures(formats),
        )


def _is_beside_frozen(tensor: Tensor, moved: Sequence[Tensor], frozen: Sequence[Tensor]) -> bool:
    """Tell whether all others in the smallest module around a weight stand still, and not by rounding."""
    parts = tensor.name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length]) + "."
        if any(t.name.startswith(module) for t in moved):
            return False
        if any(t.name.startswith(module) for t in frozen):
            return True
    return False


def _in_one_format(tensor: Tensor) -> bool:
    return (
        tensor.first is not None and tensor.second is not None and tensor.first.format == tensor.second.format
    )


def _severity(tensor: Tensor, passed: float | None) -> Severity:
    prognosis = in_store(tensor)
    if tensor.stepped and tensor.driven and prognosis is not None and is_low(tensor.last):
        if prognosis.intended and prognosis.lost_share >= FROZEN_LOST_SHARE:
            return "note" if tensor.extra_state else "error"
        return "warning" if _is_held(tensor, passed) else "note"
    return "warning" if _is_held(tensor, passed) else "note"


def _is_held(tensor: Tensor, passed: float | None) -> bool:
    """Tell whether rounding explains that a weight did not move."""
    if passed is None or tensor.travel is None or not is_low(tensor.first) or not is_low(tensor.second):
        return False
    return tensor.travel.half_ulp_low > passed


def _passed(moved: Sequence[Tensor]) -> float | None:
    """Return the largest half-ulp over which elements moved; None where too few did to tell."""
    low = [t.travel for t in moved if t.travel is not None and t.travel.sampled and is_low(t.second)]
    enough = sum(travel.sampled for travel in low) >= MIN_MOVED
    return max((travel.half_ulp_passed for travel in low), default=0.0) if enough else None


def _typical(moved: Sequence[Tensor]) -> float:
    sizes = sorted(t.travel.typical for t in moved if t.travel is not None and t.travel.sampled)
    return sizes[len(sizes) // 2] if sizes else 0.0


def _cures(formats: Sequence[str]) -> tuple[Prescription, ...]:
    name = several(formats)
    return ranked(
        [
            ("autocast", f"train float32 weights under autocast instead of {name} weights"),
            ("master-weights", f"let the optimizer step float32 copies, and keep the model in {name}"),
            ("stochastic-rounding", "round updates up or down by chance, so that their mean arrives"),
            ("kahan", "keep what rounding loses in a second buffer until it suffices"),
        ]
    )
