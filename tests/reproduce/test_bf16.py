"""The claims about a case hold for the sick run and fail for a healthy one; its program really trains."""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import torch

from precdoctor import reproduce
from precdoctor.cli.running import reproduce as command
from precdoctor.reproduce import Claim, Seen, bf16, reading, scenario

SAMPLE = reproduce.sample_models() / "bf16_moe_lm"
NORMS = [f"layers.{layer}.{norm}.weight" for layer in range(3) for norm in ("attn_norm", "moe_norm")]
NORMS += [f"layers.{layer}.attn.{norm}.weight" for layer in range(3) for norm in ("q_norm", "k_norm")]
NORMS += ["norm.weight"]
SIGNS = (
    "gradients flow",
    "the optimizer steps and holds the model's parameters",
    "the learning rate is in range",
)


def row(name: str, shape: list[int], *, frozen: bool) -> dict[str, Any]:
    low, high = (1.0, 1.0) if frozen or "norm" not in name else (0.99, 1.02)
    return {
        "name": name,
        "shape": shape,
        "numel": 8,
        "edq": 0.0 if frozen else 1.0,
        "lost_share": 1.0 if frozen else 0.0,
        "headroom_bits": {"p5": -6.0, "p50": -4.0, "p95": -3.0 if frozen else 9.0},
        "gradient": {"present": 160, "absent": 0},
        "weight": {"abs_min": low, "abs_max": high, "moved_share": 0.0 if frozen else 1.0},
        "updates": {
            "intended": 1280,
            "ups_applied": 0 if frozen else 700,
            "downs_applied": 0 if frozen else 580,
        },
    }


def seen(*, sick: bool) -> Seen:
    """Return what the program shows: with frozen norms, or as its float32 twin."""
    line = reading.line_of(SAMPLE / "train.py", "model.to(dtype=torch.bfloat16)")
    finding = {
        "rule": "PD101",
        "subjects": [{"kind": "parameter", "name": name} for name in NORMS],
        "locations": [
            {"file": "a/train.py", "line": line, "role": "cause", "certain": True},
            {"file": "a/muon_optimizer.py", "line": 70, "role": "site", "certain": True},
        ],
    }
    report = {
        "verdict": "ill" if sick else "healthy",
        "vital_signs": [{"name": name, "status": "ok", "text": ""} for name in SIGNS],
        "findings": [finding] if sick else [],
        "parameters": [
            *(row(name, [8], frozen=sick) for name in NORMS),
            row("layers.0.attn.wq.weight", [2, 4], frozen=False),
        ],
    }
    return Seen(report=report, losses=(5.5, 4.0, 3.2 if sick else 3.0))


def claims(sick: Seen, twin: Seen) -> list[Claim]:
    return bf16.claims(SAMPLE, {"bfloat16": sick, "float32": twin})


def broken(changed: Seen) -> list[str]:
    return [claim.what for claim in claims(changed, seen(sick=False)) if not claim.holds]


def test_every_claim_holds_for_frozen_norms_beside_a_healthy_twin() -> None:
    assert [claim for claim in claims(seen(sick=True), seen(sick=False)) if not claim.holds] == []


def test_the_claims_of_the_illness_fail_for_a_healthy_run() -> None:
    failed = broken(seen(sick=False))
    assert {"verdict", "norms with every weight still exactly 1.0", "norm updates lost", "its cause"} <= set(
        failed
    )
    assert not [what for what in failed if what.startswith("float32")]


def test_the_claims_of_health_fail_for_a_frozen_twin() -> None:
    failed = [claim.what for claim in claims(seen(sick=True), seen(sick=True)) if not claim.holds]
    assert len([what for what in failed if what.startswith("float32")]) == 5


def test_one_norm_element_that_moved_is_not_overlooked() -> None:
    changed = copy.deepcopy(seen(sick=True))
    norm = changed.report["parameters"][4]
    norm["updates"]["downs_applied"], norm["weight"]["abs_min"], norm["lost_share"] = 1, 0.99609375, 0.9999
    assert broken(changed) == [
        "norms with every weight still exactly 1.0",
        "norm updates lost",
        "norm elements stored higher / lower",
    ]


def test_a_cause_at_another_line_does_not_pass() -> None:
    changed = copy.deepcopy(seen(sick=True))
    changed.report["findings"][0]["locations"][0]["line"] += 1
    assert broken(changed) == ["its cause"]


def test_a_cause_that_was_guessed_does_not_pass() -> None:
    changed = copy.deepcopy(seen(sick=True))
    changed.report["findings"][0]["locations"][0]["certain"] = False
    assert broken(changed) == ["its cause"]


def test_what_was_not_seen_does_not_hold() -> None:
    nothing = Seen(
        report={"verdict": "unknown", "vital_signs": [], "findings": [], "parameters": []}, losses=()
    )
    failed = [claim for claim in claims(nothing, nothing) if not claim.holds]
    assert [claim.what for claim in claims(nothing, nothing) if claim.holds] == [
        "norm elements stored higher / lower"
    ]
    assert {claim.seen for claim in failed} >= {"unknown", "missing", "nothing"}


def test_a_norm_whose_updates_were_not_seen_does_not_hold() -> None:
    changed = copy.deepcopy(seen(sick=True))
    norm = changed.report["parameters"][0]
    norm.update(edq=None, lost_share=None, weight=None)
    del norm["updates"]
    assert "norm elements stored higher / lower" in broken(changed)
    assert "norm updates lost" in broken(changed)


