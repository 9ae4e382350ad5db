"""One model in several formats: cast, with weights rounded, and with layers left as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from precdoctor.comparison.formats import Choice
from precdoctor.evaluation import EvaluationError, cast_floating
from precdoctor.evaluation.evaluation import first_line
from precdoctor.formats import BlockFormat
from precdoctor.numerics import fake_quantize

#: look-ups, not products: libraries leave them as they are when they quantize weights
_LOOK_UPS = (nn.Embedding, nn.EmbeddingBag)


def reference_of(model: nn.Module, name: str) -> nn.Module:
    """Return a copy of the model in float32 and for evaluation; the user's own stays as it is."""
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise EvaluationError(
            f"{name}: the model can't be copied ({type(error).__name__}: {first_line(error)}); "
            "build() must return one that copy.deepcopy takes"
        ) from None
    return copied.requires_grad_(False).to(torch.float32).eval()


def cast(reference: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy cast as ``model.to(dtype)`` does it, parameters and buffers."""
    return copy.deepcopy(reference).to(dtype)


def quantizable(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that weights formats quantize, by their first name.

    Those of two dimensions or more, except of embeddings: what is tied to an embedding stays too.
    """
    look_ups = {id(p) for m in model.modules() if isinstance(m, _LOOK_UPS) for p in m.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and parameter.is_floating_point() and id(parameter) not in look_ups
    }


class Scratch:
    """A float32 copy whose weights are exchanged again and again."""

    def __init__(self, reference: nn.Module) -> None:
        self.model = copy.deepcopy(reference)
        self._originals = dict(reference.named_parameters())
        self._buffers = dict(reference.named_buffers())
        self._own = dict(self.model.named_parameters())

    def original(self, name: str) -> Tensor:
        """Return a weight in float32."""
        return self._originals[name]

    @torch.no_grad()
    def restore(self, *names: str) -> None:
        """Put float32 weights back; all, without names."""
        for name in names or self._own:
            self._own[name].copy_(self._originals[name])
        if not names:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])

    @torch.no_grad()
    def quantize(self, fmt: BlockFormat, *names: str) -> None:
        """Round weights to the format; all that are quantizable, without names."""
        for name in names or quantizable(self.model):
            self._own[name].copy_(fake_quantize(self._originals[name], fmt))

    @torch.no_grad()
    def randomize(self, seed: int) -> None:
        """Give each weight's rounding error a random sign: as large as it is, and without system."""
        chance = torch.Generator().manual_seed(seed)
        for name in quantizable(self.model):
            own, original = self._own[name], self._originals[name]
            signs = torch.randint(0, 2, own.shape, generator=chance, dtype=torch.int8).to(own.device)
            own.copy_(original + (own - original) * (2 * signs - 1))

    @torch.no_grad()
    def round_all(self, dtype: torch.dtype) -> None:
        """Round parameters and buffers to what ``model.to(dtype)`` makes of them."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))


class _RoundedBetween(TorchDispatchMode):
    """Rounds the sums and products formed between layers, such as those of a residual stream or a gate."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        #: how many modules without modules inside are running: their arithmetic is left alone
        self.inside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and round what it gives."""
        result = func(*args, **(kwargs or {}))
        if self.inside == 0 and func.overloadpacket in _ROUNDED and result.is_floating_point():
            result.copy_(result.to(self.dtype))
        return result


_ROUNDED = (torch.ops.aten.add, torch.ops.aten.add_, torch.ops.aten.mul, torch.ops.aten.mul_)


@contextmanager
def rounded_outputs(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let every module round its output to the dtype, and what is between modules, and go on in float32."""
    between = _RoundedBetween(dtype)

    def entered(_: nn.Module, __: Any) -> None:
        between.inside += 1

    def left(_: nn.Module, __: Any, ___: Any) -> None:
        between.inside -= 1

    def rounded(_: nn.Module, __: Any, output: Any) -> Any:
        return cast_floating(cast_floating(output, dtype), torch.float32)

    handles = []
    for module in model.modules():
        if not any(module.children()):
            handles.append(module.register_forward_pre_hook(entered))
            handles.append(module.register_forward_hook(left))
        handles.append(module.register_forward_hook(rounded))
    try:
        with between:
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def layers_in_float32(model: nn.Module, names: tuple[str, ...], reference: nn.Module) -> Iterator[None]:
    """Let some modules of a cast model compute in float32, from float32 weights, within the cast model."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    layers = [_Float32Layer(model.get_submodule(n), reference.get_submodule(n), dtype) for n in names]
    try:
        yield
    finally:
        for layer in layers:
            layer.remove()


class _Float32Layer:
    """Exchanges a module's weights while it runs, and only then: another one may use them too (ties)."""

    def __init__(self, module: nn.Module, exact: nn.Module, dtype: torch.dtype) -> None:
        self._module, self._exact, self._dtype = module, exact, dtype
        self._own = dict(module._parameters), dict(module._buffers)
        self._handles = (
            module.register_forward_pre_hook(self._enter, with_kwargs=True),
            module.register_forward_hook(self._leave),
        )

    def remove(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()
        self._put(*self._own)

    def _enter(self, _: nn.Module, args: Any, kwargs: Any) -> Any:
        self._put(self._exact._parameters, self._exact._buffers)
        return cast_floating(args, torch.float32), cast_floating(kwargs, torch.float32)

    def _leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        self._put(*self._own)
        return cast_floating(output, self._dtype)

    def _put(self, parameters: Any, buffers: Any) -> None:
        self._module._parameters.update(parameters)
        self._module._buffers.update(buffers)


def held_bytes(model: nn.Module, choice: Choice) -> int:
    """Return the bytes of weights and buffers in the format; block formats packed, the rest in float32."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    if choice.block is None:
        return sum(t.nbytes for t in tensors.values())
    packed = {id(t) for t in quantizable(model).values()}
    rest = sum(t.nbytes for key, t in tensors.items() if key not in packed)
    return rest + sum(choice.block.held_bytes(tuple(t.shape)) for t in quantizable(model).values())
