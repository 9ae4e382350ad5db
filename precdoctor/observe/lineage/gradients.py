"""What a backward pass makes of a gradient, followed through the program's own functions.

As `Lineage` follows parameters. A gradient is known where the autograd engine hands it to a function of
Python: the ``backward`` of a custom function, or a hook. What brings it together with as many other values,
such as the mask of an activation, makes another gradient of it.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import FrameType

import torch
from torch import Tensor

from precdoctor.observe.frames import INTERCEPTS, Spot, UserCode
from precdoctor.observe.lineage.lineage import Lineage, Use
from precdoctor.observe.lineage.made import Made, Memory, Root, storage_key
from precdoctor.observe.probe.operations import Operation, tensors_in
from precdoctor.observe.watch import is_plain

#: the frame within which the autograd engine works
_ENGINE = torch.autograd.graph._engine_run_backward.__code__
#: of smaller tensors nothing can be said
_FEWEST = 64


class GradientLineage(Lineage):
    """Follows gradients. ``on_gradient(root, tensor)`` is told of each as long as its values are there."""

    def __init__(
        self,
        code: UserCode,
        *,
        on_gradient: Callable[[Root, Tensor], None] = lambda *_: None,
        on_use: Callable[[Use], None] = lambda _: None,
    ) -> None:
        super().__init__(code, on_use=on_use, on_rounding=lambda *_: None, on_rewrite=lambda *_: None)
        self._on_gradient = on_gradient
        #: values that come of nothing: not of gradients, nor of what a forward pass saved
        self._constants: dict[int, Memory] = {}
        #: gradients that were written over: their values are no longer what was noted
        self._spoiled: dict[int, Memory] = {}
        #: a function of Python runs inside the backward pass
        self._in_function = False

    def after(self, operation: Operation) -> None:
        """Follow an operation of a backward pass."""
        if not operation.backward:
            return
        self._enter_arguments(operation.frame)
        if self._roots:
            if not operation.inputs:
                self._constants.update({storage_key(t): Memory(t) for t in operation.outputs if is_plain(t)})
            written = self._written_over(operation)
            self._follow(operation)
            if written is not None and self._roots.get(written.memory.key) is written:
                del self._roots[written.memory.key]
                self._spoiled[written.memory.key] = written.memory

    def step_begins(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Forget the gradients of this step."""
        for table in (self._roots, self._made, self._constants, self._spoiled):
            table.clear()
        super().step_begins(optimizer, step)

    def is_gradient(self, tensor: Tensor, frame: FrameType) -> bool:
        """Tell whether a tensor that a call is about to get was made from a gradient, or is one."""
        self._enter_arguments(frame)
        return self.made(tensor) is not None

    # ------------------------------------------------------------------ what is followed

    def _enter_arguments(self, frame: FrameType | None) -> None:
        """Follow what the engine has handed to the function of Python that runs, if one does."""
        function = function_of_engine(frame)
        self._in_function = function is not None
        for tensor in _arguments(function) if function is not None else ():
            if is_plain(tensor) and self.made(tensor) is None and not self._is_spoiled(tensor):
                self._enter(tensor)

    def _enter(self, tensor: Tensor) -> None:
        if not is_plain(tensor) or not tensor.is_floating_point() or tensor.numel() < _FEWEST:
            return
        root = Root(Memory(tensor), weakref.ref(tensor), tuple(tensor.shape), tensor.numel(), tensor.dtype)
        self._made.pop(root.memory.key, None)
        self._roots[root.memory.key] = root
        self._on_gradient(root, tensor)

    def _of(self, tensor: Tensor) -> Made | Root | None:
        key = storage_key(tensor)
        root = self._roots.get(key)
        if root is not None and root.memory.gone:
            del self._roots[key]
            root = None
        made = self._made.get(key)
        return root if root is not None else made if made is not None and not made.memory.gone else None

    def _meets_data(
        self, operation: Operation, inputs: list[Tensor], known: list[Made | Root | None], _: list[bool]
    ) -> bool:
        out = max((t.numel() for t in operation.outputs), default=0)
        return out > 1 and any(
            what is None and tensor.numel() >= out and not self._is_constant(tensor)
            for tensor, what in zip(inputs, known, strict=True)
        )

    def _written_over(self, operation: Operation) -> Root | None:
        """Return the gradient that an operation writes into."""
        schema = getattr(operation.func, "_schema", None)
        target = operation.args[0] if schema is not None and schema.is_mutable and operation.args else None
        return (
            self._roots.get(storage_key(target)) if isinstance(target, Tensor) and is_plain(target) else None
        )

    def _is_spoiled(self, tensor: Tensor) -> bool:
        memory = self._spoiled.get(storage_key(tensor))
        return memory is not None and not memory.gone

    def _is_constant(self, tensor: Tensor) -> bool:
        return any(storage_key(tensor) in table for table in (self._constants, self._noise))

    def _mark_data(self, operation: Operation, _: list[Tensor]) -> None:
        """Follow what a gradient has become, inside a function of Python."""
        for tensor in operation.outputs if self._in_function else ():
            self._enter(tensor)

    def _method(self, frame: FrameType | None) -> Spot | None:
        """Return the outermost of the user's lines inside the engine: in ``backward`` itself, or the hook."""
        found = None
        while frame is not None and frame.f_code is not _ENGINE:
            code = frame.f_code
            if self._code.is_user(code.co_filename):
                found = Spot(code.co_filename, frame.f_lineno, code.co_name)
            frame = frame.f_back
        return found


def function_of_engine(frame: FrameType | None) -> FrameType | None:
    """Return the frame of the function that the innermost engine has called; None: the engine itself."""
    inner = None
    while frame is not None and frame.f_code is not _ENGINE:
        inner, frame = frame, frame.f_back
    if frame is None or inner is None or inner.f_code.co_name in INTERCEPTS:
        return None  # the engine's own operation, under a mode of torch
    return inner


def _arguments(frame: FrameType) -> list[Tensor]:
    """Return the tensors among the arguments of a running function."""
    names, varargs, _, values = inspect.getargvalues(frame)
    return list(tensors_in([values.get(name) for name in (*names, *([varargs] if varargs else ()))]))
