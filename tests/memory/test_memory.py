"""Bytes by recipe: by hand for a model that can be added up, against a real step for others."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.evaluation import Evaluation, EvaluationError
from precdoctor.formats import block_format
from precdoctor.memory import CATEGORIES, RECIPES, memory
from precdoctor.memory.packed import PackedLinear, pack_linears
from precdoctor.numerics import fake_quantize

NAMES = [recipe.name for recipe in RECIPES]


class Transformer(nn.Module):
    """A token model with tied weights, a buffer and attention."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(32))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.scale
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.head(x)


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def transformer(batch: int = 4, **options: Any) -> Evaluation:
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (batch, 16))
    return Evaluation.of(Transformer(**options), [(tokens, tokens)], token_loss, name="t")


def convolutions() -> Evaluation:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(512, 5),
    )
    return Evaluation.of(
        model, [(torch.randn(4, 3, 8, 8), torch.randint(0, 5, (4,)))], nn.CrossEntropyLoss(), name="t"
    )


def linear(rows: int = 6) -> Evaluation:
    return Evaluation.of(
        nn.Linear(10, 4), [(torch.randn(rows, 10), torch.randn(rows, 4))], nn.MSELoss(), name="t"
    )


def test_what_a_linear_layer_holds_by_hand() -> None:
    found = memory(linear())
    held = found.chosen.bytes
    assert set(held) == set(CATEGORIES)
    assert held["weights"] == 44 * 4
    assert held["gradients"] == 44 * 4
    assert held["optimizer state"] == 2 * 44 * 4 + 2 * 4  # and a step counter for each of two parameters
    # kept: the output and the target are kept by the loss; the input is the batch itself
    assert held["activations"] == 6 * 4 * 4
    assert found.chosen.total_bytes == sum(held.values())
    assert found.elements == 44


def test_bytes_per_parameter_of_every_recipe_are_those_of_the_literature() -> None:
    """Weight, gradient, two moments, master or compensation; counters aside."""
    torch.manual_seed(0)
    wide = Evaluation.of(
        nn.Sequential(nn.Linear(512, 512, bias=False)),
        [(torch.randn(2, 512), torch.randn(2, 512))],
        nn.MSELoss(),
        name="t",
    )
    found = memory(wide, check=False)
    per = {one.recipe: one.between_bytes / found.elements for one in found.recipes}
    codes, group = 0.5, 1 / 32
    known = {
        "fp32": 16, "amp": 16, "bf16": 8, "bf16-master": 16, "bf16-kahan": 14, "bf16-sr": 12,
        "8bit-adam": 4 + 4 + 2 * (1 + 4 / 256),
        "fp4-mxfp4": 16 + codes + group, "fp4-nvfp4": 16 + codes + 1 / 16,
        "fp4-nf4": 16 + codes + 4 / 64, "fp4-bnb-fp4": 16 + codes + 4 / 64,
    }  # fmt: skip
    assert per == pytest.approx(known, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        *((name, transformer) for name in NAMES),
        *((name, convolutions) for name in ("amp", "bf16-kahan", "8bit-adam", "fp4-nf4")),
    ],
)
def test_every_recipe_agrees_with_a_real_step(name: str, build: Callable[[], Evaluation]) -> None:
    found = memory(build(), recipe_name=name)
    assert len(found.checks) == 2
    for check in found.checks:
        assert check.measured_bytes > 0
        assert check.holds, f"{check.what}: {check.estimated_bytes} against {check.measured_bytes}"
    assert found.peak_bytes is not None
    assert found.peak_bytes >= found.checks[0].measured_bytes


def test_the_batch_is_what_one_pass_sees() -> None:
    small, large = memory(transformer(), batch=2), memory(transformer(), batch=12)
    assert (small.batch, large.batch) == (2, 12)
    assert small.chosen.between_bytes == large.chosen.between_bytes
    grown = large.chosen.bytes["activations"] - small.chosen.bytes["activations"]
    assert grown == pytest.approx(10 * small.chosen.per_sample_bytes, rel=0.01)
    assert all(check.holds for check in (*small.checks, *large.checks))
    assert memory(transformer(batch=5)).batch == 5


def test_a_batch_without_samples_can_not_be_resized() -> None:
    evaluation = Evaluation.of(
        nn.Linear(3, 3),
        [(torch.randn(4, 3), torch.randn(()))],
        lambda o, t: (o - t).square().mean(),
        name="t",
    )
    assert memory(evaluation).chosen.total_bytes > 0
    with pytest.raises(EvaluationError, match="leave --batch out"):
        memory(evaluation, batch=8)


def test_tied_weights_are_counted_once() -> None:
    tied, untied = memory(transformer(), check=False), memory(transformer(tied=False), check=False)
    assert untied.elements - tied.elements == 50 * 32
    assert untied.chosen.bytes["weights"] - tied.chosen.bytes["weights"] == 50 * 32 * 4


def test_what_is_frozen_has_neither_gradient_nor_state() -> None:
    evaluation = transformer()
    evaluation.model.get_submodule("qkv").requires_grad_(False)
    found = memory(evaluation)
    assert found.elements - found.trained_elements == 32 * 96 + 96
    assert found.chosen.bytes["gradients"] == found.trained_elements * 4
    assert all(check.holds for check in found.checks)


