"""Smaller initial values, where a parameter is made from a constant."""

from __future__ import annotations

from precdoctor.fix.edits.syntax import dotted, times
from precdoctor.fix.edits.treatment import Treatment, distinct
from precdoctor.fix.sources import NoSafeEdit, Sources

_CONSTANT = {f"torch.{name}" for name in ("ones", "full", "ones_like", "full_like")}


def scale_initial(sources: Sources, treatment: Treatment) -> None:
    """Multiply the constant that the ill parameters are made from."""
    factor = treatment.settings.get("factor")
    if not isinstance(factor, (int, float)):
        raise NoSafeEdit("reinit: no factor is known that would do")
    for parameter, place in distinct((p, p.created) for p in treatment.parameters):
        if place is None:
            raise NoSafeEdit(f"multiply the initial values of {parameter.name} by {factor:.3g} by hand")
        others = [
            p.name
            for p in treatment.evidence.parameters
            if p.created == place and p.name not in treatment.names
        ]
        file = sources.at(place)
        calls = [call for call in file.calls_at(place.line) if dotted(call.func) in _CONSTANT]
        if len(calls) != 1 or others:
            shared = f", which {others[0]} shares" if others else ""
            raise NoSafeEdit(
                f"multiply the initial values of {parameter.name} by {factor:.3g} by hand: made at "
                f"{place.file}:{place.line}{shared}: {place.code}"
            )
        file.change(calls[0], lambda updated: times(updated, float(factor)))
