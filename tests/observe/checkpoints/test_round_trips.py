"""Weights that are rounded at every load are told from those that only look so."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import Snapshot
from precdoctor.rules.truncated_checkpoint import TruncatedCheckpoint

ROUNDS = 12
Weights = dict[str, Tensor]


def through(saved: Any) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8))


def low(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> Weights:
    return {name: weight.to(dtype) for name, weight in model.state_dict().items()}


def full(model: nn.Module) -> Weights:
    return copy.deepcopy(model.state_dict())


def move(model: nn.Module, size: float = 1e-4) -> None:
    """Train: move the weights by less than half an ulp of most of them, in one direction and with noise."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter += size * torch.randn(parameter.shape, generator=generator)
            parameter += size / 2 * torch.randn(parameter.shape)


def descend(model: nn.Module) -> None:
    """Train with an optimizer."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    model(torch.ones(4, 32)).square().mean().backward()
    optimizer.step()


def in_rounds(act: Callable[[nn.Module], Any], model: nn.Module | None = None) -> Callable[[], None]:
    def run() -> None:
        trained = model or network()
        torch.manual_seed(1)
        for _ in range(ROUNDS):
            act(trained)

    return run


def found(run: Callable[[], None]) -> tuple[tuple[Snapshot, ...], list[str]]:
    with Doctor(every=1, probe=True) as doctor:
        run()
    evidence = doctor.evidence()
    rounded = tuple(s for s in evidence.snapshots if s.kind == "rounded")
    return rounded, [f.severity for f in TruncatedCheckpoint.criterion(evidence)]


# ---------------------------------------------------------------------- sick


def by_hand(model: nn.Module) -> None:
    model.load_state_dict(low(model))
    move(model)


def with_an_optimizer(model: nn.Module) -> None:
    descend(model)
    model.load_state_dict(low(model))


def over_the_wire(model: nn.Module) -> None:
    """Pack in 16 bits, unpack to float32, as a client does."""
    packed = low(model)
    model.load_state_dict({name: value.float() for name, value in packed.items()})
    move(model)


def but_for_biases(model: nn.Module) -> None:
    rounded = {name: value for name, value in low(model).items() if "bias" not in name}
    model.load_state_dict({**model.state_dict(), **rounded})
    move(model)


def in_copies(model: nn.Module) -> None:
    """Clients train copies, and their mean is loaded in float32."""
    model.load_state_dict(low(model))
    clients = [copy.deepcopy(model) for _ in range(2)]
    for client in clients:
        move(client)
    states = [client.state_dict() for client in clients]
    model.load_state_dict({name: sum(s[name] for s in states) / 2 for name in states[0]})


def in_jobs() -> None:
    """Every job is a new module, which takes up what the last one has saved."""
    saved = None
    for _ in range(ROUNDS):
        model = network()
        if saved is not None:
            model.load_state_dict(saved["average"])
        move(model)
        saved = through({"average": low(model), "step": 3})


def from_a_rounded_start() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    for _ in range(ROUNDS + 1):
        move(model)
        model.load_state_dict(low(model))


@pytest.mark.parametrize(
    "run",
    [
        in_rounds(by_hand),
        in_rounds(with_an_optimizer),
        in_rounds(over_the_wire),
        in_rounds(but_for_biases),
        in_rounds(in_copies),
        in_jobs,
        from_a_rounded_start,
    ],
    ids=["by hand", "optimizer", "wire", "no biases", "copies", "jobs", "rounded start"],
)
def test_progress_that_rounding_takes_back_is_an_error(run: Callable[[], None]) -> None:
    (snapshot,), severities = found(run)
    assert severities == ["error"]
    assert (snapshot.format, snapshot.others) == ("bfloat16", 0)
    assert snapshot.numel in (1280, 1320)  # without and with biases
    assert snapshot.times >= ROUNDS - 2
    assert snapshot.place is not None
    assert "load_state_dict" in snapshot.place.code


def test_what_is_kept_is_measured() -> None:
    """The first window, counted by hand."""
    model, states = network(), []

    def act(model: nn.Module) -> None:
        before = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()
        by_hand(model)
        moved = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()
        states.append((before.bfloat16().double(), moved))

    (snapshot,), _ = found(in_rounds(act, model))
    lows, moves = zip(*states, strict=True)
    meant = [moves[k] - lows[k] for k in range(ROUNDS - 1)]
    arrived = [lows[k + 1] - lows[k] for k in range(ROUNDS - 1)]
    pairs = [(sum(meant[part]), sum(arrived[part])) for part in (slice(0, 8), slice(8, None))]
    edq = [float((a * m).sum() / (m * m).sum()) for m, a in pairs]
    assert snapshot.edq == pytest.approx(min(edq))
    back = sum(int(((a == 0) & (m != 0)).sum()) for m, a in zip(meant, arrived, strict=True))
    assert snapshot.changed_share == pytest.approx(back / sum(int((m != 0).sum()) for m in meant))
    assert snapshot.regained == pytest.approx(0, abs=0.02)


# ---------------------------------------------------------------------- healthy


def evaluated_and_put_back(model: nn.Module) -> None:
    kept = full(model)
    model.load_state_dict(low(model))
    model(torch.ones(1, 32))
    model.load_state_dict(kept)
    move(model)


def evaluated_and_put_back_by_hand(model: nn.Module) -> None:
    kept = full(model)
    model.load_state_dict(low(model))
    model(torch.ones(1, 32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    move(model)


def averages_for_evaluation() -> None:
    model, average = network(), network()
    for _ in range(ROUNDS):
        move(model)
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.data.lerp_(p.data, 0.1)
        kept = full(model)
        model.load_state_dict(low(average))
        model.load_state_dict(kept)


def a_target_network() -> None:
    model, target = network(), network()
    for _ in range(ROUNDS):
        move(model)
        target.load_state_dict(low(model))


def an_outer_loop() -> None:
    """The outer weights are float32 and apart; the model begins each time from them, rounded."""
    model = network()
    outer = full(model)
    for _ in range(ROUNDS):
        model.load_state_dict(outer)
        model.load_state_dict(low(model))
        start = full(model)
        move(model)
        outer = {name: outer[name] + value - start[name] for name, value in model.state_dict().items()}


def a_remainder_beside() -> None:
    """What rounding cuts off is saved too, and added again."""
    saved: Any = None
    for _ in range(ROUNDS):
        model = network()
        if saved is not None:
            model.load_state_dict(saved["weights"])
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter += saved["rest"][name]
        move(model)
        weights = low(model)
        rest = {name: p.detach() - weights[name] for name, p in model.named_parameters()}
        saved = through({"weights": weights, "rest": rest})


def large_steps(model: nn.Module) -> None:
    model.load_state_dict(low(model))
    move(model, 0.1)


def exported_and_compared() -> None:
    """A rounded copy of the weights is saved and evaluated in a model of its own."""
    model = network()
    for _ in range(ROUNDS):
        move(model)
        network().load_state_dict(through(low(model)))


def back_to_the_best() -> None:
    model = network()
    best = low(model)
    for number in range(ROUNDS):
        move(model)
        if number % 3 == 0:
            model.load_state_dict(best)


@pytest.mark.parametrize(
    "run",
    [
        in_rounds(lambda m: (m.load_state_dict(full(m)), move(m))),
        in_rounds(evaluated_and_put_back),
        in_rounds(evaluated_and_put_back_by_hand),
        averages_for_evaluation,
        a_target_network,
        an_outer_loop,
        a_remainder_beside,
        in_rounds(large_steps),
        exported_and_compared,
        back_to_the_best,
        in_rounds(by_hand, network().bfloat16()),
        lambda: [by_hand(m) for m in (network(),) for _ in range(3)],
    ],
    ids=[
        "float32",
        "put back",
        "put back by hand",
        "averages",
        "target",
        "outer loop",
        "remainder",
        "large steps",
        "exported",
        "best",
        "16 bits",
        "twice",
    ],
)
def test_loads_that_take_nothing_back_are_none(run: Callable[[], None]) -> None:
    assert found(run)[1] == []


def test_the_weights_are_the_same_with_and_without() -> None:
    models = [network(), network()]
    in_rounds(by_hand, models[0])()
    found(in_rounds(by_hand, models[1]))
    for plain, watched in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(plain, watched)
