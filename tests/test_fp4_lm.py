"""The FP4 sample has the sizes of the report that it reproduces; its recipes do what they are named for."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from precdoctor import reproduce

SAMPLE = reproduce.sample_models() / "fp4_lm"
#: recipes whose weights are trained through the quantizer
TRAINED = ["ste-bnb-fp4", "ste-nvfp4", "ste-mxfp4", "ste-nf4", "ste-int8", "ste-fp8", "no-master-int8"]


@pytest.fixture
def small_lm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(str(SAMPLE))
    names = ("ceilings", "data", "layers", "memory", "model", "quantizers", "recipes", "training")
    yield SimpleNamespace(**{name: importlib.import_module(f"small_lm.{name}") for name in names})
    for name in [name for name in sys.modules if name.partition(".")[0] == "small_lm"]:
        del sys.modules[name]


def build(small_lm: SimpleNamespace, recipe: str, *, size: str = "cpu") -> nn.Module:
    chosen = small_lm.recipes.RECIPES[recipe]
    config = small_lm.model.SIZES[size]
    with torch.device("meta") if size == "full" else contextlib.nullcontext():
        torch.manual_seed(42)
        return small_lm.model.LanguageModel(config, chosen.linear, chosen.quantized, chosen.tied)


def backward(model: nn.Module) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(1024, (2, 33))
    logits = model(tokens[:, :-1]).flatten(0, 1)
    nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()


@pytest.mark.parametrize(
    ("recipe", "total", "quantized"),
    [
        ("baseline", 29_496_192, 0),
        ("untied", 48_370_560, 0),
        ("fp4-reported", 48_370_560, 29_491_200),
        ("ste-bnb-fp4", 48_370_560, 29_491_200),
    ],
)
def test_the_full_size_has_the_weights_of_the_report(
    small_lm: SimpleNamespace, recipe: str, total: int, quantized: int
) -> None:
    model = build(small_lm, recipe, size="full")

    assert small_lm.memory.count(model) == (total, quantized, total - quantized)


def test_the_memory_of_the_report_is_an_estimate_below_what_is_held(small_lm: SimpleNamespace) -> None:
    model = build(small_lm, "fp4-reported", size="full")
    assert small_lm.memory.estimated_savings(model) == pytest.approx(0.457, abs=5e-4)
    assert small_lm.memory.packed_bytes(model, 4.5) == pytest.approx(92.1e6, rel=1e-3)

    small = build(small_lm, "fp4-reported")
    weights = small_lm.memory.held_bytes(small)
    backward(small)  # the first forward pass fills the caches

    _, quantized, _ = small_lm.memory.count(small)
    assert small_lm.memory.held_bytes(small) == weights + quantized * (4 + 4 / 8) / 8


def test_sizes_need_no_training() -> None:
    recipes = ["baseline", "fp4-reported", "ste-bnb-fp4"]
    command = [sys.executable, SAMPLE / "sizes.py", *recipes, "--size", "full"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    tied, reported, repaired = (json.loads(done.stdout)[name] for name in recipes)

    assert reported["parameters"]["without_gradient"] == 29_491_200
    assert reported["held_bytes"] == pytest.approx(210.1e6, rel=1e-3)
    assert (tied["training_bytes"], reported["training_bytes"]) == pytest.approx((472e6, 437e6), rel=1e-3)
    assert tied["flops"] == repaired["flops"]
    # a third of what linear layers multiply is for the gradients of their weights; attention has none
    assert reported["flops"] / tied["flops"] == pytest.approx(0.69, abs=0.01)


def test_as_reported_no_quantized_weight_has_a_gradient(small_lm: SimpleNamespace) -> None:
    model = build(small_lm, "fp4-reported")
    quantized = small_lm.memory.quantized_layers(model)
    backward(model)

    assert len(quantized) == 13
    assert all(layer.weight.requires_grad and layer.weight.grad is None for layer in quantized)
    assert model.embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("recipe", TRAINED)
def test_trained_through_the_quantizer_every_weight_has_a_gradient(
    small_lm: SimpleNamespace, recipe: str
) -> None:
    model = build(small_lm, recipe)
    backward(model)

    for layer in small_lm.memory.quantized_layers(model):
        assert (layer.weight.grad != 0).float().mean() > 0.99


@pytest.mark.parametrize(
    ("recipe", "share"),
    [("zero-gradient", (0, 0)), ("scale-in-graph", (0.01, 0.02)), ("clip-1-sigma", (0.6, 0.8))],
)
def test_other_faults_leave_this_share_of_the_gradient(
    small_lm: SimpleNamespace, recipe: str, share: tuple[float, float]
) -> None:
    model = build(small_lm, recipe)
    backward(model)
    gradients = torch.cat([layer.weight.grad.flatten() for layer in small_lm.memory.quantized_layers(model)])

    low, high = share
    assert low <= (gradients != 0).float().mean() <= high


def test_a_buffer_is_no_parameter(small_lm: SimpleNamespace) -> None:
    model = build(small_lm, "buffer")

    assert sum(p.numel() for p in model.parameters()) == small_lm.memory.count(model)[2]


def test_without_cuda_the_original_does_not_quantize(small_lm: SimpleNamespace) -> None:
    layer = small_lm.layers.FP4Linear(64, 8, 0.02, cpu_fallback=True)

    assert layer.used_weight() is layer.weight


def test_the_cache_is_stale_after_a_step_of_the_fused_optimizer(small_lm: SimpleNamespace) -> None:
    recipe = small_lm.recipes.RECIPES["stale-cache"]
    model = build(small_lm, "stale-cache")
    optimizer = small_lm.training.create_optimizer(model, 1e-2, 1e-3, 0.1, fused=recipe.fused)
    used = model.head.used_weight().detach().clone()
    before = model.head.weight.detach().clone()
    backward(model)
    optimizer.step()

    assert not torch.equal(model.head.weight, before)
    torch.testing.assert_close(model.head.used_weight().detach(), used)


def test_packing_keeps_the_value_that_is_nearest(small_lm: SimpleNamespace) -> None:
    quantizers = small_lm.quantizers
    torch.manual_seed(0)
    weight = torch.randn(8, 128)
    weight[0, :64] = 0
    packed, absmax, shape = quantizers.quantize_fp4(weight)
    levels = torch.tensor([*quantizers.FP4_LEVELS, *(-level for level in quantizers.FP4_LEVELS)])
    candidates = weight.view(-1, 64).abs().amax(1).repeat_interleave(64).unsqueeze(1) * levels
    distance = (weight.view(-1, 1) - candidates).abs().amin(1)

    assert packed.dtype == torch.uint8
    assert packed.numel() == weight.numel() / 2
    error = quantizers.dequantize_fp4(packed, absmax, shape) - weight
    torch.testing.assert_close(error.abs().flatten(), distance)


@pytest.mark.parametrize(
    ("quantizer", "error"),
    [
        ("bnb_fp4", 1.931e-3),
        ("nf4", 1.456e-3),
        ("mxfp4", 1.675e-3),
        ("nvfp4", 1.429e-3),
        ("int4", 2.289e-3),
        ("int8", 1.26e-4),
        ("fp8", 3.59e-4),
    ],
)
def test_quantizers_err_on_normal_weights_as_known(
    small_lm: SimpleNamespace, quantizer: str, error: float
) -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(1152, 384), torch.randn(1536, 384), torch.randn(384, 1536)]
    quantize = getattr(small_lm.quantizers, quantizer)
    total = sum((quantize(0.02 * w) - 0.02 * w).abs().sum().item() for w in matrices)

    # the largest weight of a row of 1,536 is larger than that of 384: per-channel formats err a little more
    assert total / sum(w.numel() for w in matrices) == pytest.approx(error, rel=0.05)


def test_the_text_of_its_own_is_not_trained_on(small_lm: SimpleNamespace) -> None:
    data = small_lm.data
    leaky = data.Corpus(data.DEFAULT_CORPUS, 300, 32, 2000, honest_tokens=640)
    clean = data.Corpus(data.DEFAULT_CORPUS, 300, 32, 2000, split="clean", honest_tokens=640)

    assert len(leaky.tokens) == 2000
    assert not set(leaky.train.indices) & set(leaky.val.indices)
    assert len(leaky.val) == len(leaky.train) // 9
    assert clean.val is clean.honest
    following = torch.cat([leaky.honest[index][0] for index in range(len(leaky.honest))])
    tokens = data.Corpus(data.DEFAULT_CORPUS, 300, 32, 2640, honest_tokens=640).tokens
    assert torch.equal(tokens[2000 : 2000 + len(following)], following)


def test_ceilings_are_those_of_the_text(small_lm: SimpleNamespace) -> None:
    tokens = torch.tensor([1, 2, 1, 2, 1, 3, 4, 4])
    assert small_lm.ceilings.majority_share(tokens) == 3 / 8
    # 1 -> 2 twice and 3 once, 2 -> 1 twice, 3 -> 4, 4 -> 4
    assert small_lm.ceilings.bigram_ceiling(tokens) == 6 / 7


def test_what_only_sees_the_current_token_is_context_free(small_lm: SimpleNamespace) -> None:
    torch.manual_seed(0)
    batches = [(torch.randint(16, (4, 32)), None)]
    share = small_lm.ceilings.context_free_share
    assert share(nn.Embedding(16, 16), batches, "cpu") == 1
    assert share(nn.Sequential(nn.Embedding(16, 16), nn.Dropout(0)), batches, "cpu") == 1
    assert share(build(small_lm, "untied"), [(torch.randint(16, (8, 32)), None)], "cpu") < 1


def test_the_training_text_is_as_predictable_from_one_token_as_it_should_be(
    small_lm: SimpleNamespace,
) -> None:
    data = small_lm.data
    corpus = data.Corpus(data.DEFAULT_CORPUS, 1024, 32, 5200, start=data.DEFAULT_START)
    assert small_lm.ceilings.bigram_ceiling(corpus.tokens) == pytest.approx(0.39, abs=0.005)
    clean = data.Corpus(data.DEFAULT_CORPUS, 1024, 32, 100_000, split="clean", start=data.DEFAULT_START)
    assert (len(clean.tokens), len(clean.honest)) == (100_000, 312)


@pytest.mark.parametrize("recipe", ["fp4-reported", "ste-nvfp4"])
def test_trains(recipe: str, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    arguments = ["--recipe", recipe, "--updates", "6", "--eval-every", "3", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, SAMPLE / "train.py", *arguments, "--results", results],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    measured = json.loads(results.read_text(encoding="utf-8"))
    first, last = measured["history"]
    assert (first["step"], last["step"]) == (12, 24)
    assert "Step 24: Loss=" in done.stdout
    assert last["loss"] < 7.5
    assert (first["error"] == last["error"]) == (recipe == "fp4-reported")
    assert 0 < abs(measured["unquantized"]["loss"] - last["loss"]) < 0.2
