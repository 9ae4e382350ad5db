"""The checklist for checkpoints: five signs, each ok, ill, or unknown with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from precdoctor.evidence import Contents
from precdoctor.rules.checkpoints import elements, in_store, trainable
from precdoctor.rules.finding import Finding, VitalSign
from precdoctor.rules.wording import count, percent, several


def checkpoint_signs(contents: Contents, findings: Sequence[Finding]) -> tuple[VitalSign, ...]:
    """Return the five signs in their fixed order; errors and warnings among ``findings`` make them ill."""
    grave = {f.rule: f for f in findings if f.severity != "note"}
    return (
        _finite(contents, grave.get("PD704")),
        _moved(contents, grave.get("PD701")),
        _formats(contents, grave.get("PD702")),
        _ties(contents, grave.get("PD605")),
        _next(contents, grave.get("PD703")),
    )


def summary(contents: Contents) -> tuple[Literal["healthy", "unknown"], str]:
    """Return the verdict and its sentence where no finding is grave."""
    last = contents.files[-1]
    told = [p for t in contents.tensors if (p := in_store(t)) is not None]
    if len(contents.files) == 2:
        moved = [t for t in trainable(contents) if t.identical is False]
        if moved:
            return "healthy", f"No precision illness between the two checkpoints: {_amount(contents)}."
        return "unknown", "No weight that both checkpoints have has moved."
    if told:
        return "healthy", f"No precision illness in {last.path}: {_amount(contents)} and its next update."
    return "unknown", (
        f"No precision illness in the values of {last.path}; whether its weights still move "
        "can't be told without the optimizer's state or a second checkpoint."
    )


def _amount(contents: Contents) -> str:
    return f"{count(len(contents.tensors), 'tensor')}, {count(elements(contents.tensors), 'element')}"


def _finite(contents: Contents, ill: Finding | None) -> VitalSign:
    masks = [t.name for t in contents.tensors if t.last is not None and t.last.infinite]
    text = f"no NaN, no infinity in {count(len(contents.tensors), 'tensor')}"
    if masks:
        text = f"infinities only in {several(masks)}"
    return _sign("values are finite", ill, text)


def _moved(contents: Contents, ill: Finding | None) -> VitalSign:
    name = "weights move"
    if len(contents.files) == 1:
        return _sign(name, ill, "", why="one checkpoint does not tell; give a second one of the same run")
    both = [t for t in trainable(contents) if t.identical is not None]
    moved = [t for t in both if not t.identical]
    if not both:
        return _sign(name, ill, "", why="the two checkpoints have no weight in common")
    if not moved:
        return _sign(name, ill, "", why="all are identical to the last bit")
    return _sign(name, ill, f"{len(moved):,} of {count(len(both), 'weight')} moved")


def _formats(contents: Contents, ill: Finding | None) -> VitalSign:
    formats = dict.fromkeys(t.last.format for t in trainable(contents) if t.last is not None)
    text = f"{several(tuple(formats))}, and all their digits are used" if formats else "no weights"
    fits = [t.name for t in trainable(contents) if t.last is not None and t.last.fits]
    if fits:
        text = f"{several(tuple(formats))}; {count(len(fits), 'weight')} with the digits of a narrower one"
    return _sign("formats keep what was trained", ill, text)


def _ties(contents: Contents, ill: Finding | None) -> VitalSign:
    stored = [s for s in contents.shared if s.by == "storage"]
    text = f"{several([' = '.join(s.names) for s in stored])}" if stored else "no two names share a tensor"
    return _sign("ties hold", ill, text)


def _next(contents: Contents, ill: Finding | None) -> VitalSign:
    name = "the next update survives the weight's format"
    told = [p for t in contents.tensors if (p := in_store(t)) is not None and p.intended]
    if not told:
        had = contents.files[-1].optimizers
        why = f"the state of {several(had)} does not tell it" if had else "no optimizer state in the file"
        return _sign(name, ill, "", why=why)
    intended = sum(p.intended for p in told)
    lost = sum(p.lost_share * p.intended for p in told) / intended
    formats = several(tuple(dict.fromkeys(p.format for p in told)))
    return _sign(name, ill, f"{percent(lost)} of it would be lost in {formats}")


def _sign(name: str, ill: Finding | None, text: str, why: str = "") -> VitalSign:
    if ill is not None:
        names = several([s.name for s in ill.subjects])
        return VitalSign(name=name, status="ill", text=f"{ill.rule} {ill.name}: {names}")
    return VitalSign(name=name, status="unknown" if why else "ok", text=why or text)
