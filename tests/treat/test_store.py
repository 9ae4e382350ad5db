"""Kept trials: found while the program is the same, and never believed when they are broken."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from precdoctor.evidence import save
from precdoctor.remedies import Dose
from precdoctor.treat import travel
from precdoctor.treat.program import Program
from precdoctor.treat.store import Store, key, sha256
from tests.rules.build import evidence, norm

KAHAN = Dose(remedy="kahan")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("1\n")
    return Program(target="train.py", steps=10)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kept")


def kept(store: Store, program: Program, status: str = "ran") -> Path:
    """Keep a trial as its process would have left it."""
    folder = store.begin(program, KAHAN)
    save(evidence(norm()), folder / "evidence.json")
    travel.save({"w": np.ones(3, np.float32)}, folder / "travel.npz")
    source = Path("train.py").absolute()
    result = {"status": status, "error": "", "step_seconds": 0.5, "bytes_per_parameter": 8.0}
    (folder / "result.json").write_text(json.dumps({**result, "sources": {str(source): sha256(source)}}))
    return store.keep(folder, program, KAHAN)


def test_finds_what_it_kept(store: Store, program: Program) -> None:
    assert store.find(program, KAHAN) is None
    kept(store, program)
    ran = store.find(program, KAHAN)
    assert ran is not None
    assert (ran.evidence, ran.step_seconds, ran.kept) == (evidence(norm()), 0.5, True)
    assert ran.travels is not None
    assert ran.travels["w"].tolist() == [1, 1, 1]


def test_another_program_dose_or_length_is_another_trial(store: Store, program: Program) -> None:
    kept(store, program)
    assert store.find(program, None) is None
    assert store.find(program, Dose(remedy="kahan", subjects=("w",))) is None
    others = [{"argv": ("--lr", "1")}, {"steps": 11}, {"module": True}, {"folder": "/"}]
    assert all(store.find(dataclasses.replace(program, **other), KAHAN) is None for other in others)
    assert key(program, KAHAN) == key(dataclasses.replace(program), Dose(remedy="kahan"))


def test_a_changed_source_is_not_taken_for_the_old_one(store: Store, program: Program) -> None:
    kept(store, program)
    Path("train.py").write_text("2\n")
    assert store.find(program, KAHAN) is None
    Path("train.py").unlink()
    assert store.find(program, KAHAN) is None


def test_a_failure_is_tried_again(store: Store, program: Program) -> None:
    kept(store, program, status="failed")
    assert store.find(program, KAHAN) is None
    kept(store, program, status="does not apply")
    assert store.find(program, KAHAN) is not None


@pytest.mark.parametrize("file", ["result.json", "evidence.json", "travel.npz"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\x00", None])
def test_what_is_broken_is_as_good_as_not_there(
    store: Store, program: Program, file: str, content: bytes | None
) -> None:
    path = kept(store, program) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert store.find(program, KAHAN) is None
    kept(store, program)
    assert store.find(program, KAHAN) is not None


def test_what_nobody_asked_for_in_a_month_is_removed(store: Store, program: Program) -> None:
    old = kept(store, program)
    month = time.time() - 31 * 86400
    os.utime(old, (month, month))
    Store(store.root)
    assert not old.exists()


def test_works_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "below")
    assert store.root.is_dir()
    store.root.rmdir()
