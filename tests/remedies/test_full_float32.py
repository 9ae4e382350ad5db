from __future__ import annotations

import pytest
import torch

from precdoctor.remedies.float32_mode import Float32Mode
from tests.remedies.running import harms_no_healthy_one, in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]


def made_in(how: str) -> str:
    return net(cast="").replace("model = Net()", how)


@pytest.mark.parametrize(
    "text",
    [
        net(),
        net(cast="model.half()"),
        net(cast="model = model.to('cpu', torch.bfloat16)"),
        net(cast="for p in model.parameters(): p.data = p.data.bfloat16()"),
        net().replace(
            "out = model(x.to(next(model.parameters()).dtype))", "out = model(x.to(torch.bfloat16))"
        ),
        made_in("torch.set_default_dtype(torch.bfloat16)\nmodel = Net()"),
    ],
    ids=["to", "half", "device", "data", "inputs", "default"],
)
def test_nothing_is_computed_in_16_bits(text: str) -> None:
    treated = run(text, "float32")
    assert treated.formats == {"float32"}
    assert treated.ill() == set()


def test_is_the_program_without_its_cast() -> None:
    assert run(net(), "float32").losses == run(net(cast=""), None).losses


def test_autocast_regions_are_off() -> None:
    region = "with torch.autocast('cpu', dtype=torch.bfloat16): out = model(x)"
    text = net(cast="").replace("out = model(x.to(next(model.parameters()).dtype))", region)
    assert run(text, "float32").losses == run(net(cast="")).losses


def test_harms_no_float32_program() -> None:
    harms_no_healthy_one("float32", applies=True)


def test_the_default_dtype_is_given_back() -> None:
    run(made_in("torch.set_default_dtype(torch.bfloat16)\nmodel = Net()"), "float32")
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(1).bfloat16().dtype == torch.bfloat16


def test_starts_from_the_weights_that_the_low_format_would_have_drawn() -> None:
    def drawn() -> list[torch.Tensor]:
        torch.manual_seed(3)
        layer = torch.nn.Linear(20, 37, dtype=torch.bfloat16)
        torch.nn.init.normal_(layer.weight)
        parts = [*layer.parameters(), torch.randn(5, 37, dtype=torch.float16)]
        parts.append(torch.randn_like(parts[-1]))
        truncated = torch.empty(50, dtype=torch.bfloat16)
        torch.nn.init.trunc_normal_(truncated, std=0.02)
        return [*(p.detach() for p in parts), truncated, torch.rand(5)]

    expected = drawn()
    mode = Float32Mode()
    mode.__enter__()
    try:
        found = drawn()
    finally:
        mode.leave()
    assert {t.dtype for t in found} == {torch.float32}
    for low, wide in zip(expected, found, strict=True):
        torch.testing.assert_close(wide, low.float(), rtol=0, atol=2e-4)
    assert torch.equal(expected[-1], found[-1]), "the generator is where it would have been"


def test_reinterpreted_bits_stay_what_they_are() -> None:
    mode = Float32Mode()
    mode.__enter__()
    try:
        assert torch.zeros(4).view(torch.bfloat16).dtype == torch.bfloat16
    finally:
        mode.leave()


def test_converts_frozen_weights_and_buffers_that_were_loaded_low() -> None:
    loaded = (
        "raw = torch.zeros(32, dtype=torch.int16).view(torch.bfloat16)\n"
        "model.inner.bias = nn.Parameter(raw.clone(), requires_grad=False)\n"
        "model.register_buffer('scale', raw.clone())"
    )
    text = net(cast=loaded) + "assert model.scale.dtype == model.inner.bias.dtype == torch.float32\n"
    text = text.replace(
        "AdamW(model.parameters()", "AdamW([p for p in model.parameters() if p.requires_grad]"
    )
    run(text.replace("next(model.parameters()).dtype", "torch.float32"), "float32")


def test_matches_the_untreated_program_where_there_is_nothing_to_cure() -> None:
    untreated, treated = run(net(steps=4)), run(net(steps=4), "float32")
    assert treated.losses == pytest.approx(untreated.losses, rel=0.02)
