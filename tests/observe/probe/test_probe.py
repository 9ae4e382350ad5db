"""The probe sees the operations of a few steps, changes nothing, and leaves no mode behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from precdoctor.doctor import Doctor
from precdoctor.observe.probe.operations import Operation
from precdoctor.observe.probe.probe import OperationProbe


class Seen:
    """An instrument that notes names and steps."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, int, bool]] = []
        self.begun: list[int] = []
        self.asleep = 0

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pass

    def after(self, operation: Operation) -> None:
        self.operations.append((operation.name, operation.step, operation.backward))

    def step_begins(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        self.begun.append(step)

    def fall_asleep(self) -> None:
        self.asleep += 1

    @property
    def steps(self) -> list[int]:
        return sorted({step for _, step, _ in self.operations})


@pytest.fixture
def probed() -> Iterator[tuple[OperationProbe, Seen]]:
    seen = Seen()
    probe = OperationProbe([seen])
    probe.attach()
    yield probe, seen
    probe.detach()
    assert torch._C._len_torch_dispatch_stack() == 0


def depth() -> int:
    return int(torch._C._len_torch_dispatch_stack())


def step(probe: OperationProbe, number: int, work: Callable[[], Any] = lambda: torch.ones(2) + 1) -> None:
    """Do some work and then what the step monitor does around the step of that number."""
    work()
    probe.step_begins(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0))
    torch.ones(3).mul_(2)
    probe.step_ended(number)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4, inputs: int = 4) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(8, inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_sees_first_steps_and_neighbouring_ones_later(probed: tuple[OperationProbe, Seen]) -> None:
    probe, seen = probed
    for number in range(1, 45):
        step(probe, number)
    steps = seen.steps
    assert steps[:3] == [0, 1, 2]
    assert {10, 11, 30, 31} <= set(steps)
    assert len(steps) < 20
    assert all(later - 1 in steps or later + 1 in steps for later in steps)


def test_what_an_optimizer_does_inside_is_not_seen(probed: tuple[OperationProbe, Seen]) -> None:
    probe, seen = probed
    step(probe, 1)
    assert "aten::mul_" not in [name for name, _, _ in seen.operations]
    assert seen.begun == [0]


def test_tells_backward_from_forward(probed: tuple[OperationProbe, Seen]) -> None:
    _, seen = probed
    torch.ones(2, requires_grad=True).exp().sum().backward()
    backward = {name: back for name, _, back in seen.operations}
    assert backward["aten::exp"] is False
    assert backward["aten::mul"] is True


def test_there_is_no_mode_while_it_sleeps(probed: tuple[OperationProbe, Seen]) -> None:
    probe, seen = probed
    assert depth() == 1
    for number in range(1, 4):
        step(probe, number)
    assert depth() == 0
    assert seen.asleep == 1


class Failing(Seen):
    """Fails at the first operation."""

    def after(self, operation: Operation) -> None:
        raise ZeroDivisionError("by us")


def test_an_instrument_that_fails_looks_no_more_and_the_run_goes_on() -> None:
    before, after = Seen(), Seen()
    probe = OperationProbe([before, Failing(), after])
    probe.attach()
    assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))
    assert probe.limits == {"looking at operations failed (Failing, ZeroDivisionError: by us)": None}
    assert [name for name, _, _ in before.operations][:2] == ["aten::ones", "aten::add"]
    assert after.operations == []  # it may rely on the one that failed
    probe.detach()
    assert depth() == 0