def test_a_model_on_meta_is_estimated_as_a_real_one_and_not_checked() -> None:
    real, evaluation = memory(transformer(), check=False), transformer()
    with torch.device("meta"):  # a move to meta would untie
        on_meta = Transformer()
    found = memory(dataclasses.replace(evaluation, model=on_meta))
    assert found.recipes == real.recipes
    assert found.checks == ()
    assert any("no real step" in note for note in found.notes)


def test_three_numbers_are_three() -> None:
    found = memory(transformer(tied=False), recipe_name="fp4-nf4")
    fmt = block_format("nf4")
    packed = sum(fmt.held_bytes(shape) for shape in ((96, 32), (32, 32), (50, 32)))
    rest = 4 * (50 * 32 + 96 + 32 + 2 * 32)  # embedding, biases, norm
    assert found.packed_bytes == packed + rest
    assert found.chosen.total_bytes > found.file_bytes > found.packed_bytes
    assert found.checkpoint_bytes > found.file_bytes


def test_file_size_is_that_of_a_file() -> None:
    evaluation = transformer()
    file = io.BytesIO()
    torch.save(evaluation.model.state_dict(), file)
    found = memory(evaluation)
    assert found.files_measured
    assert found.file_bytes == pytest.approx(len(file.getvalue()), rel=0.02)


def test_a_model_that_looks_at_numbers_is_measured_on_a_real_pass() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return y if y.sum().item() > 1e9 else y.exp()

    evaluation = Evaluation.of(Looks(), [(torch.randn(4, 8), torch.randn(4, 8))], nn.MSELoss(), name="t")
    found = memory(evaluation)
    assert any("real forward pass" in note for note in found.notes)
    assert all(check.holds for check in found.checks)


def test_a_recipe_that_the_model_can_not_be_run_in_is_left_out_unless_asked_for() -> None:
    class Float32Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32, "only float32"
            return self.linear(x)

    evaluation = Evaluation.of(Float32Only(), [(torch.randn(4, 8), torch.randn(4, 8))], F.mse_loss, name="t")
    found = memory(evaluation)
    assert [one.recipe for one in found.recipes] == [name for name in NAMES if not name.startswith("bf16")]
    assert sum("left out bf16" in note and "only float32" in note for note in found.notes) == 4
    assert str(found)
    with pytest.raises(EvaluationError, match="the model raised AssertionError in bf16: only float32"):
        memory(evaluation, recipe_name="bf16")


def test_a_model_that_does_not_fit_its_data_is_one_line() -> None:
    evaluation = Evaluation.of(
        nn.Linear(3, 3), [(torch.randn(4, 5), torch.randn(4, 3))], F.mse_loss, name="t"
    )
    with pytest.raises(EvaluationError, match="the model raised RuntimeError in fp32: mat1 and mat2"):
        memory(evaluation)


def test_the_model_itself_is_not_changed() -> None:
    evaluation = transformer()
    evaluation.model.eval()
    before, state = copy.deepcopy(evaluation.model.state_dict()), torch.get_rng_state()
    for name in ("bf16-sr", "fp4-nvfp4"):
        memory(evaluation, recipe_name=name)
    assert all(torch.equal(before[name], value) for name, value in evaluation.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not evaluation.model.training
    assert all(p.grad is None and p.dtype == torch.float32 for p in evaluation.model.parameters())


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "nf4", "bnb-fp4"])
@pytest.mark.parametrize("shape", [(6, 64), (3, 33)])
def test_a_packed_layer_computes_what_its_format_says(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    fmt, plain = block_format(name), nn.Linear(shape[1], shape[0])
    layer = PackedLinear(plain, fmt)
    x = torch.randn(2, 5, shape[1], requires_grad=True)
    found = layer(x)
    rounded = fake_quantize(plain.weight, fmt)
    torch.testing.assert_close(found, F.linear(x, rounded, plain.bias))
    found.square().sum().backward()
    y, w = x.detach().clone().requires_grad_(), rounded.clone().requires_grad_()
    F.linear(y, w, plain.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(plain.weight.grad, w.grad, msg="straight through")


def test_packed_layers_take_the_bytes_that_the_format_says() -> None:
    for name in ("mxfp4", "nvfp4", "nf4"):
        model = pack_linears(nn.Sequential(nn.Linear(96, 32, bias=False)), block_format(name))
        held = sum(buffer.nbytes for buffer in model.buffers())
        assert held == block_format(name).held_bytes((32, 96))


def test_a_model_without_anything_to_train_is_one_line() -> None:
    evaluation = linear()
    evaluation.model.requires_grad_(False)
    with pytest.raises(EvaluationError, match="no parameter requires a gradient"):
        memory(evaluation)


def test_a_loss_that_is_cut_off_is_one_line() -> None:
    evaluation = Evaluation.of(
        nn.Linear(3, 3), [(torch.randn(4, 3), torch.randn(4, 3))], lambda o, t: o.detach().mean(), name="t"
    )
    with pytest.raises(EvaluationError, match="does not depend on any parameter"):
        memory(evaluation)
