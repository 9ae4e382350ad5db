from __future__ import annotations

import pytest

from tests.remedies.running import in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]

SCHEDULE = "schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 / (1 + s))\n"


def scheduled(text: str) -> str:
    return text.replace("data = torch", SCHEDULE + "data = torch").replace(
        "    optimizer.zero_grad()\n", "    optimizer.zero_grad()\n    schedule.step()\n"
    )


def test_steps_the_subjects_alone_with_the_larger_rate() -> None:
    untreated, treated = run(net()), run(net(), "group-lr", "norm.weight", factor=30.0)
    assert "norm.weight" in untreated.ill()
    assert "norm.weight" not in treated.ill()
    (optimizer,) = treated.evidence.optimizers
    assert [group.lr_max for group in optimizer.groups] == pytest.approx([3e-4, 9e-3])
    assert [group.tensors for group in optimizer.groups] == [4, 1]
    assert treated.named("norm.weight").group == 1


def test_the_update_is_larger_by_the_factor() -> None:
    text = net(cast="", optimizer="torch.optim.SGD(model.parameters(), lr=1e-3)", steps=1)
    shift = "print(model.norm.weight.sum().item() - 32)\n"
    before = run(text + shift.replace("print(", "before = ("))
    once, tenfold = (
        before.named("norm.weight"),
        run(text, "group-lr", "norm.weight", factor=10.0).named("norm.weight"),
    )
    assert once.updates is not None
    assert tenfold.updates is not None
    assert tenfold.updates.relative_rms == pytest.approx(10 * once.updates.relative_rms, rel=1e-4)


def test_leaves_the_groups_as_the_program_made_them() -> None:
    text = net() + (
        "assert len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]['params']) == 5\n"
        "assert optimizer.param_groups[0]['lr'] == 3e-4\n"
    )
    run(text, "group-lr", "norm.weight", factor=10.0)


def test_a_group_that_is_treated_whole_keeps_its_place() -> None:
    treated = run(net(), "group-lr", factor=10.0)
    assert [g.lr_max for g in treated.evidence.optimizers[0].groups] == pytest.approx([3e-3])


def test_a_schedule_goes_on_as_it_is() -> None:
    treated = run(scheduled(net(steps=4)), "group-lr", "norm.weight", factor=10.0)
    groups = treated.evidence.optimizers[0].groups
    assert [g.lr_last for g in groups] == pytest.approx([3e-4 / 4, 3e-3 / 4])


def test_a_run_that_is_stopped_is_put_back_before_its_schedule_is_asked() -> None:
    treated = run(scheduled(net(steps=8)), "group-lr", "norm.weight", factor=10.0, steps=4, ended="stopped")
    assert [bool(g.lr_future) for g in treated.evidence.optimizers[0].groups] == [True, False]
    assert treated.evidence.run.limits == ()


def test_two_optimizers_are_told_apart() -> None:
    two = "torch.optim.SGD([*model.inner.parameters()], lr=1e-3)\n"
    two += "other = torch.optim.AdamW([*model.norm.parameters()])"
    text = net(optimizer=two).replace("    optimizer.step()", "    optimizer.step(); other.step()")
    treated = run(text, "group-lr", "norm.weight", factor=10.0)
    assert [[g.lr_max for g in o.groups] for o in treated.evidence.optimizers] == [[1e-3], [1e-2]]


def test_does_not_apply_where_nobody_steps_the_subject() -> None:
    assert not run(net(), "group-lr", "elsewhere", factor=10.0).intervention.acted
