from __future__ import annotations

from tests.remedies.running import harms_no_healthy_one, in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]

#: float32 weights under float16 autocast, with a loss so small that its gradients vanish on the way
VANISHING = (
    net(cast="", optimizer="torch.optim.AdamW(model.parameters(), lr=1e-2)", steps=20)
    .replace("out = model(", "with torch.autocast('cpu', dtype=torch.float16): out = model(")
    .replace("loss.backward()", "(loss * 1e-8).backward()")
)


def zero_share(treated: object, name: str = "inner.weight") -> float:
    binades = treated.named(name).gradient.binades  # type: ignore[attr-defined]
    return float(binades.zeros / (binades.zeros + binades.exponents.total))


def test_gradients_that_vanish_in_float16_arrive_and_the_model_learns() -> None:
    untreated, treated = run(VANISHING), run(VANISHING, "loss-scaling")
    assert zero_share(untreated) == 1.0
    assert zero_share(treated) < 0.6
    assert treated.losses[-1] < 0.7 * untreated.losses[-1]


def test_gradients_have_their_true_size() -> None:
    text = net(cast="") + "torch.save([p.grad for p in model.parameters()], 'kept.pt')\n"
    text = text.replace("    optimizer.zero_grad()\n", "    if step < 11: optimizer.zero_grad()\n")
    import torch

    run(text)
    expected = torch.load("kept.pt")
    run(text, "loss-scaling")
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.load("kept.pt"), strict=True))


def test_a_step_with_an_overflow_is_left_out_and_the_scale_halved() -> None:
    text = net(cast="model.half()", optimizer="torch.optim.SGD(model.parameters(), lr=1e-3)", steps=16)
    treated = run(text.replace("loss.backward()", "(loss * 4).backward()"), "loss-scaling")
    gradient, weight = treated.named("outer.weight").gradient, treated.named("outer.weight").weight
    assert 0 < gradient.absent < 16
    assert weight is not None
    assert weight.non_finite == 0
    assert weight.moved_share > 0


def test_seeds_and_several_losses_are_scaled_too() -> None:
    text = net(cast="").replace(
        "loss.backward()", "torch.autograd.backward([loss, out], [None, torch.ones_like(out)])"
    )
    assert run(text, "loss-scaling").losses == run(text).losses


def test_harms_no_float32_program() -> None:
    harms_no_healthy_one("loss-scaling", applies=True)


def test_does_not_apply_beside_a_scaler_of_the_program() -> None:
    text = net(cast="scaler = torch.amp.GradScaler('cpu')").replace(
        "loss.backward()", "scaler.scale(loss).backward()"
    )
    treated = run(text, "loss-scaling", ended="failed")
    assert "the program scales its loss itself" in treated.evidence.run.error


def test_a_wrong_call_fails_with_the_error_that_it_has_without() -> None:
    text = net(cast="").replace("loss.backward()", "(out * 2).backward()")
    errors = [run(text, remedy, ended="failed").evidence.run.error for remedy in (None, "loss-scaling")]
    assert errors[0] == errors[1] != ""
