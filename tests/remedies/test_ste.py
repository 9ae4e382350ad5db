from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.remedies.quantized import CUT, STE, program
from tests.remedies.running import in_a_folder_of_its_own, losses_of, run

__all__ = ["in_a_folder_of_its_own"]

#: ways in which a weight loses its gradient on the way through its quantizer
SEVERED = {
    "data": CUT,
    "detach": "return quantize(self.weight.detach())",
    "no_grad": "with torch.no_grad():\n    return quantize(self.weight)",
    "round": "w = self.weight\nscale = w.detach().abs().amax() / 7\nreturn (w / scale).round() * scale",
    "scale in the graph": "return quantize(self.weight)",
}
#: products that use it, each with the same result
PRODUCTS = {
    "linear": "F.linear(x, self.used())",
    "transposed": "x @ self.used().t()",
    "matmul": "torch.matmul(x, self.used().mT)",
    "einsum": "torch.einsum('bi,oi->bo', x, self.used())",
    "convolution": "F.conv1d(x.unsqueeze(-1), self.used().unsqueeze(-1)).squeeze(-1)",
    "contiguous": "torch.mm(x, self.used().t().contiguous())",
}


@pytest.mark.parametrize("how", SEVERED)
def test_trains_a_weight_that_was_cut_off_as_the_estimator_in_the_program_does(how: str) -> None:
    untreated = run(program(SEVERED[how]))
    assert untreated.ill("PD601") == {"inner.weight", "outer.weight"}
    treated = run(program(SEVERED[how]), "ste")
    assert treated.intervention.acted
    assert treated.ill("PD601") == treated.ill("PD201") == treated.ill("PD202") == set()
    by_hand = losses_of(program(STE))
    # w + (q - w) is q up to a rounding: not to the last bit
    assert treated.losses == pytest.approx(by_hand, rel=1e-4)
    assert treated.losses[0] == pytest.approx(untreated.losses[0], rel=1e-6)
    assert {q.route for q in treated.evidence.quantizers} == {"open"}


@pytest.mark.parametrize("product", PRODUCTS)
def test_finds_the_weight_in_whatever_product_and_layout(product: str) -> None:
    text = program(CUT, product=PRODUCTS[product])
    treated, by_hand = run(text, "ste"), losses_of(program(STE))
    assert treated.losses == pytest.approx(by_hand, rel=1e-3)
    assert treated.ill("PD601") == set()


@pytest.mark.parametrize("product", ["(x @ codes.t()) * scale.t()", "F.linear(x, codes) * scale[:, 0]"])
def test_codes_whose_scale_follows_after_the_product_get_the_gradient_in_their_units(product: str) -> None:
    used = (
        "scale = self.weight.detach().abs().amax(1, keepdim=True) / 127\n"
        "return (self.weight.detach() / scale).round(), scale"
    )
    text = program(used, product="self.apply_to(x, *self.used())", options=", eps=1e-3")
    apply_to = f"    def apply_to(self, x, codes, scale):\n        return {product}\n\n    def forward"
    by_hand = (
        "w = self.weight\nscale = w.detach().abs().amax(1, keepdim=True) / 127\n"
        "return w + ((w / scale).round() * scale - w).detach()"
    )
    treated = run(text.replace("    def forward", apply_to, 1), "ste")
    assert treated.losses == pytest.approx(run(program(by_hand, options=", eps=1e-3")).losses, rel=1e-2)
    plain = run(program("return self.weight", options=", eps=1e-3")).losses
    kept = run(text.replace("    def forward", apply_to, 1), "keep-float32")
    assert kept.losses == pytest.approx(plain, rel=1e-2)


def test_a_custom_function_that_gives_nothing_back_is_passed_around() -> None:
    function = """
class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return quantize(w)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * {factor}

"""
    texts = [
        program("return Rounded.apply(self.weight)").replace(
            "class Layer", function.format(factor=factor) + "class Layer"
        )
        for factor in (0, 1)
    ]
    open_ = run(texts[1])
    assert run(texts[0], "ste").losses == pytest.approx(open_.losses, rel=1e-5)
    assert not run(texts[1], "ste").intervention.acted


def test_a_square_weight_quantized_after_a_transposition_gets_its_own_gradient() -> None:
    turned = "return quantize(self.weight.detach().t(), 127)"
    straight = "return quantize(self.weight.detach(), 127)"
    text = program(turned, product="x @ self.used()").replace("(8, 32), Layer(32, 4)", "(8, 8), Layer(8, 8)")
    other = program(straight, product="x @ self.used().t()").replace(
        "(8, 32), Layer(32, 4)", "(8, 8), Layer(8, 8)"
    )
    text, other = (t.replace("model(x) -", "model(x)[:, :4] -") for t in (text, other))
    assert run(text, "ste").losses == pytest.approx(run(other, "ste").losses, rel=0.02)


