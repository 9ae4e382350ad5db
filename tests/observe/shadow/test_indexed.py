"""Sums by an index, which are rounded with each term, lose their terms where these are many."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from precdoctor.evidence import LossySum
from precdoctor.observe.shadow import watch
from tests.observe.shadow.shadowing import layer, place, seen, shadowed


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let following values take its time: on a busy machine it would give up."""
    monkeypatch.setattr(watch, "_SECONDS", math.inf)


HEAD = layer(4, 1)
NODES = 12


Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def in_chunks(step: Step) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a sum of messages at nodes, 12 at a time: torch may sum in float32 within one operation."""

    def add(messages: Tensor, at: Tensor) -> Tensor:
        out = torch.zeros(NODES, messages.shape[1], dtype=messages.dtype)
        for some, there in zip(messages.split(NODES), at.split(NODES), strict=True):
            out = step(out, there, some)
        return out

    return add


SUMS_BY_INDEX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_add": in_chunks(lambda out, at, m: out.index_add(0, at, m)),
    "index_add_": in_chunks(lambda out, at, m: out.index_add_(0, at, m)),
    "index_put": lambda m, at: torch.zeros(NODES, 4, dtype=m.dtype).index_put((at,), m, accumulate=True),
    "scatter_add": in_chunks(lambda out, at, m: out.scatter_add(0, at[:, None].expand_as(m), m)),
    "scatter_reduce": in_chunks(lambda o, at, m: o.scatter_reduce(0, at[:, None].expand_as(m), m, "sum")),
}


def aggregated(
    add: Callable[[Tensor, Tensor], Tensor],
    terms: int,
    *,
    mean: float = 1.0,
    form: torch.dtype = torch.bfloat16,
    places: int = NODES,
    dump: int = 0,
    act: Callable[[Tensor], Tensor] = torch.log1p,
) -> tuple[LossySum, ...]:
    """Return what is seen of sums of as many terms at each node, ``dump`` more of them at the last one."""
    lift, generator = layer(4, 4), torch.Generator().manual_seed(0)
    at = torch.cat([torch.arange(places * terms) % places, torch.full((dump,), NODES - 1)])

    def forward() -> Tensor:
        messages = (0.3 * lift(torch.randn(len(at), 4, generator=generator)).tanh() + mean).to(form)
        return HEAD(act(add(messages, at).float())).sum()

    return seen(forward).lossy_sums


@pytest.mark.parametrize("style", SUMS_BY_INDEX)
def test_a_sum_by_index_of_many_terms_swamps_them(style: str) -> None:
    (site,) = aggregated(SUMS_BY_INDEX[style], 600)
    assert site.place is not None
    assert site.error > 0.05
    assert (site.graded, site.indexed_passes) == (True, 3)
    (site,) = aggregated(SUMS_BY_INDEX[style], 600, act=lambda total: total / 600)
    assert dict(site.reached)["layer"] == 3


@pytest.mark.parametrize("style", SUMS_BY_INDEX)
@pytest.mark.parametrize(
    ("terms", "changes"),
    [(12, {}), (100, {}), (200, {"form": torch.float32}), (200, {"mean": 0.0})],
    ids=["a dozen", "a hundred", "float32", "around zero"],
)
def test_a_sum_by_index_that_keeps_its_terms_is_sound(
    style: str, terms: int, changes: dict[str, Any]
) -> None:
    assert aggregated(SUMS_BY_INDEX[style], terms, **changes) == ()


def test_what_is_added_to_a_place_of_its_own_may_be_thrown_away() -> None:
    found = aggregated(
        SUMS_BY_INDEX["index_put"],
        12,
        places=NODES - 1,
        dump=5000,
        act=lambda t: t * (torch.arange(12) < 11)[:, None],
    )
    assert [(site.indexed_passes, site.reached) for site in found] == [(0, ())]


def test_derivatives_that_add_by_index_are_no_sums_of_the_program() -> None:
    table, ids = torch.ones(3, 4, requires_grad=True), torch.zeros(3000, dtype=torch.int64)
    with shadowed() as shadow:
        for number in range(3):
            loss = (table.bfloat16()[ids] * 1.1).sum()
            shadow.losses([loss], number, None)
            loss.backward()
    assert shadow.evidence(place).lossy_sums == ()