def test_a_step_with_very_many_operations_is_seen_up_to_there(
    probed: tuple[OperationProbe, Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precdoctor.observe.probe.probe._MOST_OPERATIONS", 5)
    probe, seen = probed
    step(probe, 1, lambda: [torch.ones(1) for _ in range(20)])
    assert len(seen.operations) == 5
    step(probe, 2, lambda: torch.ones(1).exp())
    assert ("aten::exp", 1, False) in seen.operations
    assert list(probe.limits) == ["of steps with over 5 operations the rest is not looked at"]


def test_wakes_in_the_middle_of_a_step_when_told_so(probed: tuple[OperationProbe, Seen]) -> None:
    probe, seen = probed
    for number in range(1, 24):
        step(probe, number)
    assert seen.steps[-1] < 23
    probe.rouse("an event")
    torch.ones(2).exp()
    assert ("aten::exp", 23, False) in seen.operations
    for number in range(24, 30):
        step(probe, number)
    assert [at for at in seen.steps if at > 22] == [23, 24, 25]


def test_wakes_for_each_kind_of_event_a_few_times(probed: tuple[OperationProbe, Seen]) -> None:
    probe, seen = probed
    for number in range(1, 500):
        step(probe, number)
        if number > 300 and number % 10 == 5:
            probe.rouse("a noisy event")
        if number == 450:
            probe.rouse("another")
    woken = {at for at in seen.steps if at > 305}
    assert 315 in woken
    assert 365 not in woken
    assert 450 in woken


def test_looks_at_a_step_that_is_asked_for_however_long_that_takes() -> None:
    seen = Seen()
    probe = OperationProbe([seen], share=0.0, seconds=0.0, at=18)
    probe.attach()
    for number in range(1, 30):
        step(probe, number)
    probe.detach()
    assert {17, 18} <= set(seen.steps)
    assert 10 not in seen.steps


def test_looks_at_all_steps_where_asked_to() -> None:
    seen = Seen()
    probe = OperationProbe([seen], share=0.0, seconds=0.0, always=True)
    probe.attach()
    for number in range(1, 30):
        step(probe, number)
    probe.detach()
    assert seen.steps == list(range(29))


def test_a_step_is_left_when_looking_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precdoctor.observe.probe.probe._CHECKED", 10)
    seen = Seen()
    probe = OperationProbe([seen], share=0.0, seconds=0.0)
    probe.attach()
    step(probe, 1, lambda: [torch.ones(1) for _ in range(50)])
    probe.detach()
    assert len(seen.operations) == 9
    assert "fewer steps" in next(iter(probe.limits))


def test_an_evaluation_wakes_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    original = nn.Module.eval
    with Doctor(model, optimizer, probe=True) as doctor:
        train(model, optimizer, 25)
        probe = doctor._probe
        assert probe is not None
        assert not probe.awake
        model.eval()
        assert probe.awake
    assert nn.Module.eval is original
    assert depth() == 0


@torch.no_grad()
def _decorated() -> bool:
    return depth() > 0


@torch.inference_mode()
def _in_inference_mode() -> bool:
    return depth() > 0


def _in_a_block() -> bool:
    with torch.no_grad():
        return depth() > 0


@pytest.mark.parametrize("evaluate", [_decorated, _in_inference_mode, _in_a_block])
def test_code_without_gradient_wakes_it_in_two_steps(evaluate: Callable[[], bool]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    entered, left = torch.no_grad.__enter__, torch.inference_mode.__enter__
    woken = []
    with Doctor(model, optimizer, probe=True) as doctor:
        for steps in (25, 10, 10):
            train(model, optimizer, steps)
            probe = doctor._probe
            assert probe is not None
            assert not probe.awake
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # has no gradient either
            assert not probe.awake
            woken.append((evaluate(), evaluate(), probe.awake))
    assert woken == [(True, True, True), (True, True, True), (False, False, False)]
    assert (torch.no_grad.__enter__, torch.inference_mode.__enter__) == (entered, left)
    assert depth() == 0


def test_code_that_is_part_of_each_step_is_seen_in_the_first_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer, probe=True) as doctor:
        for _ in range(25):
            _in_a_block()
            train(model, optimizer, 1)
        assert doctor._probe is not None
        assert not doctor._probe._roused


def test_looking_stops_when_it_takes_too_much_of_the_time() -> None:
    seen = Seen()
    probe = OperationProbe([seen], share=0.0, seconds=-1.0)
    probe.attach()
    step(probe, 1)
    step(probe, 2)
    probe.detach()
    assert seen.steps == [0]
    assert "to keep the time that takes within bounds" in next(iter(probe.limits))


# ---------------------------------------------------------------------- other modes


class Passing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_user_may_span_steps(probed: tuple[OperationProbe, Seen]) -> None:
    probe, seen = probed
    with Passing():
        for number in range(1, 6):
            step(probe, number)
        assert depth() == 2  # ours lies below and looks away
        assert 4 not in seen.steps
    assert depth() == 1
    step(probe, 6)
    step(probe, 7)
    assert depth() == 0


def test_no_mode_is_entered_above_that_of_a_user(probed: tuple[OperationProbe, Seen]) -> None:
    probe, _ = probed
    for number in range(1, 9):
        step(probe, number)
    with Passing():
        for number in range(9, 40):
            step(probe, number)
            assert depth() == 1


def test_a_forked_worker_is_not_looked_at(probed: tuple[OperationProbe, Seen]) -> None:
    _, seen = probed
    torch.ones(1)
    before = len(seen.operations)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.ones(1)
        os.write(write, str(len(seen.operations)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 20)) == before
    os.close(read)
    os.close(write)


# ---------------------------------------------------------------------- where a mode must not be changed


def test_a_step_inside_inference_mode_breaks_nothing(probed: tuple[OperationProbe, Seen]) -> None:
    probe, _ = probed
    for number in range(1, 13):
        torch.ones(2).add_(1)
        with torch.inference_mode():
            step(probe, number, lambda: None)
        assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))
    with torch.inference_mode():
        assert depth() == 0


