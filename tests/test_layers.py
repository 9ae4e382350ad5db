"""Imports point one way: observation makes evidence, everything after it only reads evidence."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import precdoctor

PACKAGE = Path(precdoctor.__file__).parent

#: What each part may import of ours. A new part needs a line here: that is where its place is decided.
MAY_IMPORT: dict[str, frozenset[str]] = {
    part: frozenset(others.split())
    for part, others in {
        "formats": "",
        "evidence": "",
        "rules": "evidence formats",
        "trials": "evidence formats rules",
        "report": "evidence formats rules trials",
        "numerics": "formats",
        "observe": "evidence formats numerics",
        "doctor": "evidence formats numerics observe report rules",
        "program": "",
        "script": "doctor evidence observe program remedies",
        "retake": "evidence rules",
        "reproduce": "evidence formats numerics report rules script",
        "remedies": "evidence formats numerics observe rules",
        "treat": "doctor evidence formats numerics observe program remedies report rules script trials",
        "fix": "doctor evidence formats numerics observe program remedies report rules script treat trials",
        "checkpoints": "evidence formats numerics report rules",
        "evaluation": "",
        "comparison": "evaluation formats numerics report rules",
        "memory": "evaluation formats numerics remedies report rules",
        "cli": "checkpoints comparison doctor evaluation evidence fix formats memory program remedies report "
        "reproduce retake rules script treat trials",
        "__init__": "checkpoints comparison doctor evidence formats report rules",
        "__main__": "cli",
    }.items()
}
WITHOUT_TORCH = ("formats", "evidence", "rules", "trials", "report")


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def source_files() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if "sample_models" not in path.relative_to(PACKAGE).parts
    ]


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted name of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    names = (name.split(".") for name in imported(path))
    own = {name[1] for name in names if name[0] == "precdoctor" and len(name) > 1}
    return {part for part in own if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()}


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_what_its_layer_may(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} has no place among the layers yet: give it a line in MAY_IMPORT"
    assert imported_parts(path) - {part} <= MAY_IMPORT[part]


def test_the_layers_have_no_cycle() -> None:
    placed: set[str] = set()
    while ready := {part for part, below in MAY_IMPORT.items() if part not in placed and below <= placed}:
        placed |= ready
    assert placed == set(MAY_IMPORT)


def test_layers_without_torch_rest_only_on_each_other() -> None:
    for part in WITHOUT_TORCH:
        assert MAY_IMPORT[part] <= set(WITHOUT_TORCH)


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_formats_evidence_rules_and_report_never_name_torch(path: Path) -> None:
    if part_of(path) in WITHOUT_TORCH:
        assert "torch" not in {name.split(".")[0] for name in imported(path)}


def loads_torch(code: str) -> bool:
    """Tell whether torch is loaded after `code` has run in a fresh interpreter."""
    ending = "\nimport sys\nprint('\\nloaded' if 'torch' in sys.modules else '\\nnot loaded')"
    run = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-1] == "loaded"


@pytest.mark.parametrize(
    "module",
    [
        "precdoctor",
        "precdoctor.cli",
        "precdoctor.evidence",
        "precdoctor.formats",
        "precdoctor.remedies",
        "precdoctor.report",
        "precdoctor.rules",
        "precdoctor.treat",
        "precdoctor.trials",
    ],
)
def test_light_modules_load_no_torch(module: str) -> None:
    assert not loads_torch(f"import {module}")


@pytest.mark.parametrize("arguments", [["--help"], ["rules"], ["explain", "PD101"], ["formats"]])
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    assert not loads_torch(
        f"from precdoctor.cli import main\ntry:\n    main({arguments})\nexcept SystemExit as end:\n"
        "    assert not end.code"
    )
