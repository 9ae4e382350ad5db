from __future__ import annotations

import pytest

from tests.remedies.quantized import STE, program
from tests.remedies.running import in_a_folder_of_its_own, losses_of, run

__all__ = ["in_a_folder_of_its_own"]

STALE = (
    "if self.cache is None:\n    self.cache = quantize(self.weight.detach())\n"
    "return self.weight + (self.cache - self.weight).detach()"
)


def test_the_forward_follows_a_weight_whose_cache_is_never_made_anew() -> None:
    assert run(program(STALE)).ill("PD602") == {"inner.weight", "outer.weight"}
    treated = run(program(STALE), "refresh-cache")
    assert treated.intervention.acted
    assert treated.ill("PD602") == set()
    assert treated.losses == pytest.approx(losses_of(program(STE)), rel=1e-4)


def test_a_hand_made_cast_that_is_kept_is_made_anew() -> None:
    kept = (
        "if self.cache is None:\n    self.cache = self.weight.detach().to(torch.bfloat16).float()\n"
        "return self.weight + (self.cache - self.weight).detach()"
    )
    fresh = "return self.weight + (self.weight.detach().to(torch.bfloat16).float() - self.weight).detach()"
    treated = run(program(kept), "refresh-cache")
    assert treated.losses == pytest.approx(run(program(fresh)).losses, rel=1e-4)


FUNCTION = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, layer):
        if layer.cache is None{or_old}:
            scale = weight.abs().amax() / 127
            layer.cache = (weight / scale).round().to(torch.int8), scale
        codes, scale = layer.cache
        ctx.save_for_backward(x, codes, scale)
        return x @ (codes.float() * scale).T

    @staticmethod
    def backward(ctx, gradient):
        x, codes, scale = ctx.saved_tensors
        return gradient @ (codes.float() * scale), gradient.T @ x, None
"""


def test_follows_into_custom_functions_forward_and_backward() -> None:
    def text(or_old: str) -> str:
        made = program("pass", product="Product.apply(x, self.weight, self)")
        return made.replace("class Net", FUNCTION.format(or_old=or_old) + "\nclass Net")

    stale, fresh = text(""), run(text(" or True"))
    assert run(stale).losses != pytest.approx(fresh.losses, rel=1e-2)
    treated = run(stale, "refresh-cache")
    assert treated.losses == pytest.approx(fresh.losses, rel=1e-5)
    assert treated.ill("PD602") == set()


def test_drops_the_casts_of_an_autocast_region_around_the_step() -> None:
    region = program("return self.weight", steps=8)
    loop = region.index("for step in range")
    body = region[loop:].replace("\n", "\n    ")
    around = region[:loop] + "with torch.autocast('cpu', dtype=torch.bfloat16):\n    " + body
    each = region.replace(
        "loss = (model(x)",
        "with torch.autocast('cpu', dtype=torch.bfloat16):\n        out = model(x)\n    loss = (out",
    )
    each, around = each.rstrip() + "\n", around.rstrip() + "\n"
    stale, fresh = run(around), run(each)
    assert stale.losses != pytest.approx(fresh.losses, rel=1e-2)
    treated = run(around, "refresh-cache")
    assert treated.intervention.acted
    assert treated.losses == pytest.approx(fresh.losses, rel=1e-2)


def test_leaves_a_fresh_quantizer_and_a_plain_program_alone() -> None:
    for used in (STE, "return self.weight"):
        untreated, treated = run(program(used)), run(program(used), "refresh-cache")
        assert treated.losses == untreated.losses
        assert not treated.intervention.acted
