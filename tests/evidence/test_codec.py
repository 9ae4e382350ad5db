"""Evidence goes to JSON and back without loss, and bad files are refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precdoctor.evidence import Evidence, EvidenceError, Run, from_json, load, save, to_json

TYPES = {name: kind for name, kind in get_type_hints(Evidence).items() if name not in ("schema", "run")}


@st.composite
def evidences(draw: st.DrawFn) -> Evidence:
    """Return evidence with a few of its fields: all together are more than hypothesis likes to draw."""
    names = draw(st.sets(st.sampled_from(sorted(TYPES)), max_size=3))
    drawn: dict[str, Any] = {name: draw(st.from_type(TYPES[name])) for name in sorted(names)}
    return Evidence(run=draw(st.from_type(Run)), **drawn)


@settings(max_examples=60)
@given(evidence=evidences())
def test_survives_the_round_trip(evidence: Evidence) -> None:
    again = from_json(to_json(evidence))
    assert repr(again) == repr(evidence)  # repr: NaN is not equal to itself


def test_is_strict_json_and_leaves_defaults_out() -> None:
    text = to_json(Evidence(run=Run(target="train.py", seconds=float("inf"))))
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data == {"schema": "precdoctor.evidence/1", "run": {"target": "train.py", "seconds": "inf"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected schema"),
        ('{"schema": "precdoctor.evidence/9"}', "found 'precdoctor.evidence/9'"),
        ('{"schema": "precdoctor.evidence/1"}', "malformed evidence"),
        ('{"schema": "precdoctor.evidence/1", "run": {"target": 3}}', "expected str, found 3"),
        ('{"schema": "precdoctor.evidence/1", "run": {"colour": "red"}}', "no field 'colour'"),
        ('{"schema": "precdoctor.evidence/1", "run": []}', "malformed evidence"),
    ],
)
def test_refuses_what_is_not_evidence(text: str, message: str) -> None:
    with pytest.raises(EvidenceError, match=message) as raised:
        from_json(text)
    assert "\n" not in str(raised.value)


def test_saves_and_loads(tmp_path: Path) -> None:
    evidence = Evidence(run=Run(target="train.py", steps=3))
    save(evidence, tmp_path / "evidence.json")
    assert load(tmp_path / "evidence.json") == evidence
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvidenceError, match="not a text file"):
        load(tmp_path / "binary")
