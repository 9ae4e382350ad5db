"""What each format would make of the next update: the prognosis of one parameter."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from precdoctor.checkpoints.bits import layout_of
from precdoctor.checkpoints.checkpoint import Entry
from precdoctor.checkpoints.comparison import histogram
from precdoctor.checkpoints.optimizers import Owned
from precdoctor.checkpoints.replay import PLAIN, kind_of, next_update
from precdoctor.evidence import Prognosis
from precdoctor.formats import Format
from precdoctor.numerics import edq, format_of, headroom_bits, round_to

#: elements that are replayed in all, shared out among the parameters, but this many of each at least
MOST, LEAST = 1 << 22, 1 << 14
#: stretches of a larger parameter that these are taken from
_RUNS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The prognoses of one parameter."""

    prognoses: tuple[Prognosis, ...] = ()
    #: the first moment, or what stands for it, is not zero everywhere
    driven: bool = False
    #: state holds the weight in more digits
    has_master: bool = False
    #: keys of state that the plain optimizer does not have
    extra_state: tuple[str, ...] = ()


def outlook(weight: Entry, owned: Owned, formats: Sequence[Format], limit: int) -> Outlook:
    """Return how the next update of a parameter fares in the stored format and in others.

    Of parameters with more than ``limit`` elements, runs that are spread evenly are replayed. Empty where
    the optimizer is not known or keeps nothing that tells the gradient.
    """
    kind, layout = kind_of(owned), layout_of(weight.dtype)
    if kind is None or layout is None or not weight.numel:
        return Outlook(driven=False)
    runs = _runs(weight.numel, limit)
    values = _decoded(weight, runs)
    state: dict[str, torch.Tensor] = {}
    master: tuple[torch.Tensor, Format] | None = None
    for key, entry in owned.tensors.items():
        if layout_of(entry.dtype) is None:
            if entry.numel == 1:
                state[key] = _scalar(entry)
            continue
        if (entry.numel == 1 and weight.numel != 1) or key in ("step", "mu_product"):
            state[key] = _scalar(entry)
        elif entry.numel == weight.numel:
            state[key] = _decoded(entry, runs)
            if _is_master(state[key], entry, values, weight):
                master = state.pop(key), format_of(entry.dtype)
        else:
            return Outlook()
    stored = layout.format
    if master is not None:
        values, stored = master
    update = next_update(values, owned, state)
    memory = kind.gradient(values, state, {"lr": 0.0})
    wanted = [stored, *(fmt for fmt in formats if fmt != stored)]
    return Outlook(
        prognoses=tuple(_prognosis(values, update, fmt, fmt == stored) for fmt in wanted),
        driven=bool(memory.any()),
        has_master=master is not None,
        extra_state=tuple(key for key in state if key not in PLAIN),
    )


def _prognosis(weight: torch.Tensor, update: torch.Tensor, fmt: Format, stored: bool) -> Prognosis:
    """Return what the format would make of the update of weights that were rounded to it."""
    held = round_to(weight, fmt).double()
    meant = (update != 0) & update.isfinite() & held.isfinite()
    held, meant_by = held[meant], update[meant]
    applied = round_to(held + meant_by, fmt).double() - held
    applied = torch.where(applied.isfinite(), applied, 0.0)
    count = int(meant.sum())
    return Prognosis(
        format=fmt.name,
        watched=len(weight),
        intended=count,
        lost_share=float((applied == 0).double().mean()) if count else 0.0,
        edq=float(edq(applied, meant_by)) if count else None,
        headroom_bits=histogram(headroom_bits(held, meant_by, fmt).double().numpy(), 0.5),
        weight=float(held.abs().median()) if count else 0.0,
        update=float(meant_by.abs().median()) if count else 0.0,
        stored=stored,
    )


def _runs(numel: int, limit: int) -> list[tuple[int, int]]:
    """Return the elements to replay: all, or runs that are spread evenly."""
    if numel <= limit:
        return [(0, numel)]
    length = limit // _RUNS
    starts = np.linspace(0, numel - length, _RUNS).astype(int).tolist()
    return [(start, start + length) for start in starts]


def _decoded(entry: Entry, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
    layout = layout_of(entry.dtype)
    assert layout is not None
    width = layout.unsigned.itemsize
    with closing(entry.source.open()) as opened:
        return torch.cat(
            [layout.decode(opened.read(a * width, b * width).view(layout.unsigned)).clone() for a, b in runs]
        )


def _scalar(entry: Entry) -> torch.Tensor:
    with closing(entry.source.open()) as opened:
        raw = opened.read(0, entry.nbytes).copy()
    return torch.from_numpy(raw).view(entry.dtype).reshape(()).to(torch.float64)


def _is_master(values: torch.Tensor, entry: Entry, weights: torch.Tensor, weight: Entry) -> bool:
    """Tell whether state is the weight itself in more digits."""
    if format_of(entry.dtype).precision <= format_of(weight.dtype).precision:
        return False
    return bool((values.to(weight.dtype).double() == weights).all()) and bool(weights.any())
