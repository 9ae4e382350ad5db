"""How far the weights travelled: a sample of each parameter before the first and after the last step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from precdoctor.observe.watch import Flat

#: from the name of a parameter to the float32 travel of its sampled elements
Travels = Mapping[str, npt.NDArray[np.float32]]
#: elements of each parameter
SAMPLE = 1024


class Travel:
    """The travel of the parameters of one optimizer; made before its first step."""

    def __init__(self, named: Mapping[str, torch.Tensor]) -> None:
        import torch

        from precdoctor.observe.watch import Flat, Watch, is_plain

        sampled = {n: p for n, p in named.items() if is_plain(p) and p.is_floating_point() and p.numel()}
        self._names = list(sampled)
        # weak: the program may let go of them
        self._parameters = [weakref.ref(p) for p in sampled.values()]
        devices: dict[torch.device, list[int]] = {}
        for index, p in enumerate(sampled.values()):
            devices.setdefault(p.device, []).append(index)
        watches = [Watch.of(p.numel(), SAMPLE) for p in sampled.values()]
        self._flats: list[tuple[list[int], Flat]] = [
            (indices, Flat([watches[i] for i in indices], torch.float32, device))
            for device, indices in devices.items()
        ]
        self._first = self._sample()
        self._last = self._first

    def note(self) -> None:
        """Take the values after a step."""
        self._last = self._sample()

    def found(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the travel of each parameter so far."""
        return {
            self._names[i]: (after - before).cpu().numpy()
            for i, before, after in zip(self._order(), self._first, self._last, strict=True)
        }

    def _order(self) -> list[int]:
        return [i for indices, _ in self._flats for i in indices]

    def _sample(self) -> list[Any]:
        import torch

        values: list[Any] = []
        with torch.no_grad():
            for indices, flat in self._flats:
                live = [self._parameters[i]() for i in indices]
                if any(p is None for p in live):
                    return self._last
                flat.fetch(live)
                values += torch.split(flat.values.clone(), [w.count for w in flat.watches])
        return values


def save(travels: Travels, path: Path) -> None:
    """Write travels to an .npz file."""
    np.savez(
        path,
        names=np.array(list(travels), dtype=np.str_),
        lengths=np.array([len(t) for t in travels.values()], dtype=np.int64),
        values=np.concatenate([*travels.values(), np.zeros(0, np.float32)]),
    )


def load(path: Path) -> Travels:
    """Return saved travels. Raises OSError, KeyError or ValueError for a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            pieces = np.split(saved["values"], np.cumsum(saved["lengths"]))[:-1]
            return dict(zip((str(name) for name in saved["names"]), pieces, strict=True))
    except (EOFError, BadZipFile, TypeError) as error:  # empty, cut off, or a bare array
        raise ValueError(f"{path}: {error}") from None


def compare(
    travels: Travels, float32: Travels, subjects: Collection[str]
) -> tuple[float | None, float | None]:
    """Return the share of float32's travel that was made, and the distance from it relative to its length.

    Over the sampled elements of all subjects (empty: all) together: <t, t32> / <t32, t32> and
    |t - t32| / |t32|. None where float32 went nowhere.
    """
    names = [n for n in float32 if n in travels and (not subjects or n in subjects)]
    names = [n for n in names if travels[n].shape == float32[n].shape]
    pairs = [(travels[n].astype(np.float64), float32[n].astype(np.float64)) for n in names]
    power = sum(float(there @ there) for _, there in pairs)
    if not power > 0 or not math.isfinite(power):
        return None, None
    share = sum(float(own @ there) for own, there in pairs) / power
    off = sum(float(np.square(own - there).sum()) for own, there in pairs)
    if not (math.isfinite(share) and math.isfinite(off)):
        return None, None
    return share, math.sqrt(off / power)
