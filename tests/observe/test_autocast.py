"""Autocast regions are seen with what was asked for, what torch made of it, and what ran inside."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import Evidence, Product, Region


def run(forward: Callable[[nn.Module, Tensor], Tensor], steps: int = 3) -> Evidence:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(every=1, probe=True) as doctor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            loss = forward(model, torch.randn(4, 4)).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return doctor.evidence()


def only(evidence: Evidence) -> Region:
    (region,) = evidence.regions
    return region


def formats(products: tuple[Product, ...]) -> dict[str, int]:
    return {p.format: p.count for p in products}


def test_counts_what_runs_inside_and_outside() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model[:2](x)
        out: Tensor = model[2](hidden.float())
        return out

    evidence = run(forward)
    region = only(evidence)
    assert (region.device, region.format, region.requested, region.enabled) == ("cpu", "bfloat16", True, True)
    assert (region.entered, region.seen, region.steps_inside) == (3, 3, 0)
    assert formats(region.products) == {"bfloat16": 3}
    assert formats(evidence.products_outside) == {"float32": 3}
    assert evidence.products_outside[0].trained == 3
    assert region.place is not None
    assert region.place == region.entered_at
    assert region.place.code == 'with torch.autocast("cpu", dtype=torch.bfloat16):'


def test_a_decorated_function_is_known_by_the_line_of_its_region() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        out: Tensor = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)(x)
        return out

    found = only(run(forward))
    assert found.entered_at is None
    assert found.place is not None
    assert "(model.forward)(x)" in found.place.code


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch disables no region for CUDA then")
def test_what_was_asked_for_is_kept_where_torch_disables_it() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out: Tensor = model(x)
        return out

    region = only(run(forward))
    assert (region.device, region.requested, region.enabled) == ("cuda", True, False)
    assert formats(region.products) == {"float32": 6}


def test_an_island_does_not_count_for_the_regions_around_it() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model[:2](x)
            with torch.autocast("cpu", enabled=False):
                out: Tensor = model[2](hidden.float())
        return out

    evidence = run(forward)
    outer, island = evidence.regions
    assert formats(outer.products) == {"bfloat16": 3}
    assert (island.requested, formats(island.products)) == (False, {"float32": 3})
    assert evidence.products_outside == ()


def test_steps_inside_a_region_are_counted() -> None:
    with contextlib.ExitStack() as stack:

        def forward(model: Any, x: Tensor) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            out: Tensor = model(x)
            return out

        region = only(run(forward, steps=5))
    assert (region.entered, region.steps_inside) == (1, 5)


def test_a_region_that_was_made_and_let_go_of_is_told() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        torch.autocast("cpu", dtype=torch.bfloat16)
        out: Tensor = model(x)
        return out

    assert only(run(forward)).entered == 0


def test_a_region_that_is_kept_and_not_used_is_not() -> None:
    kept: list[torch.autocast] = []

    def forward(model: Any, x: Tensor) -> Tensor:
        kept.append(torch.autocast("cpu", dtype=torch.bfloat16))
        out: Tensor = model(x)
        return out

    assert run(forward).regions == ()


def test_an_exception_leaves_the_region() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError), torch.autocast("cpu", dtype=torch.bfloat16):
            model(x[:, :2])
        out: Tensor = model(x)
        return out

    evidence = run(forward)
    assert formats(evidence.products_outside) == {"float32": 6}


def in_thread(work: Callable[[], Tensor]) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_layers_that_run_in_another_thread_without_autocast_are_counted() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with bfloat16():
            return in_thread(lambda: model(x))

    region = only(run(forward))
    assert region.layers_elsewhere == 6
    assert region.elsewhere is not None
    assert region.elsewhere.code == "return in_thread(lambda: model(x))"


def test_a_started_thread_that_is_joined_inside_the_region_is_seen() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        out: list[Tensor] = []
        with bfloat16():
            thread = threading.Thread(target=lambda: out.append(model(x)))
            thread.start()
            thread.join()
        return out[0]

    assert only(run(forward)).layers_elsewhere == 6


def island(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        out: Tensor = model(x)
    return out


def cast_in_part(model: Any, x: Tensor) -> Tensor:
    with bfloat16():
        hidden = model[:2](x)
    out: Tensor = model[2](hidden.float())
    return out


def without_gradient(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        model(x)
    return x.mean() * sum(p.sum() for p in model.parameters())


@pytest.mark.parametrize("work", [island, cast_in_part, without_gradient])
def test_threads_that_have_their_own_reasons_are_not_counted(work: Callable[..., Tensor]) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with bfloat16():
            return in_thread(lambda: work(model, x))

    assert all(region.layers_elsewhere == 0 for region in run(forward).regions)


def test_another_model_in_a_thread_is_no_matter_where_the_region_has_layers_of_its_own() -> None:
    other = nn.Linear(4, 2)

    def forward(model: Any, x: Tensor) -> Tensor:
        with bfloat16():
            return model(x) + in_thread(lambda: other(x))

    assert only(run(forward)).layers_elsewhere == 0


def test_scripted_and_compiled_functions_use_autocast_as_before() -> None:
    def product(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return a @ b

    with Doctor(every=1, probe=True):
        compiled = torch.compile(product, backend="eager", fullgraph=True)
        assert compiled(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