def test_optimizers_that_step_inside_backward_leave_no_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def hook(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    handles = [p.register_post_accumulate_grad_hook(hook) for p in model.parameters()]
    depths = []
    with Doctor(probe=True):
        for _ in range(12):
            model(torch.randn(3, 4)).square().sum().backward()
            depths.append(depth())
    for handle in handles:
        handle.remove()
    assert 0 in depths
    assert 1 in depths
    assert depth() == 0


def test_the_patches_go_with_the_probe() -> None:
    inference, engine = torch.inference_mode, torch.autograd
    before = inference.__enter__, inference.__exit__, engine._engine_run_backward
    with Doctor(probe=True):
        assert inference.__enter__ is not before[0]
    assert before == (inference.__enter__, inference.__exit__, engine._engine_run_backward)


def test_a_probe_ended_inside_inference_mode_leaves_the_mode_after_it() -> None:
    probe = OperationProbe([Seen()])
    probe.attach()
    with torch.inference_mode():
        probe.detach()
        assert depth() == 1
    assert depth() == 0
    assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))


# ---------------------------------------------------------------------- threads


def test_training_in_a_thread_of_its_own_is_seen() -> None:
    losses: list[float] = []

    def work() -> None:
        model = nn.Linear(4, 2)
        losses.extend(train(model, torch.optim.SGD(model.parameters(), lr=0.1), 8))
        losses.append(depth())

    with Doctor(probe=True) as doctor:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert losses[-1] == 0
    assert depth() == 0
    assert doctor.evidence().probed


def test_several_threads_that_train_do_not_disturb_each_other() -> None:
    def work(out: list[float]) -> None:
        generator = torch.Generator().manual_seed(3)
        weight = nn.Parameter(torch.ones(4, 2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(30):
            loss = (torch.randn(8, 4, generator=generator) @ weight).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            out.append(loss.item())

    expected: list[float] = []
    work(expected)
    found: list[list[float]] = [[] for _ in range(4)]
    with Doctor(probe=True) as doctor:
        threads = [threading.Thread(target=work, args=(out,)) for out in found[1:]]
        for thread in threads:
            thread.start()
        work(found[0])
        for thread in threads:
            thread.join()
    assert all(losses == expected for losses in found)
    assert not [text for text in doctor.evidence().run.limits if "failed" in text]
    assert depth() == 0


# ---------------------------------------------------------------------- torch.compile


def compiled(*, watch: bool) -> tuple[list[float], int]:
    """Train a compiled model; return its losses and the number of graphs."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Dropout(0.1), nn.LayerNorm(32), nn.Linear(32, 2))
    counter = CompileCounterWithBackend("aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if not watch:
        return train(torch.compile(model, backend=counter), optimizer, 8), counter.frame_count  # type: ignore[arg-type]
    with Doctor(probe=True) as doctor:
        losses = train(torch.compile(model, backend=counter), optimizer, 8)  # type: ignore[arg-type]
        assert depth() == 0
        assert not nn.modules.module._global_forward_pre_hooks
    assert "operations are not looked at once a program has compiled a graph" in doctor.evidence().run.limits
    return losses, counter.frame_count


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_compiled_and_trained_as_without() -> None:
    original = torch.compile
    assert compiled(watch=True) == compiled(watch=False)
    assert torch.compile is original
    from torch._dynamo.callback import callback_handler

    assert not callback_handler.start_callbacks


@pytest.mark.filterwarnings("ignore")
def test_calling_compile_is_not_compiling() -> None:
    with Doctor(probe=True) as doctor:
        torch.compile(lambda x: x.sin(), backend="eager")  # as libraries do on import
        model = nn.Linear(4, 2)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    evidence = doctor.evidence()
    assert evidence.probed
    assert not evidence.run.limits


@pytest.mark.filterwarnings("ignore")
def test_older_versions_of_torch_look_no_more_once_compile_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TorchDispatchMode, "ignore_compile_internals")
    with Doctor(probe=True) as doctor:
        torch.compile(lambda x: x.sin(), backend="eager")
    assert "operations are not looked at once a program has compiled a graph" in doctor.evidence().run.limits


@pytest.mark.filterwarnings("ignore")
def test_compiling_inside_inference_mode_breaks_nothing() -> None:
    with Doctor(probe=True):
        with torch.inference_mode():
            compiled = torch.compile(lambda x: x.sin(), backend="eager")
            compiled(torch.ones(2))
        assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))
    assert depth() == 0
