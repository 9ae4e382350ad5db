"""The sample about orders: right formats, recipes that train what they say, models stored as they are."""

from __future__ import annotations

import hashlib
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

SAMPLE = reproduce.sample_models() / "quantize_order"
NAMES = ("artefact", "comparing", "data", "layers", "model", "quantizers", "recipes", "training")
FORMATS = ("int8", "int4", "int4-g64", "nf4")


@pytest.fixture
def tiny_lm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(str(SAMPLE))
    yield SimpleNamespace(**{name: importlib.import_module(f"tiny_lm.{name}") for name in NAMES})
    for name in [name for name in sys.modules if name.partition(".")[0] == "tiny_lm"]:
        del sys.modules[name]


def build(tiny_lm: SimpleNamespace, dim: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return tiny_lm.model.LanguageModel(tiny_lm.model.ModelConfig(d_model=dim))


def prepared(tiny_lm: SimpleNamespace, recipe: str, fmt: str = "int4-g64") -> nn.Module:
    return tiny_lm.recipes.prepare(build(tiny_lm), recipe, tiny_lm.quantizers.FORMATS[fmt])


def trained(tiny_lm: SimpleNamespace, recipe: str, fmt: str = "int4-g64", steps: int = 3) -> nn.Module:
    text = tiny_lm.data.ByteText(tiny_lm.data.MODULES, 64)
    return tiny_lm.training.train(prepared(tiny_lm, recipe, fmt), text, steps, 1e-3, batch_size=2)


# ---------------------------------------------------------------------- formats


@pytest.mark.parametrize("name", FORMATS)
def test_each_weight_becomes_the_nearest_value_of_its_block(tiny_lm: SimpleNamespace, name: str) -> None:
    fmt = tiny_lm.quantizers.FORMATS[name]
    torch.manual_seed(0)
    weight = torch.randn(6, 128)
    weight[2] = 0
    codes, scale = fmt.quantize(weight)
    levels = tiny_lm.quantizers.NF4_LEVELS if name == "nf4" else range(-fmt.largest, fmt.largest + 1)
    rows = weight.view(-1, fmt.block or 128)
    nearest = [
        [min((level * size for level in levels), key=lambda value, w=w: abs(value - w)) for w in row]
        for row, size in zip(rows.tolist(), scale.flatten().tolist(), strict=True)
    ]

    assert scale.dtype == torch.float16
    torch.testing.assert_close(fmt.dequantize(codes, scale).view(rows.shape), torch.tensor(nearest))


@pytest.mark.parametrize(
    ("name", "error"), [("int8", 1.26e-4), ("int4", 2.289e-3), ("int4-g64", 1.825e-3), ("nf4", 1.456e-3)]
)
def test_formats_err_on_normal_weights_as_known(tiny_lm: SimpleNamespace, name: str, error: float) -> None:
    torch.manual_seed(0)
    weights = 0.02 * torch.randn(1536, 384)
    rounded = tiny_lm.quantizers.round_trip(tiny_lm.quantizers.FORMATS[name], weights)

    assert (rounded - weights).abs().mean().item() == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("name", FORMATS)
def test_packing_loses_no_code(tiny_lm: SimpleNamespace, name: str) -> None:
    fmt = tiny_lm.quantizers.FORMATS[name]
    codes, _ = fmt.quantize(torch.randn(8, 64))
    packed = tiny_lm.quantizers.pack(codes, fmt.bits)

    assert packed.nbytes == codes.numel() * fmt.bits // 8
    assert torch.equal(tiny_lm.quantizers.unpack(packed, codes.shape, fmt), codes)


# ---------------------------------------------------------------------- recipes


def test_qat_uses_rounded_weights_and_trains_the_others(tiny_lm: SimpleNamespace) -> None:
    model = prepared(tiny_lm, "qat")
    layer = model.blocks[0].up
    x = torch.randn(3, 64)
    layer(x).sum().backward()

    torch.testing.assert_close(layer(x), x @ tiny_lm.quantizers.round_trip(layer.fmt, layer.weight).T)
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(256, 64))


def test_adapters_leave_the_quantized_weights_as_they_are(tiny_lm: SimpleNamespace) -> None:
    before, after = prepared(tiny_lm, "lora"), trained(tiny_lm, "lora")
    parameters = dict(after.named_parameters())

    assert {name for name, p in parameters.items() if p.requires_grad} == {
        name for name in parameters if "lora" in name
    }
    assert all(torch.equal(a, b) for a, b in zip(before.buffers(), after.buffers(), strict=True))
    assert all(layer.delta().abs().max() > 0 for _, layer in tiny_lm.layers.linears(after))


def test_codes_by_themselves_stay_on_their_grid(tiny_lm: SimpleNamespace) -> None:
    for _, layer in tiny_lm.layers.linears(trained(tiny_lm, "codes", "int8")):
        codes = layer.fmt.codes(layer.weight, layer.scale)
        assert torch.equal(layer.fmt.dequantize(codes, layer.scale), layer.weight)


def test_adapters_start_from_the_model_that_they_are_added_to(tiny_lm: SimpleNamespace) -> None:
    tokens = torch.randint(256, (2, 64))
    torch.testing.assert_close(prepared(tiny_lm, "finetune-lora")(tokens), build(tiny_lm)(tokens))


