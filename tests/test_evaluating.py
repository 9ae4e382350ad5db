"""compare and memory as they are typed: files, exit codes, one line for bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from precdoctor.cli import main

GOOD = """
import torch
from torch import nn
class Odd(nn.Module):
    def forward(self, x):
        return x
def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    model.add_module("<script>alert(1)</script>", Odd())
    x = torch.randn(24, 8)
    return model, [(x[i:i + 8], torch.arange(8) % 3) for i in (0, 8, 16)], nn.CrossEntropyLoss()
"""
EMPTY = GOOD.replace("for i in (0, 8, 16)", "for i in ()")
NAN = GOOD.replace("x = torch.randn(24, 8)", "x = torch.full((24, 8), float('nan'))")
TEXTS = GOOD.replace("[(x[i:i + 8], torch.arange(8) % 3) for i in (0, 8, 16)]", "[('a text', 3)]")
META = GOOD.replace("    x = torch.randn", '    model.to("meta")\n    x = torch.randn')
FLOAT32 = GOOD.replace(
    "        return x", "        assert x.dtype == torch.float32, 'not implemented'\n        return x"
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("evaluated", "_precdoctor")):
            del sys.modules[name]


def run(*arguments: str, text: str = GOOD) -> Result:
    Path("evaluated.py").write_text(text, encoding="utf-8")
    return CliRunner().invoke(main, arguments, prog_name="precdoctor")


def test_compare_prints_a_table_and_ends_with_what_follows() -> None:
    found = run(
        "compare", "evaluated.py:build", "--formats", "bfloat16,nf4", "--json", "c.json", "--html", "c.html"
    )
    assert found.exit_code == 0, found.output
    for word in ("float32", "bfloat16", "nf4*", "difference", "simulated", "layer by layer"):
        assert word in found.stdout
    document = json.loads(Path("c.json").read_text(encoding="utf-8"))
    assert document["schema"] == "precdoctor.comparison/1"
    assert [one["name"] for one in document["formats"]] == ["float32", "bfloat16", "nf4"]
    assert " ".join(found.stdout.split()).endswith(document["conclusion"])
    assert document["samples"] == 24
    assert len(document["formats"][1]["losses"]) == 24
    assert "precdoctor: float32, bfloat16" in found.stderr


def test_memory_prints_tables_and_a_stacked_bar() -> None:
    found = run(
        "memory",
        "evaluated.py:build",
        "--batch",
        "16",
        "--recipe",
        "bf16-kahan",
        "--json",
        "m.json",
        "--html",
        "m.html",
    )
    assert found.exit_code == 0, found.output
    for word in (
        "Kahan compensation",
        "packed size",
        "held in training",
        "file size",
        "> bf16-kahan",
        "within",
    ):
        assert word in found.stdout
    document = json.loads(Path("m.json").read_text(encoding="utf-8"))
    assert document["schema"] == "precdoctor.memory/1"
    assert document["batch"] == 16
    assert all(check["holds"] for check in document["checks"])
    page = Path("m.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert page.count("bf16-sr") >= 2, "in the table and in the bar"


@pytest.mark.parametrize("command", ["compare", "memory"])
def test_the_page_is_whole_and_runs_no_script(command: str) -> None:
    run(
        command,
        "evaluated.py:build",
        "--html",
        "page.html",
        *(["--formats", "bfloat16"] if command == "compare" else []),
    )
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    body = page[page.index("<body>") : page.index("</html>")]
    ElementTree.fromstring(body.replace("&nbsp;", " ").replace("&rsquo;", "'"))


BAD = [
    (["nothing.py:build"], GOOD, "nothing.py: no such file"),
    (["evaluated.py:other"], GOOD, "has no function 'other'; it has build"),
    (["evaluated.py"], GOOD, "give FILE.py:FUNCTION"),
    (["evaluated.py:build"], "def build(): return 5", "must return (model, batches, loss)"),
    (["evaluated.py:build"], "def build(): raise OSError('no disk')", "evaluated.py:1: OSError: no disk"),
    (["evaluated.py:build"], TEXTS, "a batch holds a str where a tensor belongs"),
    (["evaluated.py:build"], EMPTY, "there are no batches"),
    (["evaluated.py:build", "--device", "cuda:77"], GOOD, "leave --device out"),
]  # fmt: skip


@pytest.mark.parametrize("command", ["compare", "memory"])
@pytest.mark.parametrize(("arguments", "text", "told"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    command: str, arguments: list[str], text: str, told: str
) -> None:
    found = run(command, *arguments, text=text)
    one_line(found, told)


@pytest.mark.parametrize(
    ("arguments", "text", "told"),
    [
        (["compare", "evaluated.py:build"], META, "is on the meta device and holds no numbers"),
        (["compare", "evaluated.py:build"], NAN, "the loss in float32 is nan for sample 0"),
        (["compare", "evaluated.py:build", "--formats", "float16"], FLOAT32, "leave it out of --formats"),
        (["compare", "evaluated.py:build", "--formats", "int3"], GOOD, "no format 'int3'"),
        (["compare", "evaluated.py:build", "--formats", " , "], GOOD, "names no format"),
        (["compare"], GOOD, "give FILE.py:FUNCTION, or --hf DIR --text FILE"),
        (["compare", "evaluated.py:build", "--hf", "x"], GOOD, "give FILE.py:FUNCTION, or --hf DIR"),
        (["compare", "--hf", "x"], GOOD, "--hf and --text go together"),
        (["compare", "--hf", "x", "--text", "nothing.txt"], GOOD, "nothing.txt: No such file"),
        (["compare", "--hf", "x", "--text", "evaluated.py"], GOOD, "x: no such folder"),
        (["compare", "--hf", ".", "--text", "evaluated.py"], GOOD, "no config.json in it"),
        (["memory", "evaluated.py:build", "--recipe", "fp2"], GOOD, "no recipe 'fp2'; there are fp32"),
        (["memory", "evaluated.py:build", "--batch", "0"], GOOD, "--batch"),
        (["memory", "evaluated.py:build", "--html", "no/such/folder.html"], GOOD, "is not a directory"),
    ],
)
def test_bad_input_of_one_command_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, told: str
) -> None:
    one_line(run(*arguments, text=text), told)


def one_line(found: Result, told: str) -> None:
    assert found.exit_code == 2, found.output
    lines = found.stderr.splitlines()
    assert told in lines[-1]
    assert "Traceback" not in found.output
    assert found.stdout == ""
    assert all(line.startswith("precdoctor: ") and told not in line for line in lines[:-1]), found.stderr


def test_a_model_on_meta_is_estimated_by_memory() -> None:
    found = run("memory", "evaluated.py:build", text=META)
    assert found.exit_code == 0, found.output
    assert "no real step was made" in found.stdout


def test_nan_as_loss_does_not_keep_memory_from_counting() -> None:
    assert run("memory", "evaluated.py:build", text=NAN).exit_code == 0


@pytest.mark.parametrize("command", ["compare", "memory"])
def test_help_says_what_build_returns_and_gives_examples(command: str) -> None:
    found = CliRunner().invoke(main, [command, "--help"], prog_name="precdoctor")
    for word in (
        "build() takes no arguments",
        "(inputs, ..., target)",
        f"precdoctor {command} eval.py:build",
        "Exit",
    ):
        assert word in found.stdout
