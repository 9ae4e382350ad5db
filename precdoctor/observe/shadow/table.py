"""Float64 values beside tensors: what they would be had every operation since been exact.

One flat float64 tensor lies beside each storage, so that views need nothing; it is held as long as that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from precdoctor.observe.frames import Spot
from precdoctor.observe.lineage.made import Memory, storage_key

if TYPE_CHECKING:
    from precdoctor.observe.shadow.sites import Site

#: elements of a storage up to which it is shadowed, and of all shadows together (256 MB of float64)
LARGEST = 1 << 20
MOST = 1 << 25
#: shadows from which those of memory that is gone are looked for
_SWEEP = 256


class TooLarge(Exception):
    """A tensor has more elements than are shadowed."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an error was brought in."""

    spot: Spot | None
    #: the operation, such as "log_softmax"
    operation: str
    #: format of its result
    format: torch.dtype
    #: what was rounded are probabilities or their logarithms
    probabilities: bool = False


@dataclass(slots=True, eq=False)
class Shadow:
    """The exact values beside one storage."""

    memory: Memory
    #: flat, float64, one for each element of the storage
    values: Tensor
    dtype: torch.dtype
    #: norm of the error over the norm of the exact values, when it was last written
    error: float = 0.0
    origin: Origin | None = None
    #: the user's lines that made the constants it began with: ``torch.zeros(...)``
    births: tuple[Spot, ...] = ()
    #: an illness whose effect it carries
    damage: Site | None = None
    #: the user's line, and the operation, that made it, if it is a single number
    made: tuple[Spot | None, str] | None = None
    #: the damage has gone through a logarithm or a reciprocal
    magnified: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """Return the exact values of a tensor in this storage."""
        return self.values.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


@dataclass(slots=True)
class ShadowTable:
    """The shadows, by the identity of the storage."""

    _shadows: dict[int, Shadow] = field(default_factory=dict)
    _elements: int = 0
    _next_sweep: int = _SWEEP

    def __bool__(self) -> bool:
        return bool(self._shadows)

    def get(self, tensor: Tensor) -> Shadow | None:
        """Return the shadow of a tensor's storage, None where the tensor is exact."""
        if not self._shadows:
            return None
        key = storage_key(tensor)
        shadow = self._shadows.get(key)
        if shadow is None:
            return None
        if shadow.dtype != tensor.dtype or shadow.values.numel() != storage_numel(tensor):
            self.drop(key)  # bits that are read as another format, or memory that was resized
            return None
        return shadow

    def has_any(self, tensors: Iterable[Tensor]) -> bool:
        """Tell whether any of some tensors has a shadow."""
        return bool(self._shadows) and any(self.get(t) is not None for t in tensors)

    def value(self, tensor: Tensor) -> Tensor:
        """Return the exact value of a tensor, float64 where it is a float; raises `TooLarge`."""
        shadow = self.get(tensor)
        return shadow.view(tensor) if shadow is not None else actual(tensor)

    def put(self, tensor: Tensor, exact: Tensor) -> Shadow:
        """Keep the exact values of a tensor in new memory; ``exact`` is ours and may be kept as it is."""
        numel = storage_numel(tensor)
        if numel > LARGEST:
            raise TooLarge
        if tensor.numel() == numel and tensor.is_contiguous():
            flat = exact.expand(tensor.size()).contiguous().view(-1)
        else:
            flat = whole(tensor)
            flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).copy_(exact)
        return self.keep(tensor, flat)

    def keep(self, tensor: Tensor, flat: Tensor) -> Shadow:
        """Keep flat exact values of a whole storage."""
        self.drop(storage_key(tensor))
        shadow = Shadow(Memory(tensor), flat, tensor.dtype)
        if len(self._shadows) >= self._next_sweep or self._elements + flat.numel() > MOST:
            self._sweep()
        if self._elements + flat.numel() > MOST:
            raise TooLarge
        self._shadows[shadow.memory.key] = shadow
        self._elements += flat.numel()
        return shadow

    def drop(self, key: int) -> None:
        """Let a storage count as exact from now on."""
        shadow = self._shadows.pop(key, None)
        if shadow is not None:
            self._elements -= shadow.values.numel()

    def clear(self) -> None:
        """Let everything count as exact from now on."""
        self._shadows.clear()
        self._elements = 0

    def _sweep(self) -> None:
        for key in [key for key, shadow in self._shadows.items() if shadow.memory.gone]:
            self.drop(key)
        self._next_sweep = max(_SWEEP, 2 * len(self._shadows))


def storage_numel(tensor: Tensor) -> int:
    """Return how many elements of the tensor's format its storage holds."""
    return int(tensor.untyped_storage().nbytes()) // tensor.element_size()


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor's storage as flat float64 values, as they are; raises `TooLarge`."""
    numel = storage_numel(tensor)
    if numel > LARGEST:
        raise TooLarge
    return tensor.detach().as_strided((numel,), (1,), 0).double().clone()


def actual(tensor: Tensor, most: int = LARGEST) -> Tensor:
    """Return a float tensor as float64, others as they are; raises `TooLarge` above ``most`` elements."""
    if not tensor.is_floating_point():
        return tensor
    if tensor.numel() > most:
        raise TooLarge
    return tensor.detach().double()


def replay(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Callable[[Tensor], Tensor]
) -> Any:
    """Run an operation in float64 on other values of its tensors; raises what torch or ``value`` raises."""
    name = func._schema.name
    args = tuple(_replaced(a, value) for a in args)
    kwargs = {key: _replaced(item, value) for key, item in kwargs.items()}
    if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
        kwargs["dtype"] = torch.float64
    if name in ("aten::_softmax", "aten::_log_softmax"):
        args = (*args[:2], False)  # not from half to float
    return func(*args, **kwargs)


def _replaced(item: Any, value: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(item, Tensor):
        return value(item)
    if isinstance(item, (list, tuple)):
        return type(item)(_replaced(i, value) for i in item)
    return item
