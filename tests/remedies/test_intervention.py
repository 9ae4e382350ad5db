from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from precdoctor.remedies import Dose
from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import DoesNotApply
from tests.remedies.running import in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


def test_calls_in_order_of_a_life() -> None:
    seen: list[str] = []
    intervention = Intervention()
    intervention.on_optimizer(lambda _: seen.append("made"))
    intervention.at_first_step(lambda _: seen.append("first"))
    intervention.before_step(lambda _: seen.append("before"))
    intervention.after_step(lambda _: seen.append("after"))
    intervention.at_exit(lambda: seen.append("exit"))
    with intervention:
        intervention.settle()
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
        step(optimizer)
        step(optimizer)
    step(optimizer)
    assert seen == ["made", "first", "before", "after", "before", "after", "exit"]


def test_what_is_inside_is_entered_after_a_doctor_and_left_before_it() -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def inside() -> Iterator[None]:
        seen.append("entered")
        yield
        seen.append("left")

    intervention = Intervention()
    intervention.inside(inside())
    intervention.at_exit(lambda: seen.append("exit"))
    with intervention:
        seen.append("doctor attaches")
        intervention.settle()
        intervention.unsettle()
        seen.append("doctor detaches")
    assert seen == ["doctor attaches", "entered", "left", "doctor detaches", "exit"]


def test_a_step_that_calls_its_parent_class_counts_once() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            super().step()

    torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)  # its class's step is hooked as well
    seen: list[str] = []
    with Intervention() as intervention:
        intervention.before_step(lambda _: seen.append("before"))
        intervention.after_step(lambda _: seen.append("after"))
        intervention.settle()
        step(Own([nn.Parameter(torch.ones(2))], lr=0.1))
    assert seen == ["before", "after"]


def test_a_step_that_raised_is_closed_before_the_next() -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            raise RuntimeError("no")

    seen: list[str] = []
    with Intervention() as intervention:
        intervention.before_step(lambda _: seen.append("before"))
        intervention.after_step(lambda _: seen.append("after"))
        intervention.settle()
        optimizer = Failing([nn.Parameter(torch.ones(2))], lr=0.1)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no"):
                optimizer.step()
        assert seen == ["before", "after", "before"]
    assert seen[-1] == "after"


def test_names_parameters_as_evidence_does() -> None:
    model, loose = nn.Sequential(nn.Linear(2, 2, bias=False), nn.RMSNorm(2)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [*model.parameters()]}, {"params": [loose]}], lr=0.1)
    names = Intervention().named(optimizer)
    assert names["SGD.group1[0]"] is loose
    assert {name for name, p in names.items() if p is not loose} >= {"0.weight", "1.weight"}


def test_everything_is_put_back() -> None:
    before = [torch.optim.Optimizer.__init__, nn.Module.__call__, nn.Module.to, torch.autograd.backward]
    with Intervention(Dose(remedy="autocast")):
        assert nn.Module.__call__ is not before[1]
    assert [
        torch.optim.Optimizer.__init__,
        nn.Module.__call__,
        nn.Module.to,
        torch.autograd.backward,
    ] == before


def test_says_that_nothing_was_there_to_act_on() -> None:
    intervention = run(net(cast=""), "kahan").intervention
    with pytest.raises(DoesNotApply, match="no optimizer steps a weight below float32"):
        intervention.check()
    run(net(), "kahan").intervention.check()
    Intervention().check()


def test_an_untreated_run_is_a_plain_scan() -> None:
    assert run(net()).losses == run(net(), None).losses != []


def test_an_unknown_remedy_is_an_error() -> None:
    with pytest.raises(KeyError), Intervention(Dose(remedy="snake-oil")):
        pass
