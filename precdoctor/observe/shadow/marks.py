"""What the shadow knows of tensors beside values: weights, results of layers and of sums, constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from precdoctor.observe.frames import Spot
from precdoctor.observe.lineage.made import Memory, storage_key
from precdoctor.observe.shadow.look import Look
from precdoctor.observe.shadow.table import ShadowTable

#: lines of constants kept for one tensor
_MOST_BIRTHS = 4


class Marks:
    """Properties of tensors, by their storage."""

    def __init__(self, is_made: Callable[[Tensor], bool], table: ShadowTable) -> None:
        self._is_made, self._table = is_made, table
        #: frozen parameters in another format or place
        self._weights: dict[int, Memory] = {}
        self._layers: dict[int, Memory] = {}
        self._sums: dict[int, Memory] = {}
        #: logarithms of sums
        self._logs: dict[int, Memory] = {}
        #: probabilities or their logarithms, in another format or place too
        self._probabilities: dict[int, Memory] = {}
        #: constants, and exact tensors made from them alone, with the lines that made the constants
        self._born: dict[int, tuple[Memory, tuple[Spot, ...]]] = {}

    def is_weight(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a parameter, or made from parameters alone."""
        known = type(tensor) is nn.Parameter or storage_key(tensor) in self._weights
        return known or self._is_made(tensor)

    def weights(self, tensors: Iterable[Tensor]) -> None:
        """Take note of tensors that hold a weight in another format or place."""
        self._weights.update({storage_key(t): Memory(t) for t in tensors})

    def view_of(self, args: tuple[Any, ...]) -> None:
        """Take note of a parameter that an operation gives a view of: frozen ones are known by their type."""
        if args and type(args[0]) is nn.Parameter and storage_key(args[0]) not in self._weights:
            self._weights[storage_key(args[0])] = Memory(args[0])

    def is_layer(self, look: Look) -> bool:
        """Tell whether an operation brings data and a weight together, or adds a layer's bias."""
        if look.kind.layer:
            return any(self.is_weight(t) for t in look.inputs)
        if look.kind.name != "add" or len(look.inputs) != 2:
            return False
        data, bias = look.inputs
        return storage_key(data) in self._layers and bias.ndim == 1 and self.is_weight(bias)

    def layers(self, tensors: Iterable[Tensor]) -> None:
        """Take note of what layers return."""
        self._layers.update({storage_key(t): Memory(t) for t in tensors})

    def adds_sums(self, look: Look) -> bool:
        """Tell whether an operation adds what are sums themselves."""
        keys = [storage_key(t) for t in look.inputs]
        return look.kind.adds and bool(keys) and all(key in self._sums for key in keys)

    def sums(self, tensors: Iterable[Tensor]) -> None:
        """Take note of what sums return."""
        self._sums.update({storage_key(t): Memory(t) for t in tensors})

    def logs(self, tensors: Iterable[Tensor]) -> None:
        """Take note of what logarithms of sums return."""
        self._logs.update({storage_key(t): Memory(t) for t in tensors})

    def is_log(self, key: int) -> bool:
        """Tell whether a memory holds the logarithm of a sum."""
        known = self._logs.get(key)
        return known is not None and not known.gone

    def probabilities(self, look: Look, outs: Sequence[Tensor]) -> None:
        """Take note of probabilities, where an operation makes or moves them."""
        moved = look.kind.moves and bool(self._probabilities) and any(map(self.is_probability, look.inputs))
        if look.kind.probabilities or moved:
            self._probabilities.update({storage_key(t): Memory(t) for t in outs})

    def is_probability(self, tensor: Tensor) -> bool:
        """Tell whether a tensor holds probabilities or their logarithms."""
        known = self._probabilities.get(storage_key(tensor))
        return known is not None and not known.gone

    def births(self, look: Look, out: Tensor) -> tuple[Spot, ...]:
        """Return the lines of the constants of a result's shape that it was made from."""
        found: dict[Spot, None] = {}
        for tensor in look.inputs if self._born or self._table else ():
            if tensor.shape != out.shape:
                continue
            shadow, born = self._table.get(tensor), self._born.get(storage_key(tensor))
            found.update(dict.fromkeys(shadow.births if shadow is not None else born[1] if born else ()))
        return tuple(found)[:_MOST_BIRTHS]

    def born(self, tensors: Sequence[Tensor], spots: tuple[Spot, ...]) -> None:
        """Take note of constants, made by some lines."""
        self._born.update({storage_key(t): (Memory(t), spots) for t in tensors})

    def sweep(self) -> None:
        """Forget memory that is gone."""
        for memories in (self._weights, self._layers, self._sums, self._logs, self._probabilities):
            for key in [key for key, memory in memories.items() if memory.gone]:
                del memories[key]
        self._born = {key: born for key, born in self._born.items() if not born[0].gone}

    def clear(self) -> None:
        """Forget all but the weights, which live on."""
        self._layers.clear()
        self._sums.clear()
        self._logs.clear()
        self._probabilities.clear()
        self._born.clear()
