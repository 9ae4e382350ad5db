"""The mode under which torch gives float32 wherever 16 bits are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef as _StorageWeakRef
from torch.overrides import TorchFunctionMode

#: untyped in torch
StorageWeakRef: Any = _StorageWeakRef
LOW = (torch.bfloat16, torch.float16)
#: reinterpret bits: what they return is what was asked for
_REINTERPRETING = frozenset((Tensor.view,))
_CASTS = frozenset((Tensor.to, Tensor.type, Tensor.type_as, Tensor.cuda, Tensor.cpu))
_SHORT_CASTS = {Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16}
#: make tensors of random numbers, with a ``dtype``
_DRAWING = frozenset((torch.rand, torch.randn, torch.normal))
_DRAWING_LIKE = frozenset((torch.rand_like, torch.randn_like))
_LIKE = frozenset((torch.empty_like, torch.zeros_like, torch.ones_like))
_FILLING = frozenset(
    (
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.exponential_,
        Tensor.cauchy_,
        Tensor.log_normal_,
        Tensor.geometric_,
        torch.nn.init.uniform_,
        torch.nn.init.normal_,
        torch.nn.init.kaiming_uniform_,
    )
)
#: make tensors of the default dtype where they are told none
_FACTORIES = frozenset((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn))
#: marks kept before those of dead tensors are dropped
_MOST_MARKS = 4096


class Float32Mode(TorchFunctionMode):
    """Replaces 16-bit formats by float32 in what torch functions are asked for.

    Random numbers depend on the format they are drawn in (from 16 elements on, a normal float32 tensor
    takes others from the generator than a bfloat16 one). So a tensor that was meant to be low is marked,
    by its storage, and filled with numbers drawn in the format that was meant.
    """

    def __init__(self) -> None:
        super().__init__()
        self._active = True
        #: the default dtype that the program believes in, where that is a low one
        self._default: torch.dtype | None = None
        self._meant: dict[int, tuple[Any, torch.dtype]] = {}

    def leave(self) -> None:
        """End it; under a mode that the program has left open it stays, idle."""
        self._active = False
        if torch.overrides._get_current_function_mode() is self:  # type: ignore[no-untyped-call]
            self.__exit__(None, None, None)

    def around_set_default_dtype(self, original: Any) -> Any:
        """Keep the default dtype from falling below float32."""

        def wrapper(dtype: torch.dtype) -> None:
            self._default = dtype if dtype in LOW else None
            original(torch.float32 if dtype in LOW else dtype)

        return wrapper

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._active or func in _REINTERPRETING:
            return func(*args, **kwargs)
        if func in _SHORT_CASTS:
            return self._marked(args[0].float(), _SHORT_CASTS[func])
        if func in _FILLING:
            if args:
                return self._filled(func, args[0], args[1:], kwargs)
            rest = dict(kwargs)  # torch.nn.init passes everything by name
            return self._filled(func, rest.pop("tensor"), (), rest)
        if func in _DRAWING_LIKE and args and kwargs.get("dtype") is None:
            kwargs = {**kwargs, "dtype": self._meant_by(args[0])}
        low = self._asked_for(func, args, kwargs)
        if low is not None:
            if func in _DRAWING or func in _DRAWING_LIKE:
                return self._marked(func(*args, **{**kwargs, "dtype": low}).float(), low)
            args = tuple(torch.float32 if _is_low(a) else a for a in args)
            kwargs = {k: torch.float32 if _is_low(v) else v for k, v in kwargs.items()}
        result = func(*args, **kwargs)
        if low is None and func in _LIKE and args:
            low = self._meant_by(args[0])
        if func in _CASTS and isinstance(result, Tensor) and result.dtype in LOW:
            low, result = result.dtype, result.float()
        return result if low is None else self._marked(result, low)

    def _asked_for(self, func: Any, args: Any, kwargs: Any) -> torch.dtype | None:
        for value in (*args, *kwargs.values()):
            if _is_low(value):
                return value  # type: ignore[no-any-return]
        if self._default is not None and func in _FACTORIES and kwargs.get("dtype") is None:
            return self._default
        return None

    def _filled(self, func: Any, tensor: Any, args: Any, kwargs: Any) -> Any:
        meant = self._meant_by(tensor)
        if meant is None:
            return func(tensor, *args, **kwargs)
        with torch.no_grad():
            drawn = tensor.detach().to(meant)
            func(drawn, *args, **kwargs)
            tensor.copy_(drawn)
        return tensor

    def _marked(self, result: Any, low: torch.dtype) -> Any:
        if isinstance(result, Tensor) and result.dtype == torch.float32 and result.layout == torch.strided:
            if len(self._meant) >= _MOST_MARKS:
                self._meant = {k: v for k, v in self._meant.items() if not v[0].expired()}
            reference = StorageWeakRef(result.untyped_storage())
            self._meant[reference.cdata] = reference, low
        return result

    def _meant_by(self, tensor: Any) -> torch.dtype | None:
        if not self._meant or not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
            return None
        try:
            known = self._meant.get(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # a tensor without storage
            return None
        return None if known is None or known[0].expired() else known[1]


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in LOW
