"""What the values of one tensor are like, counted part by part from their bits."""

from __future__ import annotations

import numpy as np

from precdoctor.checkpoints.bits import NARROWER, Bits, Layout, layout_of
from precdoctor.checkpoints.checkpoint import Entry
from precdoctor.evidence import Stored

#: elements from which a tensor tells that it is a narrower format in disguise: each of random float32 has
#: its low 16 bits zero by chance once in 65,536
MIN_DISGUISED = 16
#: elements that are looked at to refute at once what hardly a tensor is
_GLANCE = 64


class Census:
    """Counts the parts of one tensor, in order. Most of what it asks is answered by the first part."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._layout = layout_of(entry.dtype)
        self._nan = self._infinite = self._top = 0
        self._ones: int | None = 0 if len(entry.shape) <= 1 else None
        self._first: int | None = None
        self._other: int | None = None
        self._constant = self._mask = True
        self._rises = self._falls = True
        self._previous: float | None = None
        self._all_bits = 0
        self._candidates = [] if self._layout is None else _candidates(self._layout)

    def see(self, bits: Bits, magnitudes: Bits) -> bool:
        """Count the next part: the bits of some elements, and the same without the sign.

        Tells whether all of them are finite.
        """
        layout = self._layout
        if layout is None or not len(bits):
            return True
        top = int(magnitudes.max())
        finite = top < layout.beyond
        if not finite:
            top = self._not_finite(magnitudes, layout)
        self._top = max(self._top, top)
        if self._ones is not None:
            self._ones += int(np.count_nonzero(bits == layout.one))
        if self._candidates:
            self._disguises(bits, layout)
        if self._mask:
            self._values(bits)
        if self._rises or self._falls:
            self._order(bits, layout)
        return finite

    def _not_finite(self, magnitudes: Bits, layout: Layout) -> int:
        beyond = magnitudes >= layout.beyond
        infinite = 0
        if layout.infinity is not None:
            infinite = int(np.count_nonzero(magnitudes == layout.infinity))
        self._infinite += infinite
        self._nan += int(np.count_nonzero(beyond)) - infinite
        return int(magnitudes[~beyond].max(initial=0))

    def _disguises(self, bits: Bits, layout: Layout) -> None:
        self._all_bits |= int(np.bitwise_or.reduce(bits))
        kept = []
        for low, candidate in self._candidates:
            if self._all_bits & ((1 << low) - 1):
                continue
            there = layout.tensor(bits).to(candidate.dtype).to(layout.dtype)
            if (layout.encode(there) == bits).all():
                kept.append((low, candidate))
        self._candidates = kept

    def _values(self, bits: Bits) -> None:
        if self._first is None:
            self._first = int(bits[0])
        if self._other is None:
            different = bits != self._first
            if not different.any():
                return
            self._constant = False
            self._other = int(bits[different.argmax()])
        for part in (bits[:_GLANCE], bits):
            if not ((part == self._first) | (part == self._other)).all():
                self._mask = False
                return

    def _order(self, bits: Bits, layout: Layout) -> None:
        if len(self._entry.shape) != 1:
            self._rises = self._falls = False
            return
        values = layout.decode(bits[: _GLANCE + 1]).numpy()
        if len(bits) > _GLANCE + 1 and self._follows(values):
            values = layout.decode(bits).numpy()
        if self._follows(values):
            self._previous = float(values[-1])

    def _follows(self, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
        if self._previous is not None:
            values = np.concatenate(([self._previous], values))
        with np.errstate(invalid="ignore"):
            steps = np.diff(values)
        self._rises = self._rises and bool((steps > 0).all())
        self._falls = self._falls and bool((steps < 0).all())
        return self._rises or self._falls

    def result(self) -> Stored:
        """Return what was counted."""
        entry, layout = self._entry, self._layout
        if layout is None or not entry.numel:
            return Stored(format=format_name(entry), shape=entry.shape, nbytes=entry.nbytes)
        return Stored(
            format=layout.format.name,
            shape=entry.shape,
            nbytes=entry.nbytes,
            nan=self._nan,
            infinite=self._infinite,
            largest=_value(self._top, layout),
            constant=self._value_of_all(layout),
            ones=self._ones,
            fits=self._fits(layout),
            monotonic=entry.numel >= 4 and (self._rises or self._falls),
            is_mask=self._mask and not self._constant,
        )

    def _value_of_all(self, layout: Layout) -> float | None:
        if self._first is None or not self._constant or self._nan:
            return None
        return _value(self._first, layout)

    def _fits(self, layout: Layout) -> str:
        """Return the narrowest format left that is used down to its last two bits."""
        if self._entry.numel < MIN_DISGUISED or self._constant or self._nan:
            return ""
        for low, candidate in reversed(self._candidates):
            if low < layout.fraction_bits and self._all_bits >> low & 3:
                return candidate.format.name
        return ""


def format_name(entry: Entry) -> str:
    """Return the name of the format, or of the dtype where it is none."""
    layout = layout_of(entry.dtype)
    return layout.format.name if layout is not None else str(entry.dtype).removeprefix("torch.")


def _candidates(layout: Layout) -> list[tuple[int, Layout]]:
    """Return narrower formats, each with the number of low bits that are zero in all its values."""
    found = []
    for dtype in NARROWER:
        narrower = layout_of(dtype)
        assert narrower is not None
        low = layout.fraction_bits - narrower.fraction_bits
        if low > 0 and narrower.format.bits < layout.format.bits:
            found.append((low, narrower))
    return found


def _value(pattern: int, layout: Layout) -> float:
    return float(layout.decode(np.array([pattern], dtype=layout.unsigned))[0])
