"""The claims about order and size hold for what is known and fail for other numbers; so does the run."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from precdoctor import reproduce
from precdoctor.reproduce import Claim, Options, Seen
from precdoctor.reproduce.order import case, claims, runs, sentences, tables

SAMPLE = reproduce.sample_models() / "quantize_order"
WINDOWS = {"old": 470, "new": 338}
#: what is known of width 64: loss on the new and the old text, bytes, SQNR from float32 in dB, and the
#: shares of codes that differ from the pretrained and from the fine-tuned model's
KNOWN: dict[str, tuple[float, float, int, float | None, float | None, float | None]] = {
    "base": (2.294, 1.616, 476_416, 12.9, None, None),
    "base int8": (2.295, 1.6161, 183_808, 12.9, 0, 0.95),
    "base int4": (2.304, 1.653, 134_656, 12.0, 0, None),
    "base int4-g64": (2.312, 1.650, 135_424, 12.0, 0, 0.465),
    "base nf4": (2.321, 1.635, 135_424, 12.3, 0, None),
    "base float16": (2.294, 1.616, 238_208, 12.9, None, None),
    "base bfloat16": (2.294, 1.616, 238_208, 12.9, None, None),
    "base whole numbers": (7.693, 8.149, 476_416, 0.0, None, None),
    "finetune": (1.785, 1.854, 476_416, None, None, None),
    "finetune-lora": (1.849, 1.868, 476_416, 4.5, None, None),
    "finetune int4-g64": (1.815, 1.880, 135_424, 19.2, 0.465, 0.0),
    "finetune-lora int4-g64": (1.892, 1.909, 135_424, 4.3, 0.69, 0.69),
    "qat int4-g64": (1.793, 1.864, 135_424, 18.0, 0.469, 0.141),
    "lora int4-g64": (1.854, 1.875, 200_960, 4.4, 0.0, 0.465),
    "lora-merged int4-g64": (1.886, 1.905, 135_424, 4.2, 0.68, 0.69),
    "dequantized int4-g64": (1.787, 1.857, 476_416, 18.8, None, None),
    "dequantized-again int4-g64": (1.820, 1.868, 135_424, 16.0, 0.417, 0.259),
    "codes int4-g64": (1.977, 1.793, 135_424, 12.0, 0.0, 0.465),
    "finetune int8": (1.7853, 1.854, 183_808, 43.9, 0.95, 0.0),
    "finetune-lora int8": (1.850, 1.868, 183_808, 4.5, 0.97, 0.97),
    "qat int8": (1.7854, 1.854, 183_808, 42.7, 0.95, 0.141),
    "lora int8": (1.849, 1.868, 249_344, 4.5, 0.0, 0.95),
    "lora-merged int8": (1.850, 1.868, 183_808, 4.5, 0.97, 0.97),
    "dequantized int8": (1.785, 1.854, 476_416, 43.4, None, None),
    "dequantized-again int8": (1.7857, 1.854, 183_808, 40.6, 0.95, 0.263),
    "codes int8": (1.893, 1.809, 183_808, 14.3, 0.46, 0.95),
    "autocast": (1.785, 1.854, 476_416, 54.0, None, None),
    "bfloat16": (1.797, 1.851, 238_208, 25.5, None, None),
}
MERGING = {"kept": 1.0, "error": 0.2, "unchanged": 0.3}
SMALL_ERROR = {**MERGING, "error": 0.05}
PRECISIONS = {
    "finetune": {"weights": 476_416, "saved": 11_326_084, "copies": 0},
    "autocast": {"weights": 476_416, "saved": 7_754_372, "copies": 9},
    "bfloat16": {"weights": 238_208, "saved": 7_000_706, "copies": 0},
}
#: what INT4 costs after pretraining, by width and steps
COSTS = {(16, 800): 0.03, (32, 200): 0.003, (32, 800): 0.045, (32, 1600): 0.086, (64, 800): 0.034,
         (128, 800): 0.012}  # fmt: skip


def windows(loss: float, count: int, name: str) -> list[float]:
    """Return losses of windows with this mean: texts vary much, models little."""
    return [loss + difference for difference in differences(count, name)]


@functools.cache
def differences(count: int, name: str) -> list[float]:
    chance = random.Random(name)
    noise = [chance.gauss(0, 0.01) for _ in range(count)]
    text = [math.sin(2 * math.pi * 7 * k / count) for k in range(count)]
    return [0.3 * wave + own - fmean(noise) for wave, own in zip(text, noise, strict=True)]


def model(name: str, **changed: Any) -> dict[str, Any]:
    new, old, size, sqnr, base, finetune = KNOWN[name]
    new, old = changed.get("new", new), changed.get("old", old)
    differ = {"base": changed.get("base", base), "finetune": changed.get("finetune", finetune)}
    return {
        "bytes": changed.get("bytes", size),
        "sqnr_db": {"finetune": changed.get("sqnr", sqnr)},
        "codes_differ": {other: share for other, share in differ.items() if share is not None},
        "new": windows(new, WINDOWS["new"], name),
        "old": windows(old, WINDOWS["old"], name),
    }


def trained(size: tuple[int, int], seed: int, changed: dict[str, dict[str, Any]]) -> runs.Trained:
    ordered = size == (64, 800)
    models = {name: model(name, **changed.get(name, {})) for name in KNOWN if ordered or "base" in name}
    for fmt in ("int4", "int4-g64"):
        at_size = changed.get(f"{size} {fmt}", {"old": KNOWN["base"][1] + COSTS[size]})
        models[f"base {fmt}"] = model(f"base {fmt}", **at_size)
    return runs.Trained(
        dim=size[0],
        pretrain_steps=size[1],
        steps=300,
        seed=seed,
        weights={16: 11_344, 32: 34_976, 64: 119_104, 128: 434_816}[size[0]],
        matrix_weights=98_304,
        models=models,
        merging={"int4-g64": MERGING, "int8": MERGING} if ordered else None,
        precisions=PRECISIONS if ordered and seed == 0 else None,
    )


def known(changed: dict[str, dict[str, Any]] | None = None, **scans: Seen) -> runs.Measured:
    """Return what is known, some of it changed in every seed."""
    return runs.Measured(
        trained={size: [trained(size, seed, changed or {}) for seed in (0, 1)] for size in COSTS},
        scans={"scan-qat": scan(), "scan-lora": scan(), "scan-codes": scan("PD106"), **scans},
    )


def scan(*rules: str) -> Seen:
    findings = [{"rule": rule} for rule in rules]
    return Seen(report={"verdict": "ill" if rules else "healthy", "findings": findings}, losses=())


def all_claims(m: runs.Measured) -> list[Claim]:
    return [*claims.claims(m), *sentences.claims(m)]


def broken(m: runs.Measured) -> list[str]:
    return [claim.what for claim in all_claims(m) if not claim.holds]


def test_every_claim_holds_for_what_is_known() -> None:
    assert broken(known()) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base int8": {"old": 1.63}}, "INT8 hurts a model of any size"),
        ({"(128, 800) int4-g64": {"old": 1.616 + 0.0445}}, "... width 32 more than 128, by"),
        ({"(32, 1600) int4-g64": {"old": 1.616}}, "INT4 hurts width 32 after 200, 800, 1600 steps"),
        ({"(32, 200) int4-g64": {"old": 1.616 + 0.013}}, "size alone does not decide"),
        ({"qat int4-g64": {"finetune": 0.01}}, "INT4 codes that differ between the orders"),
        ({"qat int4-g64": {"bytes": 135_425}}, "INT4 codes that differ between the orders"),
        ({"qat int4-g64": {"new": 1.814}}, "INT4, loss: fine-tuned then rounded, above"),
        ({"qat int4-g64": {"new": 1.814}}, "quantize-then-fine-tune lets fine-tuning compensate"),
        ({"qat int4-g64": {"sqnr": 19.5}}, "... though its weights are no nearer"),
        ({"qat int8": {"new": 1.77}}, "INT8: codes that differ"),
        ({"finetune": {"new": 1.785, "old": 1.65}}, "the old text suffers from the fine-tuning"),
        ({"lora int4-g64": {"new": 1.891}}, "INT4 then adapters, loss below adapters then INT4"),
        ({"lora int4-g64": {"base": 0.1}}, "... its INT4 codes changed by the training"),
        ({"lora-merged int4-g64": {"new": 1.855}}, "... of the gain, lost by it"),
        ({"dequantized int4-g64": {"bytes": 135_424}}, "INT4 to float32, then fine-tuned: stored"),
        ({"dequantized-again int4-g64": {"new": 1.79}}, "... rounded again: loss above fine-tuned"),
        ({"codes int4-g64": {"base": 0.2}}, "INT4 codes trained by themselves"),
        ({"bfloat16": {"new": 1.785}}, "weight update arithmetic is FP32"),
        ({"autocast": {"new": 1.80}}, "activations and gradients can tolerate the noise"),
        ({"base float16": {"old": 1.63}}, "quantization often works at FP32 to FP16"),
        ({"base whole numbers": {"old": 1.7}}, "INT8 / INT4 are integer formats"),
        ({"(64, 800) int4-g64": {"old": 1.65, "bytes": 400_000}}, "quantization shrinks deployed models"),
    ],
)
def test_a_number_that_says_otherwise_breaks_its_claim(changed: dict[str, Any], said: str) -> None:
    assert any(what.startswith(said) for what in broken(known(changed)))


def test_adapters_that_survive_merging_break_their_claim() -> None:
    m = known()
    runs_with_orders = [dataclasses.replace(run, merging={"int4-g64": SMALL_ERROR}) for run in m.orders]
    changed = dataclasses.replace(m, trained={**m.trained, (64, 800): runs_with_orders})
    assert [what[:18] for what in broken(changed)] == ["... rounding error"]


def test_a_scan_that_is_silent_about_codes_or_not_about_training_breaks_its_claim() -> None:
    assert broken(known(**{"scan-codes": scan("PD101")})) == ["precdoctor scan, codes trained by themselves"]
    assert broken(known(**{"scan-lora": scan("PD201")})) == ["precdoctor scan, adapters on INT4"]


def test_neighbouring_windows_count_as_one_observation() -> None:
    run = known().orders[0]
    pairs = zip(run.models["qat int8"]["new"], run.models["finetune"]["new"], strict=True)
    steps = [one - other for one, other in pairs]
    means = [sum(steps[start : start + 8]) / 8 for start in range(0, 336, 8)]
    centre = sum(means) / 42
    error = math.sqrt(sum((mean - centre) ** 2 for mean in means) / 41 / 42)

    found = run.difference("qat int8", "finetune", "new")
    assert found.error == pytest.approx(error)
    assert found.mean == pytest.approx(sum(steps) / 338)


def test_what_is_printed_fits_100_columns() -> None:
    m = known()
    text = case.text(m, claims.claims(m), sentences.claims(m))
    plain = re.sub(r"\x1b\[\d+m", "", text)
    assert max(map(len, plain.splitlines())) <= 100
    assert "Both orders, width 64, int8" in plain
    assert "14.1 %" in plain


def test_a_difference_below_two_standard_errors_is_marked() -> None:
    rows = {line.split("  ")[0]: line for line in tables.orders(known(), "int8").splitlines()}
    assert "~" in rows["fine-tuned, then rounded"]
    assert "~" not in rows["codes trained by themselves"]


def test_a_quick_run_has_fewer_and_smaller_runs(tmp_path: Path) -> None:
    whole = runs.commands(SAMPLE, tmp_path, Options())
    quick = runs.commands(SAMPLE, tmp_path, Options(quick=True))

    assert len(whole) == 12
    assert list(quick) == ["d32-800-seed0", "d64-800-seed0", "d32-200-seed0"]
    assert "--orders" in quick["d32-800-seed0"]
    assert sum("--keep" in command for command in whole.values()) == 1
    assert [name for name, command in whole.items() if "--orders" in command] == list(whole)[:2]


def test_results_of_an_earlier_run_are_gone_before_this_one(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    earlier = tmp_path / "runs" / "d32-800-seed0.json"
    earlier.write_text("{}")
    runs.commands(SAMPLE, tmp_path, Options(quick=True))

    assert not earlier.exists()


@pytest.mark.scenario
def test_the_quick_run_shows_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.reproduce("order", out=tmp_path, quick=True) == 0
    written = json.loads((tmp_path / "order.json").read_text(encoding="utf-8"))
    assert {claim["holds"] for claim in [*written["known"], *written["document"]]} == {True}
    assert len(list((tmp_path / "models").glob("*.pt"))) > 15
    assert "precdoctor scan" in capsys.readouterr().err
