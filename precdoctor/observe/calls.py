"""What shows in calls of torch, wrapped while the Doctor is attached: scalers, autocast, checkpoints,
schedules that wait for a plateau.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn

from precdoctor.evidence import Place
from precdoctor.observe.autocast import RegionWatch
from precdoctor.observe.checkpoints.watch import CheckpointWatch
from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.instruments import Instruments
from precdoctor.observe.metrics import MetricWatch
from precdoctor.observe.models import Models
from precdoctor.observe.probe.operations import Instrument
from precdoctor.observe.scaling.watch import ScalingWatch
from precdoctor.observe.steps.monitor import StepMonitor


class Calls:
    """The watches of calls.

    ``monitor`` returns the step monitor; ``looking`` tells whether operations are looked at now, ``on_event``
    is told what makes them worth looking at. ``looked`` are the instruments that look at them.
    """

    def __init__(
        self,
        code: UserCode,
        monitor: Callable[[], StepMonitor],
        looking: Callable[[], bool],
        looked: Instruments,
        on_event: Callable[[str], None],
    ) -> None:
        def quietly(act: Callable[[], None]) -> bool:
            return monitor().quietly(act)

        self._scaling = ScalingWatch(
            code, quietly, lambda: monitor().busy, on_skip=lambda: on_event("a step that was left out")
        )
        self._regions = RegionWatch(code, quietly, looking)
        self._metrics = MetricWatch(code, quietly)
        self._checkpoints = CheckpointWatch(
            code,
            quietly,
            lambda: monitor().optimizers,
            lambda: monitor().formats,
            looked.cast_of,
            looked.shadow.saved,
            looked.shadow.loaded,
            on_state=lambda: on_event("a checkpoint"),
        )

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """Return those that look at operations as well."""
        return self._scaling, self._regions

    def attach(self) -> None:
        """Wrap the functions."""
        for watch in (self._scaling, self._regions, self._checkpoints, self._metrics):
            watch.attach()

    def detach(self) -> None:
        """Put them back; what was seen stays."""
        for watch in (self._metrics, self._checkpoints, self._regions, self._scaling):
            watch.detach()

    def called(self, module: nn.Module, frame: FrameType) -> None:
        """Take note that a module is called, in whatever thread."""
        self._regions.called(module, frame)

    def stepped(self, steps: int) -> None:
        """Take note that an optimizer has made a step; ``steps`` were made in all."""
        self._regions.stepped(steps)
        self._checkpoints.stepped(steps)

    def look(self, models: Models) -> None:
        """Note the names of what was seen while it lives."""
        self._scaling.look(models)

    def evidence(self, place: Callable[[Spot | None], Place | None]) -> dict[str, Any]:
        """Return what was seen, by the field of `Evidence`."""
        return {
            "scalers": self._scaling.evidence(place),
            "regions": self._regions.evidence(place),
            "products_outside": self._regions.outside(),
            "snapshots": self._checkpoints.evidence(place),
            "metrics": self._metrics.evidence(place),
        }
