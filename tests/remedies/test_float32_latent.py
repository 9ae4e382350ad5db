from __future__ import annotations

import pytest

from tests.remedies.quantized import STE, program
from tests.remedies.running import in_a_folder_of_its_own, losses_of, run

__all__ = ["in_a_folder_of_its_own"]

PLAIN = "return self.weight"
#: ways to write the rounded values over the weight
STORES = {
    "copy_": "torch.no_grad()(lambda p: p.copy_(quantize(p)))",
    "data.copy_": "(lambda p: p.data.copy_(quantize(p.data)))",
    "data": "(lambda p: setattr(p, 'data', quantize(p.data)))",
}


@pytest.mark.parametrize("how", STORES)
def test_trains_a_finer_weight_and_uses_its_rounded_values(how: str) -> None:
    store = f"[{STORES[how]}(p) for p in model.parameters() if p.dim() > 1]"
    text = program(PLAIN, after=store).replace("data = torch.Gen", store + "\ndata = torch.Gen")
    treated = run(text, "float32-latent")
    assert treated.intervention.acted
    assert treated.losses == pytest.approx(losses_of(program(STE)), rel=1e-4)
    assert all(q.rewritten_at is None for q in treated.evidence.quantizers)
    assert {q.route for q in treated.evidence.quantizers if q.parameter.endswith("r.weight")} == {"open"}


def test_a_weight_that_is_cast_in_place_is_kept_too() -> None:
    store = "[torch.no_grad()(lambda p: p.copy_(p.bfloat16()))(p) for p in model.parameters() if p.dim() > 1]"
    treated = run(program(PLAIN, after=store), "float32-latent")
    used = "w = self.weight\nreturn w + (w.detach().bfloat16().float() - w).detach()"
    assert treated.intervention.acted
    assert treated.losses[1:] == pytest.approx(losses_of(program(used))[1:], rel=1e-2)


def test_uses_them_however_the_weight_lies() -> None:
    store = f"[{STORES['copy_']}(p) for p in model.parameters() if p.dim() > 1]"
    text = program(PLAIN, after=store, product="x @ self.used().t()")
    straight = program(PLAIN, after=store)
    assert run(text, "float32-latent").losses == pytest.approx(
        run(straight, "float32-latent").losses, rel=1e-4
    )


def test_other_writes_pass() -> None:
    clip = "[torch.no_grad()(lambda p: p.copy_(p.clamp(-0.5, 0.5)))(p) for p in model.parameters()]"
    text = program(PLAIN, after=clip)
    treated = run(text, "float32-latent")
    assert treated.losses == run(text).losses
    assert not treated.intervention.acted
