from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from precdoctor.rules import CATALOGUE, Rule

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ["What it means", "Why it hurts", "Criterion", "Blind spots", "Remedies", "References"]
every_rule = pytest.mark.parametrize("rule", CATALOGUE, ids=lambda rule: rule.id)


def test_ids_are_unique_and_in_order() -> None:
    ids = [rule.id for rule in CATALOGUE]
    assert ids == sorted(set(ids))
    assert len({rule.name for rule in CATALOGUE}) == len(CATALOGUE)


@every_rule
def test_one_name_in_four_places(rule: type[Rule]) -> None:
    stem = rule.name.replace("-", "_")
    assert rule.__module__ == f"precdoctor.rules.{stem}"
    assert rule.example == f"{stem}.py"
    assert (ROOT / "sample_models" / "rules" / rule.example).exists()
    assert (ROOT / "docs" / "rules" / f"{rule.name}.md").exists()
    assert (ROOT / "tests" / "rules" / f"test_{stem}.py").exists()


@every_rule
def test_a_page_has_all_sections_and_a_first_sentence(rule: type[Rule]) -> None:
    page = inspect.cleandoc(rule.__doc__ or "")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS
    assert re.match(r"[A-Z].*\.$", page.splitlines()[0])
    for text in re.split(r"^## .+$", page, flags=re.MULTILINE)[1:]:
        assert len(text.split()) >= 8


@every_rule
def test_a_sample_is_short_and_marks_what_is_expected(rule: type[Rule]) -> None:
    source = (ROOT / "sample_models" / "rules" / rule.example).read_text("utf-8")
    assert f"# expect: {rule.id} " in source
    assert "--healthy" in source
    assert len([line for line in source.splitlines() if line.strip()]) <= 50


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
