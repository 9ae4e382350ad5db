"""Goes through tensors part by part: one alone, or two side by side."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch

from precdoctor.checkpoints.bits import Bits, Layout, layout_of, magnitudes, scratch
from precdoctor.checkpoints.census import Census
from precdoctor.checkpoints.checkpoint import Entry
from precdoctor.checkpoints.comparison import Comparison
from precdoctor.evidence import Stored, Travel

#: bytes that are looked at in one go: few enough for a cache, and enough that each pass is worth its call
PART = 1 << 19


def look_at(entry: Entry) -> Stored:
    """Return what one tensor is like."""
    census, layout = Census(entry), layout_of(entry.dtype)
    if layout is not None:
        work = scratch("magnitudes", (PART // layout.unsigned.itemsize,), layout.unsigned)
        with closing(entry.source.open()) as opened:
            for start in range(0, entry.nbytes, PART):
                bits = opened.read(start, min(start + PART, entry.nbytes)).view(layout.unsigned)
                census.see(bits, magnitudes(bits, layout, work[: len(bits)]))
    return census.result()


@dataclass(frozen=True, slots=True)
class Pair:
    """What two tensors of one name are like, and the way between them."""

    first: Stored
    second: Stored
    travel: Travel | None
    #: None where shapes differ
    identical: bool | None


def compare(first: Entry, second: Entry) -> Pair:
    """Return what two tensors are like, and how one became the other."""
    layouts = layout_of(first.dtype), layout_of(second.dtype)
    if first.shape != second.shape:
        return Pair(look_at(first), look_at(second), None, None)
    if layouts[0] is None or layouts[1] is None:
        if first.dtype != second.dtype:
            return Pair(look_at(first), look_at(second), None, None)
        return Pair(Census(first).result(), Census(second).result(), None, same_bytes(first, second))
    if first.dtype == second.dtype:
        return _one_format(first, second, layouts[0])
    return _two_formats(first, second, layouts[0], layouts[1])


def same_bytes(first: Entry, second: Entry) -> bool:
    """Tell whether two tensors of one dtype and shape have the same bits."""
    with closing(first.source.open()) as one, closing(second.source.open()) as other:
        for start in range(0, first.nbytes, PART):
            stop = min(start + PART, first.nbytes)
            if not np.array_equal(one.read(start, stop), other.read(start, stop)):
                return False
    return True


def _one_format(first: Entry, second: Entry, layout: Layout) -> Pair:
    censuses = Census(first), Census(second)
    comparison = Comparison(layout, first.numel, PART // layout.unsigned.itemsize)
    work = scratch("magnitudes", (2, PART // layout.unsigned.itemsize), layout.unsigned)
    with closing(first.source.open()) as one, closing(second.source.open()) as other:
        for start in range(0, first.nbytes, PART):
            stop = min(start + PART, first.nbytes)
            a = one.read(start, stop).view(layout.unsigned)
            b = other.read(start, stop).view(layout.unsigned)
            without_sign = magnitudes(a, layout, work[0, : len(a)]), magnitudes(b, layout, work[1, : len(b)])
            finite = censuses[0].see(a, without_sign[0])
            finite = censuses[1].see(b, without_sign[1]) and finite
            comparison.see(a, b, without_sign, finite=finite)
    return Pair(censuses[0].result(), censuses[1].result(), comparison.result(), comparison.identical)


def _two_formats(first: Entry, second: Entry, one: Layout, other: Layout) -> Pair:
    """Compare in the coarser format; the finer tensor is rounded to it."""
    coarse = min(one, other, key=lambda layout: (layout.format.precision, layout.format.bits))
    censuses = Census(first), Census(second)
    part = PART // max(one.unsigned.itemsize, other.unsigned.itemsize)
    comparison = Comparison(coarse, first.numel, part)
    changed, noise, power = 0, 0.0, 0.0
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(entry.source.open())) for entry in (first, second)]
        for start in range(0, first.numel, part):
            stop = min(start + part, first.numel)
            parts: list[Bits] = []
            for layout, source, census in zip((one, other), sources, censuses, strict=True):
                width = layout.unsigned.itemsize
                bits = source.read(start * width, stop * width).view(layout.unsigned)
                census.see(bits, magnitudes(bits, layout))
                if layout is not coarse:
                    exact = layout.tensor(bits)
                    rounded = exact.to(coarse.dtype)
                    error = torch.nan_to_num(rounded.double() - exact.double(), posinf=0.0, neginf=0.0)
                    changed += int(error.count_nonzero())
                    noise += float(error.square().sum())
                    power += float(torch.nan_to_num(exact.double(), posinf=0.0, neginf=0.0).square().sum())
                    bits = coarse.encode(rounded)
                parts.append(bits)
            without_sign = magnitudes(parts[0], coarse), magnitudes(parts[1], coarse)
            finite = all(int(each.max()) < coarse.beyond for each in without_sign)
            comparison.see(parts[0], parts[1], without_sign, finite=finite)
    travel = comparison.result(
        rounded=other is coarse and comparison.identical,
        rounding_share=changed / first.numel if first.numel else 0.0,
        rounding_error=(noise / power) ** 0.5 if power else 0.0,
    )
    return Pair(censuses[0].result(), censuses[1].result(), travel, comparison.identical)
