"""What schedules that wait for a plateau are given: `ReduceLROnPlateau.step`, wrapped."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from precdoctor.evidence import Metric, Place
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.patches import Patches

#: lines, and values of each, that are kept
_SITES, _VALUES = 64, 512


@dataclass(slots=True)
class _Site:
    spot: Spot | None
    format: str
    values: deque[float] = field(default_factory=lambda: deque(maxlen=_VALUES))
    reductions: int = 0


class MetricWatch:
    """Takes note of the values and of what the schedule does on them; the schedule reads them anyway."""

    def __init__(self, code: UserCode, quietly: Callable[[Callable[[], None]], bool]) -> None:
        self._code, self._quietly = code, quietly
        self._patches = Patches()
        self._sites: dict[tuple[Spot | None, str], _Site] = {}

    def attach(self) -> None:
        """Wrap the method."""
        self._patches.wrap(ReduceLROnPlateau, "step", self._around_step)

    def detach(self) -> None:
        """Put it back."""
        self._patches.undo()

    def _around_step(self, original: Any) -> Any:
        def step(scheduler: Any, metrics: Any, *args: Any, **kwargs: Any) -> Any:
            frame, before = sys._getframe(1), _rates(scheduler)
            result = original(scheduler, metrics, *args, **kwargs)

            def note() -> None:
                site = self._site(self._code.innermost(frame)[0], metrics)
                if site is not None:
                    site.values.append(float(metrics))
                    site.reductions += any(a < b for a, b in zip(_rates(scheduler), before, strict=False))

            self._quietly(note)
            return result

        return step

    def _site(self, spot: Spot | None, metric: Any) -> _Site | None:
        format = str(metric.dtype).removeprefix("torch.") if isinstance(metric, Tensor) else ""
        key = spot, format
        if key not in self._sites and len(self._sites) < _SITES:
            self._sites[key] = _Site(spot, format)
        return self._sites.get(key)

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> tuple[Metric, ...]:
        """Return what was given, by the line that gave it."""
        return tuple(
            Metric(
                format=site.format,
                place=place(site.spot),
                values=tuple(site.values),
                reductions=site.reductions,
            )
            for site in self._sites.values()
        )


def _rates(scheduler: Any) -> list[float]:
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
    return [float(group["lr"]) for group in groups]
