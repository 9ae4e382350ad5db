"""Remedies that set something in the optimizer: eps, beta2, the implementation."""

from __future__ import annotations

import pytest

from tests.remedies.running import CAST, in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]

TWO_GROUPS = (
    "torch.optim.AdamW([{'params': [model.norm.weight]}, {'params': [*model.inner.parameters()]}], lr=3e-4)"
)


def test_an_eps_that_float16_can_hold_keeps_weights_finite() -> None:
    dead = "model.half()\nmodel.inner.weight.data[0] = -1; model.inner.bias.data[0] = -60"
    text = net(cast=dead).replace("x = torch.randn", "x = torch.rand").replace("AdamW(model", "Adam(model")
    sick, treated = run(text), run(text, "eps", eps=1e-4)
    assert "inner.weight" in sick.ill("PD303")
    assert treated.ill("PD303") == set()
    weight = treated.named("inner.weight").weight
    assert weight is not None
    assert weight.non_finite == 0


def test_eps_and_beta2_change_the_groups_of_the_subjects_alone() -> None:
    groups = run(net(optimizer=TWO_GROUPS), "eps", "norm.weight", eps=1e-4).evidence.optimizers[0].groups
    assert [g.eps for g in groups] == [1e-4, 1e-8]
    groups = run(net(optimizer=TWO_GROUPS), "beta2", "norm.weight", beta2=0.99).evidence.optimizers[0].groups
    assert [g.betas for g in groups] == [(0.9, 0.99), (0.9, 0.999)]


def test_a_smaller_beta2_lets_the_second_moment_fall() -> None:
    shrinking = net(cast=CAST, steps=40).replace(
        "loss.backward()", "(loss * (1 if step < 3 else 1e-3)).backward()"
    )
    moments = [
        {s.parameter: s.edq_down for s in r.evidence.states if s.key == "exp_avg_sq"}
        for r in (run(shrinking), run(shrinking, "beta2", beta2=0.99))
    ]
    assert moments[0]["inner.weight"] < 0.2 < 0.8 < moments[1]["inner.weight"]


@pytest.mark.parametrize(("remedy", "key"), [("eps", "eps"), ("beta2", "beta2")])
def test_does_not_apply_to_an_optimizer_without_it(remedy: str, key: str) -> None:
    text = net(optimizer="torch.optim.SGD(model.parameters(), lr=0.1)")
    assert not run(text, remedy, **{key: 1e-4}).intervention.acted


def test_the_plain_loop_writes_what_a_faulty_kernel_does_not() -> None:
    text = net(optimizer="torch.optim.SGD(model.parameters(), lr=1.0, fused=True)")
    weight = [run(text, remedy).named("inner.weight").weight for remedy in (None, "plain-optimizer")]
    assert weight[0] is not None
    assert weight[1] is not None
    assert weight[1].moved_share > 0.5 > weight[0].moved_share


def test_the_plain_loop_is_not_handed_scaled_gradients() -> None:
    text = net(
        cast="scaler = torch.amp.GradScaler('cpu')",
        optimizer="torch.optim.AdamW(model.parameters(), fused=True)",
    )
    text = text.replace("loss.backward()", "scaler.scale(loss).backward()")
    text = text.replace("    optimizer.step()", "    scaler.step(optimizer); scaler.update()")
    fused, plain = run(text), run(text, "plain-optimizer")
    assert plain.intervention.acted
    assert plain.losses == pytest.approx(fused.losses, rel=1e-3)


def test_the_plain_loop_does_not_apply_where_it_runs_already() -> None:
    assert not run(net(), "plain-optimizer").intervention.acted
