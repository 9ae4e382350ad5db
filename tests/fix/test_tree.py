"""The temporary tree stands for the real one: source is copied, the rest is still there."""

from __future__ import annotations

from pathlib import Path

import pytest

from precdoctor.fix import tree as trees
from precdoctor.fix.tree import Tree, package_root


@pytest.fixture
def real(tmp_path: Path) -> Path:
    real = tmp_path / "home" / "project"
    for name in ("train.py", "pkg/__init__.py", "pkg/model.py", "data/text.txt", ".git/HEAD", "venv/lib.py"):
        (real / name).parent.mkdir(parents=True, exist_ok=True)
        (real / name).write_text(name)
    (tmp_path / "home" / "shared.txt").write_text("shared")
    return real


def build(tmp_path: Path, real: Path, changed: str = "pkg/model.py") -> Tree:
    top = tmp_path / "top"
    top.mkdir()
    return Tree(top, [real, real / "pkg"], {(real / changed).resolve(): b"edited"})


def test_changes_the_copy_and_not_the_real_file(tmp_path: Path, real: Path) -> None:
    tree = build(tmp_path, real)
    assert tree.inside(real / "pkg/model.py").read_text() == "edited"
    assert tree.inside(real / "train.py").read_text() == "train.py"
    assert not tree.inside(real / "train.py").is_symlink()
    assert (real / "pkg/model.py").read_text() == "pkg/model.py"


def test_finds_data_beside_and_above(tmp_path: Path, real: Path) -> None:
    tree = build(tmp_path, real)
    inside = tree.inside(real)
    assert (inside / "data/text.txt").read_text() == "data/text.txt"
    assert (inside / "../shared.txt").read_text() == "shared"
    assert inside.resolve() == inside


def test_leaves_version_control_out_and_links_environments(tmp_path: Path, real: Path) -> None:
    inside = build(tmp_path, real).inside(real)
    assert not (inside / ".git").exists()
    assert (inside / "venv").is_symlink()


def test_links_large_files(tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_FILE_BYTES", 4)
    inside = build(tmp_path, real).inside(real)
    assert (inside / "data/text.txt").is_symlink()
    assert not (inside / "train.py").is_symlink()


def test_a_link_to_a_changed_file_leads_to_the_changed_copy(tmp_path: Path, real: Path) -> None:
    (real / "linked.py").symlink_to(real / "train.py")
    (real / "same").symlink_to("pkg")
    tree = build(tmp_path, real, changed="linked.py")
    assert tree.inside(real / "train.py").read_text() == "edited"
    assert (tree.inside(real) / "linked.py").read_text() == "edited"
    assert (tree.inside(real) / "same").resolve() == tree.inside(real / "pkg")
    assert (real / "train.py").read_text() == "train.py"


def test_links_what_exceeds_the_budget(tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_ENTRIES", 1)
    inside = build(tmp_path, real).inside(real)
    assert (inside / "data").is_symlink()
    assert (inside / "pkg/model.py").read_text() == "edited"
    assert (real / "pkg/model.py").read_text() == "pkg/model.py"


def test_never_changes_a_file_outside_the_copied_folders(tmp_path: Path, real: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    with pytest.raises(OSError, match="is not in the folders copied"):
        Tree(top, [real / "data"], {(real / "pkg/model.py").resolve(): b"edited"})
    assert (real / "pkg/model.py").read_text() == "pkg/model.py"


def test_knows_from_where_a_file_is_imported(real: Path) -> None:
    assert package_root(real / "pkg/model.py") == real.resolve()
    assert package_root(real / "train.py") == real.resolve()