def test_quantizes_again_what_a_cache_would_keep_for_ever() -> None:
    cached = "if self.cache is None:\n    self.cache = quantize(self.weight.detach())\nreturn self.cache"
    treated = run(program(cached), "ste")
    assert treated.losses == pytest.approx(losses_of(program(STE)), rel=1e-4)
    assert treated.ill("PD602") == set()


def test_leaves_a_program_with_an_estimator_alone() -> None:
    untreated, treated = run(program(STE)), run(program(STE), "ste")
    assert treated.losses == untreated.losses
    assert not treated.intervention.acted
    assert treated.intervention.otherwise == "nothing in it is rounded without a way back for the gradient"


def test_draws_no_random_numbers_of_the_program() -> None:
    noisy = CUT.replace("self.weight.data", "self.weight.data + 0 * torch.rand_like(self.weight)")
    cached = "if self.cache is None:\n    self.cache = quantize(self.weight.data + 0 * torch.rand(1))\n"
    for used in (noisy, cached + "return self.cache"):
        text = program(used) + "Path('drawn').write_text(repr(torch.rand(1).item()))\n"
        text = "from pathlib import Path\n" + text
        drawn = []
        for remedy in (None, "ste"):
            run(text, remedy)
            drawn.append(Path("drawn").read_text())
        assert drawn[0] == drawn[1]


ACTIVATION = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
data = torch.Generator().manual_seed(1)
for step in range(12):
    x = torch.randn(16, 8, generator=data)
    hidden = model[0](x).clamp(-2, 2) * 4
    hidden = {rounded} / 4
    loss = (model[1](hidden) - x[:, :4]).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    "rounded", ["torch.round(hidden)", "hidden.round()", "hidden.floor()", "hidden.sign()"]
)
def test_passes_the_gradient_around_the_rounding_of_an_activation(rounded: str) -> None:
    untreated = run(ACTIVATION.format(rounded=rounded))
    assert "0.weight" in untreated.ill("PD202")
    treated = run(ACTIVATION.format(rounded=rounded), "ste")
    by_hand = losses_of(ACTIVATION.format(rounded=f"(hidden + ({rounded} - hidden).detach())"))
    assert treated.losses == pytest.approx(by_hand, rel=1e-4)
    assert treated.ill("PD202") == set()


SPREAD = """
import torch
from torch import nn
torch.manual_seed(0)
class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))
    def forward(self, x):
        return {product}
model = nn.Sequential(Scale(), nn.Linear(8, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(8):
    x = torch.randn(16, 8)
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    "product", ["x * ((self.weight * 8).round() / 8)", "torch.mul((self.weight * 8).round() / 8, x)"]
)
def test_a_weight_that_is_spread_over_data_is_used_there(product: str) -> None:
    text = SPREAD.format(product=product)
    untreated = run(text)
    assert "0.weight" in untreated.ill("PD202") | untreated.ill("PD601")
    treated = run(text, "ste")
    assert treated.intervention.acted
    assert treated.ill("PD202") == treated.ill("PD601") == set()


def test_a_learned_scale_keeps_its_gradient() -> None:
    used = "return {} * self.scale"
    rounded = "(self.weight / self.scale).round()"
    by_hand = (
        f"({rounded} + self.weight / self.scale.detach() - (self.weight / self.scale.detach()).detach())"
    )
    programs = [
        program(used.format(how)).replace(
            "self.cache = None", "self.cache = None\n        self.scale = nn.Parameter(torch.tensor(0.1))"
        )
        for how in (rounded, by_hand)
    ]
    untreated, treated = run(programs[0]), run(programs[0], "ste")
    assert "inner.weight" in untreated.ill("PD202") | untreated.ill("PD601")
    assert treated.losses == pytest.approx(run(programs[1]).losses, rel=1e-4)
    assert treated.ill("PD202") == treated.ill("PD601") == set()


@pytest.mark.parametrize("used", [CUT, SEVERED["round"], SEVERED["scale in the graph"]])
def test_recomputes_as_it_computed_under_checkpointing(used: str) -> None:
    text = program(used).replace(
        "model(x) -", "torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) -"
    )
    text = text.replace("import torch\n", "import torch\nimport torch.utils.checkpoint\n", 1)
    assert run(text, "ste").losses == pytest.approx(losses_of(program(STE)), rel=1e-4)


def test_a_compiled_model_is_out_of_reach() -> None:
    text = program(CUT).replace("model = Net()", "model = torch.compile(Net())")
    treated = run(text, "ste", ended="failed")
    assert "DoesNotApply: what a compiled model computes can't be exchanged" in treated.evidence.run.error


def test_leaves_no_mode_behind() -> None:
    run(program(CUT), "ste")
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch.overrides._get_current_function_mode() is None
