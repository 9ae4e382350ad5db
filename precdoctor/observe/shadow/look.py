"""One operation as the shadow looks at it, with what is found out about it only where it is needed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import FrameType
from typing import Any

from torch import Tensor, nn

from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.probe.forwards import innermost_module
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.shadow.kinds import Kind
from precdoctor.observe.watch import is_plain


def floats(values: Sequence[Any]) -> list[Tensor]:
    """Return the plain float tensors among values, and in lists among them."""
    return [t for t in tensors_in(values) if t.is_floating_point() and is_plain(t)]


def written(kind: Kind, args: tuple[Any, ...]) -> list[Tensor]:
    """Return the float tensors that an operation writes into."""
    return floats([args[i] for i in kind.writes if i < len(args)]) if kind.writes else []


class Look:
    """An operation, its float tensors, and who called it."""

    def __init__(
        self,
        code: UserCode,
        operation: Operation,
        kind: Kind,
        inputs: Sequence[Tensor],
        written: Sequence[Tensor],
        number: int,
    ) -> None:
        self._code, self.operation, self.kind = code, operation, kind
        #: the float tensors among the arguments, and those that are written into
        self.inputs, self.written = inputs, written
        #: optimizer steps made before, and the number of the forward pass
        self.step, self.number = operation.step, number
        #: one of torch's derivatives, whose line is that of the forward pass
        self.is_derivative = False
        #: an argument is itself a sum
        self.sums = False

    @functools.cached_property
    def spot(self) -> Spot | None:
        """Return the user's line, with the function around it where it stands in a comprehension."""
        spot = self._code.innermost(self.operation.frame)[0]
        if spot is None or not spot.function.startswith("<"):
            return spot
        frame: FrameType | None = self.operation.frame
        while frame is not None:
            name = frame.f_code.co_name
            if self._code.is_user(frame.f_code.co_filename) and not name.startswith("<"):
                return spot._replace(function=name)
            frame = frame.f_back
        return spot._replace(function="")

    @property
    def is_graded(self) -> bool:
        """Tell whether gradient goes through the operation."""
        return self.operation.graded and any(t.requires_grad for t in self.inputs)

    @property
    def moves(self) -> bool:
        """Tell whether values are brought elsewhere and none is changed."""
        return self.kind.moves and not self.adds_up

    @property
    def adds_up(self) -> bool:
        """Tell whether values are added, many of them to one, by an index."""
        return adds_up(self.kind, self.operation.args, self.operation.kwargs)

    @property
    def terms(self) -> list[Tensor]:
        """Return what is put somewhere by an index."""
        return floats(self.operation.args[1:])

    @functools.cached_property
    def module(self) -> nn.Module | None:
        """Return the innermost module whose forward is running."""
        return innermost_module(self.operation.frame)

    def is_written(self, tensor: Tensor) -> bool:
        """Tell whether the operation wrote into a tensor."""
        return any(tensor is t for t in self.written)

    @property
    def has_tensors(self) -> bool:
        """Tell whether the result is made from tensors, not from numbers alone."""
        return any(True for _ in tensors_in((*self.operation.args, *self.operation.kwargs.values())))

    @property
    def has_infinite_number(self) -> bool:
        """Tell whether inf or NaN is among the plain numbers of the arguments: it is meant."""
        values = (*self.operation.args, *self.operation.kwargs.values())
        return any(isinstance(v, float) and not math.isfinite(v) for v in values)

    @property
    def squares(self) -> bool:
        """Tell whether a tensor is multiplied with itself."""
        if self.kind.name != "mul" or len(self.inputs) != 2:
            return False
        one, other = self.inputs
        return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape)


def adds_up(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether values that are put somewhere by an index are added to what is there."""
    match kind.name:
        case "index_add" | "scatter_add":
            return True
        case "index_put" | "_index_put_impl" | "put":
            return len(args) > 3 and bool(args[3])
        case "scatter" | "scatter_reduce" | "index_reduce":
            return kwargs.get("reduce", args[4] if len(args) > 4 else "") in ("add", "sum", "mean")
        case _:
            return False
