from __future__ import annotations

import json
import re
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import precdoctor
from precdoctor import Report, diff
from precdoctor.checkpoints import CheckpointError
from precdoctor.checkpoints.names import matched, plain
from precdoctor.cli import main
from precdoctor.evidence import Contents, Tensor, from_json, to_json
from precdoctor.formats import FormatError
from tests.checkpoints.build import saved, state, step, trained

SCHEMA = json.loads((resources.files("precdoctor") / "report" / "report.schema.json").read_text())


def contents(report: Report) -> Contents:
    found = report.evidence.contents
    assert found is not None
    return found


def tensors(report: Report) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in contents(report).tensors}


def rules(report: Report, *severities: str) -> list[str]:
    return [f.rule for f in report.findings if f.severity in (severities or ("error", "warning"))]


def pair(tmp_path: Path, dtype: torch.dtype = torch.bfloat16, steps: int = 30) -> tuple[Path, Path]:
    """Return checkpoints before and after some steps, state included."""
    model, optimizer = trained(dtype, steps=1, lr=3e-4)
    first = saved(state(model, optimizer), tmp_path / "first.pt")
    step(model, optimizer, steps)
    return first, saved(state(model, optimizer), tmp_path / "last.pt")


def test_a_norm_that_never_moved_is_found_with_its_numbers(tmp_path: Path) -> None:
    report = diff(*pair(tmp_path))
    (finding,) = [f for f in report.findings if f.rule == "PD701"]
    assert [s.name for s in finding.subjects] == ["model.1.weight"]
    assert finding.severity == "error"
    row = tensors(report)["model.1.weight"]
    assert (row.identical, row.stepped, row.driven) == (True, True, True)
    assert row.last is not None
    assert row.last.constant == 1.0
    assert report.verdict == "ill"


def test_the_same_in_float32_is_healthy(tmp_path: Path) -> None:
    report = diff(*pair(tmp_path, torch.float32))
    assert report.findings == ()
    assert report.ok
    assert all(t.identical is False for t in tensors(report).values() if t.kind == "parameter")


def test_bfloat16_copies_of_float32_masters_raise_no_error(tmp_path: Path) -> None:
    model, optimizer = trained(steps=1, lr=3e-4)
    low = lambda: {name: w.bfloat16() for name, w in model.state_dict().items()}  # noqa: E731
    first = saved(low(), tmp_path / "a.pt")
    step(model, optimizer, 200)
    report = diff(first, saved(low(), tmp_path / "b.pt"))
    assert rules(report) == []


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    model, optimizer = trained(torch.bfloat16, steps=1)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    step(model, optimizer, 30)
    seen = []
    for kind in ("pt", "safetensors"):
        paths = [tmp_path / f"{which}.{kind}" for which in ("a", "b")]
        for path, weights in zip(paths, (before, model.state_dict()), strict=True):
            save_file(weights, path) if kind == "safetensors" else torch.save(weights, path)
        seen.append(
            {t.name: (t.first, t.second, t.travel, t.identical) for t in contents(diff(*paths)).tensors}
        )
    assert seen[0] == seen[1]