# ---------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("recipe", ["finetune", "finetune-lora", "qat", "lora", "codes", "dequantized"])
def test_what_is_stored_computes_what_the_model_computed(tiny_lm: SimpleNamespace, recipe: str) -> None:
    model = trained(tiny_lm, recipe)
    fmt = "int4-g64" if recipe in ("qat", "lora", "codes") else None
    tokens = torch.randint(256, (2, 64))

    restored = tiny_lm.artefact.restore(tiny_lm.artefact.store(model, fmt))
    torch.testing.assert_close(restored(tokens), model(tokens))


def test_bytes_are_those_of_codes_scales_and_what_stays_float32(tiny_lm: SimpleNamespace) -> None:
    matrices = 2 * (4 * 64 * 64 + 2 * 64 * 256)
    rest = 4 * ((256 + 64) * 64 + 5 * 64)  # embedding, positions, norms
    adapters = 4 * 8 * 2 * ((64 + 192) + (64 + 64) + 2 * (64 + 256))
    size, store = tiny_lm.artefact.n_bytes, tiny_lm.artefact.store

    assert size(store(build(tiny_lm))) == 4 * matrices + rest
    assert size(store(build(tiny_lm), "int4-g64")) == matrices // 2 + 2 * matrices // 64 + rest
    lora = size(store(prepared(tiny_lm, "lora"), "int4-g64"))
    assert lora == matrices // 2 + 2 * matrices // 64 + rest + adapters


def test_merging_tells_small_adapters_from_large_ones(tiny_lm: SimpleNamespace) -> None:
    model = prepared(tiny_lm, "lora")
    figures = {}
    for size in (1e-4, 10.0):
        for _, layer in tiny_lm.layers.linears(model):
            nn.init.normal_(layer.lora_b, std=size)
        figures[size] = tiny_lm.comparing.merging(model)

    assert figures[1e-4]["unchanged"] == 1
    assert figures[1e-4]["kept"] == pytest.approx(0, abs=0.05)
    assert figures[10.0]["kept"] == pytest.approx(1, abs=0.02)
    assert figures[10.0]["unchanged"] < 0.2


def test_codes_of_the_same_model_do_not_differ(tiny_lm: SimpleNamespace) -> None:
    one, other = (tiny_lm.artefact.store(build(tiny_lm), "int4") for _ in range(2))
    assert tiny_lm.comparing.codes_that_differ(one, other) == 0
    other["tensors"]["blocks.0.up.codes"][0] ^= 1
    count = tiny_lm.comparing.codes(one).numel()
    assert tiny_lm.comparing.codes_that_differ(one, other) == 1 / count


# ---------------------------------------------------------------------- data and programs


def test_the_code_is_what_its_notice_says(tiny_lm: SimpleNamespace) -> None:
    text = tiny_lm.data.MODULES.read_bytes()
    notice = (SAMPLE / "data" / "NOTICE.txt").read_text(encoding="utf-8")
    assert f"{len(text)} bytes" in notice
    assert hashlib.sha256(text).hexdigest() in notice


def test_validation_text_is_not_trained_on(tiny_lm: SimpleNamespace) -> None:
    text = tiny_lm.data.ByteText(tiny_lm.data.MODULES, 64)
    whole = text.train_data.tolist() + text.val_data.tolist()
    first, _ = next(text.val_batches(batch_size=1))

    assert bytes(whole) == tiny_lm.data.MODULES.read_bytes()
    assert first[0].tolist() == text.val_data[:64].tolist()


@pytest.mark.scenario
@pytest.mark.parametrize("recipe", ["finetune", "qat", "lora"])
def test_trains_from_nothing_or_from_what_was_kept(recipe: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, str(SAMPLE / "train.py"), "--dim", "32", "--steps", "2", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    base = str(tmp_path / "base.pt")
    first = run("--pretrain-steps", "2", "--save-base", base, "--recipe", recipe)
    again = run("--base", base, "--recipe", recipe, "--save", str(tmp_path / "tuned.pt"))

    assert first.splitlines()[-3:] == again.splitlines()[-3:]
    stored = torch.load(tmp_path / "tuned.pt", weights_only=True)
    assert stored["format"] == (None if recipe == "finetune" else "int4-g64")


@pytest.mark.scenario
def test_compares_all_orders(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, str(SAMPLE / "compare.py"), "--dim", "16", "--pretrain-steps", "2"]
    command += ["--steps", "2", "--orders", "int4-g64", "--mixed", "--results", str(results)]
    subprocess.run([*command, "--keep", str(tmp_path / "models")], check=True, timeout=120)

    measured = json.loads(results.read_text(encoding="utf-8"))
    models = measured["models"]
    assert {path.stem for path in (tmp_path / "models").iterdir()} == {n.replace(" ", "-") for n in models}
    assert {len(model["new"]) for model in models.values()} == {338}
    assert models["lora int4-g64"]["codes_differ"]["base"] == 0
    assert measured["precisions"]["autocast"]["saved"] < measured["precisions"]["finetune"]["saved"]
