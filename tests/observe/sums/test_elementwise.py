"""Elementwise operations done again in float64 agree with torch, in every form in which they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from precdoctor.observe.sums import elementwise
from precdoctor.observe.sums.elementwise import KINDS, Sampler

A, B, C = (torch.rand(6, 4, generator=torch.Generator().manual_seed(i)) + 0.5 for i in range(3))
OUT_OF_PLACE: dict[str, Any] = {
    "add": lambda a: a + B,
    "alpha": lambda a: torch.add(a, B, alpha=0.3),
    "number": lambda a: a + 2,
    "reversed": lambda a: 1 - a,
    "sub": lambda a: torch.sub(a, B, alpha=2),
    "mul": lambda a: 0.9 * a,
    "row": lambda a: a * B[0],
    "div": lambda a: a / B,
    "neg": lambda a: -a,
    "lerp": lambda a: torch.lerp(a, B, 0.1),
    "lerp tensor": lambda a: torch.lerp(a, B, C),
    "addcmul": lambda a: torch.addcmul(a, B, C, value=0.5),
    "addcdiv": lambda a: torch.addcdiv(a, B, C, value=-0.5),
    "clone": lambda a: a.clone(),
    "transposed": lambda a: a.t().contiguous().t() + B,
}
IN_PLACE: dict[str, Any] = {
    "add_": lambda a: a.add_(B, alpha=0.3),
    "sub_": lambda a: a.sub_(0.5),
    "mul_": lambda a: a.mul_(0.9),
    "div_": lambda a: a.div_(B),
    "lerp_": lambda a: a.lerp_(B, 0.1),
    "addcmul_": lambda a: a.addcmul_(B, C, value=0.5),
    "addcdiv_": lambda a: a.addcdiv_(B, C, value=0.5),
    "copy_": lambda a: a.copy_(B),
    "foreach add": lambda a: torch._foreach_add_([a], [B], alpha=0.3),
    "foreach numbers": lambda a: torch._foreach_mul_([a], [0.9]),
    "foreach lerp": lambda a: torch._foreach_lerp_([a], [B], 0.1),
    "foreach addcdiv": lambda a: torch._foreach_addcdiv_([a], [B], [C], [0.5]),
}


class Again(TorchDispatchMode):
    """Does every operation again, from what its operands were."""

    def __init__(self) -> None:
        super().__init__()
        self.sampler, self.exact = Sampler(), list[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, kwargs = KINDS.get(func._schema.name), kwargs or {}
        made = []
        if kind is not None and kind.in_place:
            made = [self._exact(c) for c in elementwise.calls(kind, args, kwargs, None)]
        out = func(*args, **kwargs)
        if kind is not None and not kind.in_place:
            made = [self._exact(c) for c in elementwise.calls(kind, args, kwargs, out)]
        self.exact += made
        return out

    def _exact(self, call: elementwise.Call) -> Any:
        shape = call.out.shape
        samples = [self.sampler(v, shape) for v in call.operands]
        factor = self.sampler(call.factor, shape) if isinstance(call.factor, Tensor) else call.factor
        return elementwise.exact(call.op, samples, factor)


@pytest.mark.parametrize("name", [*OUT_OF_PLACE, *IN_PLACE])
def test_an_operation_done_again_agrees_with_torch(name: str) -> None:
    value = A.clone()
    with Again() as again:
        result = {**OUT_OF_PLACE, **IN_PLACE}[name](value)
    out = value if name in IN_PLACE else result
    assert torch.allclose(again.exact[-1], out.reshape(-1).double(), atol=1e-6)


@pytest.mark.parametrize(
    ("op", "values", "factor", "expected"),
    [
        ("add", [1.0, 2.0], 0.5, [1.0, 0.5]),
        ("rsub", [1.0, 2.0], 1.0, [-1.0, 1.0]),
        ("mul", [torch.ones(3), 0.9], 1.0, [0.9]),
        ("div", [torch.ones(3), 4.0], 1.0, [0.25]),
        ("lerp", [1.0, 2.0], 0.1, [0.9, 0.1]),
        ("addcmul", [1.0, 2.0, 3.0], 0.1, [1.0]),
    ],
)
def test_slopes_are_those_of_the_operation(
    op: str, values: list[Any], factor: Any, expected: list[float]
) -> None:
    assert elementwise.slopes(op, values, factor)[: len(expected)] == pytest.approx(expected)


def test_a_sample_is_the_same_elements_whatever_the_layout() -> None:
    sampler, x = Sampler(limit=64), torch.rand(40, 50)
    sample = sampler(x, x.shape)
    assert len(sample) == 64
    assert torch.equal(sampler(x.t().contiguous().t(), x.shape), sample)
    assert torch.equal(sampler(x[:, :1], x.shape), sampler(x[:, :1].expand(40, 50).contiguous(), x.shape))
    assert sampler(torch.tensor(2.5), x.shape) == 2.5
    assert sampler(3, x.shape) == 3.0


def test_a_division_that_rounds_is_left_alone() -> None:
    assert not list(elementwise.calls(KINDS["aten::div"], (A, B), {"rounding_mode": "floor"}, A))
