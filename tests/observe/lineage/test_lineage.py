"""Weights are followed to where they are used; what was made of them can be made again."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.observe.frames import UserCode
from precdoctor.observe.lineage.lineage import Lineage, Use
from precdoctor.observe.lineage.made import CannotRemake, Made, Root, remade
from precdoctor.observe.probe.probe import OperationProbe


class Followed:
    """A lineage under a probe, and the uses that it told of."""

    def __init__(self) -> None:
        self.uses: list[tuple[str, Use]] = []
        self.rewrites = 0
        self.lineage = Lineage(
            UserCode(), on_use=self._use, on_rounding=lambda *_: None, on_rewrite=self._rewrite
        )

    def _use(self, use: Use) -> None:
        self.uses.append((use.operation.name, use))

    def _rewrite(self, *_: object) -> None:
        self.rewrites += 1

    @property
    def kinds(self) -> list[str]:
        """Return what was used: "weight" for a parameter itself, else its values."""
        return [use.made.values if use.made is not None else "weight" for _, use in self.uses]


@contextmanager
def followed() -> Iterator[Followed]:
    found = Followed()
    probe = OperationProbe([found.lineage])
    probe.attach()
    try:
        yield found
    finally:
        probe.detach()
        assert not probe.limits


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))


def rounded(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 7
    return (weight / scale).round() * scale


X = torch.randn(4, 8)
USES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda w: F.linear(X, w),
    "matmul": lambda w: X @ w.t(),
    "einsum": lambda w: torch.einsum("bi,oi->bo", X, w),
    "bmm": lambda w: torch.bmm(X.view(1, 4, 8), w.t().reshape(1, 8, 6)),
    "embedding": lambda w: F.embedding(torch.tensor([0, 3]), w),
    "convolution": lambda w: F.conv1d(X.view(1, 4, 8), w.view(6, 4, 2)),
    "layer norm": lambda w: F.layer_norm(torch.randn(2, 6, 8), (6, 8), w),
    "rms norm": lambda w: F.rms_norm(torch.randn(2, 6, 8), (6, 8), w),
    "spread over data": lambda w: torch.randn(5, 6, 8) * w,
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("kind", ["weight", "rounded"])
def test_sees_where_a_weight_meets_data(name: str, kind: str, weight: nn.Parameter) -> None:
    with followed() as found:
        USES[name](weight if kind == "weight" else rounded(weight))
    assert found.kinds == [kind]
    ((_, use),) = found.uses
    assert use.root.alive() is weight


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda w: w * 2 + 1, "continuous"),
        (lambda w: w / w.norm(dim=1, keepdim=True), "continuous"),
        (lambda w: w.to(torch.bfloat16).float(), "continuous"),
        (lambda w: (w * 8).floor() / 8, "rounded"),
        (lambda w: w.sign() * w.abs().mean(), "rounded"),
        (lambda w: w.detach().to(torch.int8).float() * w.abs().max(), "rounded"),
        (lambda w: w.to(torch.float8_e5m2).float(), "rounded"),
        (lambda w: w + (rounded(w) - w).detach(), "rounded"),
        (lambda w: rounded(w).detach() - w.detach() + w, "rounded"),
        (lambda w: w - (w - rounded(w)).detach(), "rounded"),
        (lambda w: rounded(w) + (w - rounded(w)).detach(), "continuous"),  # the weight, by a detour
        (lambda w: w / 3 + (torch.round(w / 3) - w / 3).detach(), "rounded"),  # w / 3, written three times
        (lambda w: torch.cat([rounded(row) for row in w.split(2)]), "rounded"),
        (lambda w: torch.stack([row.round() for row in w]), "rounded"),
        (lambda w: w.abs().amax(1, keepdim=True).expand_as(w), "scale"),
        (lambda w: torch.zeros_like(w), "scale"),
        (lambda w: w * (w.detach().abs() > 0.5), "continuous"),  # a mask
        (lambda w: w * torch.floor(0.5 + torch.rand_like(w)), "continuous"),
        (lambda w: w * w.abs().max().round(), "continuous"),  # a scale that is rounded
    ],
)
def test_tells_what_values_are_used(
    make: Callable[[Tensor], Tensor], values: str, weight: nn.Parameter
) -> None:
    with followed() as found:
        F.linear(X, make(weight))
    assert found.kinds[-1:] == [values]


def test_a_learned_scale_leaves_values_rounded(weight: nn.Parameter) -> None:
    step = nn.Parameter(torch.tensor(0.3))
    with followed() as found:
        scaled = (weight / step).clamp(-7, 7)
        F.linear(X, (scaled + (scaled.round() - scaled).detach()) * step)
    (use,) = (use for _, use in found.uses if use.root.alive() is weight)
    assert use.made is not None
    assert use.made.values == "rounded"
    assert {root.alive() for root in use.made.roots} == {weight, step}


def test_data_that_is_rounded_is_no_weight(weight: nn.Parameter) -> None:
    with followed() as found:
        hidden = F.linear(X, weight)
        F.linear((hidden * 8).round() / 8, torch.randn(3, 6))
        hidden.sub(weight.mean()).round()
    assert found.kinds == ["weight"]


def test_views_and_data_lead_to_the_same_weight(weight: nn.Parameter) -> None:
    with followed() as found:
        F.linear(X, weight.data)
        F.linear(X, weight.detach().view(-1).view(6, 8))
        F.linear(torch.randn(2, 6), weight.t())
    assert found.kinds == ["weight"] * 3
    assert len({use.root for _, use in found.uses}) == 1


def test_a_part_of_a_weight_is_no_use_of_it(weight: nn.Parameter) -> None:
    with followed() as found:
        F.linear(X, weight[:3])
    assert found.uses == []


# ---------------------------------------------------------------------- made again


def in_place(weight: Tensor) -> Tensor:
    found = weight.detach().clone()
    found.div_(0.1).round_().clamp_(-7, 7).mul_(0.1)
    return found


def filled(weight: Tensor) -> Tensor:
    found = torch.empty_like(weight)
    found.copy_(weight)
    found[:2] = 0
    return found.round()


def by_out(weight: Tensor) -> Tensor:
    codes = torch.empty(6, 8)
    torch.round(weight.detach() * 4, out=codes)
    return codes / 4


REMADE: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded": rounded,
    "estimator": lambda w: w + (rounded(w) - w).detach(),
    "in place": in_place,
    "rows": lambda w: torch.cat([rounded(row) for row in w.split(1)]),
    "transposed": lambda w: rounded(w.t().contiguous()).t(),
    "packed": lambda w: (w.detach() * 4).round().to(torch.int8).view(torch.uint8).view(torch.int8).float(),
    "table": lambda w: torch.linspace(-2, 2, 9)[torch.bucketize(w.detach(), torch.linspace(-2, 2, 8))],
}


@pytest.mark.parametrize("name", REMADE)
def test_what_was_made_can_be_made_again_of_a_weight_that_has_moved(name: str, weight: nn.Parameter) -> None:
    with followed() as found:
        F.linear(X, REMADE[name](weight))
    ((_, use),) = found.uses
    assert use.made is not None
    with torch.no_grad():
        weight.add_(0.3).mul_(1.5)
        again, expected = remade(use.made), REMADE[name](weight)
    assert torch.equal(again.t() if name == "transposed" else again, expected)


def test_what_writes_into_parts_of_unknown_memory_is_not_claimed_to_be_the_weight(
    weight: nn.Parameter,
) -> None:
    for make in (filled, by_out):
        with followed() as found:
            F.linear(X, make(weight))
        for _, use in found.uses:
            assert use.made is not None
            assert use.made.values != "continuous"


def test_what_writes_into_memory_of_the_program_is_not_run_again(weight: nn.Parameter) -> None:
    buffer = torch.zeros(6, 8)
    with followed() as found:
        torch.round(weight.detach() * 4, out=buffer)
        F.linear(X, buffer / 4)
    before = buffer.clone()
    with torch.no_grad():
        weight.mul_(3)
    ((_, use),) = found.uses
    assert use.made is not None
    assert use.made.values == "rounded"
    with pytest.raises(CannotRemake):
        remade(use.made)
    assert torch.equal(buffer, before)


def test_a_weight_that_is_gone_can_not_be_quantized_again() -> None:
    weight = nn.Parameter(torch.randn(6, 8))
    with followed() as found:
        F.linear(X, rounded(weight))
    made = found.uses[0][1].made
    assert made is not None
    found.uses.clear()  # an instrument looks at an operation, and lets go of it
    del weight
    gc.collect()
    with pytest.raises(CannotRemake):
        remade(made)


# ---------------------------------------------------------------------- who is who


def test_a_model_that_is_cast_starts_anew() -> None:
    layer = nn.Linear(8, 6)
    with followed() as found:
        F.linear(X, layer.weight)
        layer.to(torch.bfloat16)
        F.linear(X.bfloat16(), layer.weight)
    assert found.kinds == ["weight", "weight"]


def test_an_average_of_a_weight_is_another_weight(weight: nn.Parameter) -> None:
    average = copy.deepcopy(weight)
    with followed() as found, torch.no_grad():
        average.lerp_(weight, 0.1)
        average.copy_(weight)
        F.linear(X, average)
    assert found.kinds == ["weight"]
    assert found.rewrites == 0


def test_a_weight_knows_whether_it_was_drawn_or_loaded() -> None:
    with followed() as found:
        drawn, loaded = nn.Linear(8, 6), nn.Linear(8, 6)
        loaded.load_state_dict({"weight": torch.ones(6, 8), "bias": torch.ones(6)})
        scaled = nn.Parameter(torch.randn(6, 8) * 0.1)
        given = nn.Parameter(torch.ones(6, 8))
        orthogonal = nn.Linear(8, 6)
        nn.init.orthogonal_(orthogonal.weight)
        weights = [drawn.weight, loaded.weight, scaled, given, orthogonal.weight]
        for weight in weights:
            F.linear(X, weight)
        roots = {id(root.alive()): root for root in found.lineage.roots()}
    flags = [(roots[id(w)].drawn, roots[id(w)].loaded) for w in weights]
    assert flags == [(True, False), (True, True), (True, False), (False, False), (True, False)]


def test_nothing_that_was_made_is_kept_alive(weight: nn.Parameter) -> None:
    lineage = Lineage(
        UserCode(), on_use=lambda _: None, on_rounding=lambda *_: None, on_rewrite=lambda *_: None
    )
    probe = OperationProbe([lineage])
    probe.attach()
    used = rounded(weight)
    hidden = F.linear(X, used)
    references = weakref.ref(used), weakref.ref(hidden)
    del used, hidden
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    lineage.step_begins(torch.optim.SGD([weight], lr=0.1), 0)
    assert lineage._made == {}
    probe.detach()


def test_a_kept_copy_is_known_after_the_probe_has_slept(weight: nn.Parameter) -> None:
    with followed() as found:
        kept = rounded(weight.detach())
        found.lineage.fall_asleep()
        F.linear(X, kept)
    assert found.kinds == ["rounded"]


def test_roots_and_made_tensors_are_told_by_their_memory(weight: nn.Parameter) -> None:
    with followed() as found:
        used = rounded(weight)
        assert isinstance(found.lineage.made(weight.data), Root)
        assert isinstance(found.lineage.made(used.view(-1)), Made)
        assert found.lineage.made(torch.randn(3)) is None
