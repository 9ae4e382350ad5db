"""Step counters that optimizers keep as tensors of a low format, and the line that makes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.doctor import Doctor
from precdoctor.observe.counters import creation_in


class Counting(torch.optim.Optimizer):
    """Counts its steps in the state of each parameter."""

    def __init__(self, params: Any, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(params, {"lr": 0.1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=self.dtype)
                state["step"] += 1
                p.sub_(group["lr"] * p.grad)


class InGroup(torch.optim.SGD):
    """Counts its steps in the group."""

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] = group.get("k", torch.zeros((), dtype=torch.float16)) + 1
        super().step()


def trained(kind: Any, steps: int, **options: Any) -> Any:
    model = nn.Linear(4, 2)
    optimizer = kind(model.parameters(), **options)
    with Doctor() as doctor:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    return doctor.evidence().counters


def test_a_counter_is_read_at_every_step_and_named() -> None:
    (counter,) = trained(Counting, 300)

    assert (counter.key, counter.format, counter.optimizer) == ("step", "bfloat16", 0)
    assert counter.parameters == ("weight", "bias")
    assert (counter.last_step, counter.last_value) == (299, 256)
    assert counter.increment == 1
    assert counter.stands_since == 256
    assert counter.made is not None
    assert counter.made.code == 'state["step"] = torch.zeros((), dtype=self.dtype)'
    assert not counter.default


def test_a_counter_of_a_group_is_read() -> None:
    (counter,) = trained(InGroup, 20, lr=0.1)
    assert (counter.key, counter.format, counter.last_value) == ("k", "float16", 19)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_counters_that_count_are_not_kept(dtype: torch.dtype) -> None:
    assert trained(Counting, 20, dtype=dtype) == ()
    assert trained(torch.optim.AdamW, 20) == ()


class Styles:
    """The ways in which optimizers make their state."""

    def named(self, state: Any) -> None:
        state["a"] = torch.zeros(1, dtype=torch.float32)

    def unnamed(self, state: Any) -> None:
        state["b"] = torch.tensor(0.0)

    def alike(self, state: Any, p: Any) -> None:
        state["c"] = torch.zeros_like(p)

    def together(self, state: Any) -> None:
        state.update(d=torch.zeros(()), e=1)

    def literal(self) -> Any:
        return {"f": torch.zeros(())}

    def default(self, state: Any) -> None:
        state.setdefault("g", torch.zeros(()))


@pytest.mark.parametrize(
    ("key", "function", "named"),
    [
        ("a", "named", True),
        ("b", "unnamed", False),
        ("c", "alike", True),
        ("d", "together", False),
        ("f", "literal", False),
        ("g", "default", False),
    ],
)
def test_the_line_that_makes_state_is_found_in_the_source(key: str, function: str, named: bool) -> None:
    found = creation_in(Styles, key)
    assert found is not None
    spot, names_format = found
    assert (spot.function, names_format) == (function, named)
    assert creation_in(Styles, "z") is None
    assert creation_in(int, "a") is None