def test_a_distributed_checkpoint_has_a_prognosis_as_well(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    model, optimizer = trained(torch.bfloat16, lr=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state(model, optimizer), checkpoint_id=tmp_path / "dcp")
    plain_file = diff(saved(state(model, optimizer), tmp_path / "a.pt"))
    found = diff(tmp_path / "dcp")
    told = {name: t.prognoses for name, t in tensors(found).items() if t.prognoses}
    assert told == {name: t.prognoses for name, t in tensors(plain_file).items() if t.prognoses}
    assert len(told) == 6
    assert rules(found) == rules(plain_file)
    both = diff(tmp_path / "a.pt", tmp_path / "dcp")
    assert all(tensor.identical for tensor in tensors(both).values())


def test_a_trainers_directory_says_what_it_could_not_match(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    saved(optimizer.state_dict(), tmp_path / "optimizer.pt")
    report = diff(tmp_path)
    known = [t.name for t in contents(report).tensors if t.prognoses]
    assert set(known) == {"model.0.weight", "model.2.weight", "model.2.bias"}
    assert "for 3 of 6 there is no telling" in report.evidence.run.limits[0]


def test_formats_that_changed(tmp_path: Path) -> None:
    weights = {"w": torch.randn(100, 10), "b": torch.randn(100)}
    first = saved(weights, tmp_path / "a.pt")
    second = saved({name: w.bfloat16() for name, w in weights.items()}, tmp_path / "b.pt")
    report = diff(first, second)
    assert rules(report, "note") == ["PD702"]
    assert all(t.travel is not None and t.travel.rounded for t in tensors(report).values())


def test_float32_that_holds_bfloat16_is_seen_in_one_file(tmp_path: Path) -> None:
    model, optimizer = trained()
    value = state(model, optimizer)
    value["model"] = {name: w.bfloat16().float() for name, w in value["model"].items()}
    report = diff(saved(value, tmp_path / "a.pt"))
    assert rules(report) == ["PD702"]
    assert tensors(report)["model.0.weight"].last.fits == "bfloat16"  # type: ignore[union-attr]


def test_missing_and_extra_tensors_and_other_shapes(tmp_path: Path) -> None:
    first = saved({"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(3)}, tmp_path / "a.pt")
    second = saved({"b": torch.ones(4), "c": torch.ones(3), "d": torch.ones(3)}, tmp_path / "b.pt")
    found = tensors(diff(first, second))
    assert (found["a"].second, found["d"].first) == (None, None)
    assert (found["b"].travel, found["b"].identical) == (None, None)
    text = re.sub(r"\s", "", str(diff(first, second)))  # long paths are wrapped
    assert re.search(r"Onlyin\S*a\.pt:a", text)
    assert re.search(r"Onlyin\S*b\.pt:d", text)


def test_ties_and_how_they_break(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    model[1].weight = model[0].weight
    first = saved(model.state_dict(), tmp_path / "a.pt")
    (shared,) = contents(diff(first)).shared
    assert (shared.names, shared.by, shared.broken) == (("0.weight", "1.weight"), "storage", None)
    apart = {"0.weight": model[0].weight.detach() + 0.1, "1.weight": model[0].weight.detach()}
    report = diff(first, saved(apart, tmp_path / "b.pt"))
    assert "PD605" in rules(report)
    assert contents(diff(first, first)).shared[0].broken is False


def test_equal_data_under_two_names_is_said_and_no_tie(tmp_path: Path) -> None:
    weight = torch.randn(16, 16)
    value = {"a": weight, "b": weight.clone(), "ones": torch.ones(100), "more": torch.ones(100)}
    (shared,) = contents(diff(saved(value, tmp_path / "a.pt"))).shared
    assert (shared.names, shared.by) == (("a", "b"), "data")


def test_names_of_wrappers_and_containers_do_not_matter(tmp_path: Path) -> None:
    weights = {"layer.0.weight": torch.randn(8, 8), "layer.0.bias": torch.randn(8)}
    wrapped = {f"_orig_mod.module.{name}": w + 0.1 for name, w in weights.items()}
    found = tensors(
        diff(
            saved(weights, tmp_path / "a.pt"),
            saved({"model": wrapped, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "b.pt"),
        )
    )
    assert set(found) == set(weights)
    assert all(tensor.travel is not None for tensor in found.values())


def test_names_are_matched_without_what_all_of_them_begin_with() -> None:
    assert plain(("model", "module._orig_mod.a.weight")) == "model.a.weight"
    assert plain(("module",)) == "module"
    first, second = matched({"model.a": 1, "model.b": 2, "epoch": 3}, {"a": 4, "b": 5})
    assert first == {"a": 1, "b": 2, "epoch": 3}
    assert second == {"a": 4, "b": 5}
    assert matched({"a": 1}, {"b": 2}) == ({"a": 1}, {"b": 2})


def test_buffers_integers_and_state_are_rows_and_no_findings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    model.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, 32, 2) / 32))
    model.register_buffer("mask", torch.full((8, 8), -float("inf")).triu(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    paths = []
    for name in ("a", "b"):
        model(torch.randn(16, 8)).square().sum().backward()
        optimizer.step()
        paths.append(saved(state(model, optimizer), tmp_path / f"{name}.pt"))
    report = diff(*paths)
    found = tensors(report)
    assert found["model.1.num_batches_tracked"].identical is False
    assert (
        found["model.inv_freq"].kind
        == found["model.mask"].kind
        == found["model.1.running_var"].kind
        == "buffer"
    )
    assert found["optimizer.state.0.exp_avg"].kind == "state"
    assert found["optimizer.state.0.exp_avg"].travel is not None
    assert report.findings == ()


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    first = saved({"w": torch.randn(10)}, tmp_path / "a.pt")
    second = saved({"w": torch.tensor([1.0, float("nan")] * 5)}, tmp_path / "b.pt")
    assert rules(diff(first, second)) == ["PD704"]
    assert rules(diff(second)) == ["PD704"]


def test_select_and_ignore(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    assert "PD703" in rules(diff(*paths))
    assert set(rules(diff(*paths, select=["PD701"]))) == {"PD701"}
    assert "PD701" not in rules(diff(*paths, ignore=["unchanged-parameter"]))


def test_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    diff(*pair(tmp_path), progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_what_it_raises(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        diff(tmp_path / "missing.pt")
    with pytest.raises(FormatError, match="no format named 'bf17'"):
        diff(saved({"w": torch.ones(2)}, tmp_path / "a.pt"), formats=["bf17"])
    assert precdoctor.diff is diff


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return diff(*pair(tmp_path_factory.mktemp("ill")))


def test_evidence_survives_a_file(ill: Report) -> None:
    assert from_json(to_json(ill.evidence)) == ill.evidence


def test_json_keeps_the_schema_and_has_a_row_per_tensor(ill: Report) -> None:
    document = json.loads(ill.to_json())
    jsonschema.validate(document, SCHEMA)
    rows = {row["name"]: row for row in document["checkpoints"]["tensors"]}
    assert rows["model.1.weight"]["travel"]["identical_share"] == 1.0
    assert rows["model.1.weight"]["rules"] == ["PD701", "PD703"]
    stored = document["checkpoints"]["next_update"][0]
    assert stored["stored"]
    assert 0 < stored["lost_share"] <= 1
    subjects = [s for f in document["findings"] for s in f["subjects"]]
    assert {"kind": "parameter", "name": "model.1.weight"} in subjects


def test_sarif_points_at_the_file(ill: Report) -> None:
    results = json.loads(ill.to_sarif())["runs"][0]["results"]
    assert results
    for result in results:
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"].endswith("last.pt")
        assert location["logicalLocations"]


def test_the_page_shows_all_and_escapes_names(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    page = diff(
        saved({name: torch.randn(10)}, tmp_path / "a.pt"), saved({name: torch.randn(10)}, tmp_path / "b.pt")
    )
    html = page.to_html()
    assert "&lt;script&gt;alert(1)" in html
    assert name not in html.split("</style>")[1].split('<script type="application/json"')[0]
    assert 'id="tensors"' in html
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"|http://www\.w3\.org\S+', "", html).split("<body>")[1]


def test_the_page_of_one_file_has_the_prognosis(tmp_path: Path) -> None:
    html = diff(pair(tmp_path)[1]).to_html()
    assert 'id="next-update"' in html
    assert "equals the first moment" in html
    assert "bfloat16 (stored)" in html


def test_a_page_of_many_tensors_stays_small(tmp_path: Path) -> None:
    many = {f"model.layers.{i}.mlp.experts.{i % 8}.up_proj.weight": torch.randn(2) for i in range(5000)}
    html = diff(saved(many, tmp_path / "a.pt")).to_html()
    assert len(html) < 2_000_000


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_text_keeps_to_the_terminal(width: str, ill: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    text = str(ill)
    assert max(map(len, text.splitlines())) <= int(width)
    assert "model.1.weight" in text


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["diff", *map(str, arguments)], prog_name="precdoctor")
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_the_command_writes_every_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = pair(tmp_path)
    files = {name: tmp_path / f"report.{name}" for name in ("json", "html", "sarif", "save")}
    options = [part for name, file in files.items() for part in (f"--{name}", file)]
    code, out, err = run(capsys, *paths, *options)
    assert code == 1
    assert "PD701 unchanged-parameter" in out
    assert all(file.stat().st_size > 1000 for file in files.values())
    assert err.count("written to") == 3 + 1
    with pytest.raises(SystemExit) as end:
        main(["diagnose", str(files["save"])])
    assert end.value.code == 1
    assert "PD701 unchanged-parameter" in capsys.readouterr().out


@pytest.mark.parametrize(("fail_on", "code"), [("error", 0), ("warning", 1), ("never", 0)])
def test_exit_codes(fail_on: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pair(tmp_path)[1]
    assert run(capsys, path, "--fail-on", fail_on)[0] == code


def test_formats_by_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pair(tmp_path, torch.float32)[1]
    _, out, _ = run(capsys, path, "--format", "e4m3fn", "--format", "bfloat16,e5m2")
    assert re.search(r"float32 \(stored\).*\n.*e4m3fn .*\n.*bfloat16 .*\n.*e5m2 ", out)
    code, _, err = run(capsys, path, "--format", "bf17")
    assert code == 2
    assert "no format named 'bf17'" in err


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