# ---------------------------------------------------------------------- the command


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let `reproduce` find reports without running anything; holds the arguments of the program."""
    calls: list[list[str]] = []

    def scan(script: Path, argv: list[str], stem: Path) -> Seen:
        assert script == SAMPLE / "train.py"
        calls.append([*argv, stem.name])
        return seen(sick="--dtype" not in argv)

    monkeypatch.setattr(bf16, "scan", scan)
    return calls


def test_says_what_was_expected_and_what_was_seen(
    scans: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.reproduce("bf16", out=tmp_path / "new" / "folder", steps=7) == 0
    assert scans == [
        ["--device", "cpu", "--steps", "7", "bfloat16"],
        ["--device", "cpu", "--dtype", "float32", "--steps", "7", "float32"],
    ]
    text = capsys.readouterr().out
    assert re.search(r"norm updates lost +100 % +100 %", text)
    assert "20 of 20 as expected" in text
    assert str(tmp_path / "new" / "folder") in text


def test_exits_with_1_when_a_claim_fails(
    scans: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bf16, "scan", lambda *_: seen(sick=False))
    monkeypatch.chdir(tmp_path)
    assert reproduce.reproduce("bf16") == 1
    assert not scans
    assert (tmp_path / "precdoctor-reproduce-bf16").is_dir()


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(click.UsageError, match="no scenario 'fp3'; there is: bf16"):
        reproduce.reproduce("fp3")


def test_the_command_offers_every_case() -> None:
    name = next(parameter for parameter in command.params if parameter.name == "name")
    assert isinstance(name.type, click.Choice)
    assert list(name.type.choices) == [scenario.name for scenario in reproduce.SCENARIOS]


def test_prints_plain_ascii_where_nothing_else_can_be_shown(
    scans: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert reproduce.reproduce("bf16", out=tmp_path) == 0
    sys.stdout.flush()
    assert b"20 of 20 as expected" in printed.getvalue()


def test_a_case_without_a_quick_form_says_so(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="no quick form"):
        reproduce.reproduce("bf16", out=tmp_path, quick=True)


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(click.ClickException, match="cannot write to"):
        reproduce.reproduce("bf16", out=tmp_path / "file")


def test_does_not_take_an_earlier_report_for_that_of_a_run_that_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for suffix in (".json", ".html", ".evidence.json"):
        (tmp_path / f"bfloat16{suffix}").write_text("{}")
    monkeypatch.setattr(scenario.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    with pytest.raises(click.ClickException, match="under observation ended with exit code 0"):
        reproduce.reproduce("bf16", out=tmp_path)


# ---------------------------------------------------------------------- the program


@pytest.fixture
def moe_arch(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(SAMPLE)
    yield SimpleNamespace(
        data=importlib.import_module("moe_arch.data"),
        model=importlib.import_module("moe_arch.model"),
        training=importlib.import_module("moe_arch.training"),
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "moe_arch"]:
        del sys.modules[name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norms_move_in_float32_and_not_in_bfloat16(moe_arch: SimpleNamespace, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = moe_arch.model.ModelConfig(dim=32, n_layers=2, expert_dim=32, max_seq_len=32)
    model = moe_arch.model.MoETransformer(config).to(dtype=dtype)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizers = moe_arch.training.create_optimizers(model)
    data = moe_arch.data.ByteDataset(seq_len=32)
    trainer = moe_arch.training.Trainer(model, optimizers, data, total_steps=3, batch_size=4, warmup_steps=1)
    losses = [trainer.train_step()[0]["loss"].item() for _ in range(3)]
    assert losses[-1] < losses[0] < 6
    after = dict(model.named_parameters())
    norms = [name for name in after if "norm" in name]
    assert len(norms) == 9
    for name in after:
        still = dtype == torch.bfloat16 and name in norms
        assert torch.equal(after[name], before[name]) == still, name
        assert after[name].dtype == dtype


def test_every_matrix_goes_to_one_optimizer(moe_arch: SimpleNamespace) -> None:
    model = moe_arch.model.MoETransformer(moe_arch.model.ModelConfig())
    muon, adamw = moe_arch.training.create_optimizers(model, lr=1e-3)
    held = [id(p) for opt in (muon, adamw) for group in opt.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for p in muon.param_groups[0]["params"])
    assert muon.param_groups[0]["lr"] == 1e-3
    assert adamw.param_groups[0]["lr"] == pytest.approx(3e-4)
    assert sum("norm" in name for name, _ in model.named_parameters()) == bf16._NORMS


def test_newton_schulz_brings_the_singular_values_near_1(moe_arch: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((48, 96), (96, 48), (64, 64)):
        newton_schulz = sys.modules[moe_arch.training.Muon.__module__].newton_schulz
        values = torch.linalg.svdvals(newton_schulz(torch.randn(shape, generator=generator)))
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_the_corpus_is_the_one_that_its_notice_describes() -> None:
    text = (SAMPLE / "data" / "python_topics.txt").read_bytes()
    notice = (SAMPLE / "data" / "NOTICE.txt").read_text(encoding="utf-8")
    assert hashlib.sha256(text).hexdigest() in notice
    assert f"{len(text)} bytes" in notice
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in notice


@pytest.mark.scenario
def test_bf16_shows_what_is_known_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = reproduce.reproduce("bf16", out=tmp_path, steps=40)
    text = capfd.readouterr().out
    assert code == 0, text
    sick = json.loads((tmp_path / "bfloat16.json").read_text(encoding="utf-8"))
    assert sick["findings"][0]["rule"] == "PD101"
    assert "html" in (tmp_path / "float32.html").read_text(encoding="utf-8")
