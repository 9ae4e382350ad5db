"""Files are replaced whole, with backups, and only where git could bring them back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from precdoctor.fix import files
from precdoctor.fix.files import WriteError, check_clean, replace_all


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


@pytest.fixture
def script() -> Path:
    path = Path("train.py").absolute()
    path.write_bytes(b"before\n")
    return path


@pytest.fixture
def committed(script: Path) -> Path:
    Path("other.py").write_text("other\n")
    Path(".gitignore").write_text("ignored.py\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    return script


def test_replaces_a_file_and_keeps_its_mode_and_a_backup(script: Path) -> None:
    script.chmod(0o755)
    (backup,) = replace_all({script: (b"before\n", b"after\n")})
    assert script.read_bytes() == b"after\n"
    assert script.stat().st_mode & 0o777 == 0o755
    assert backup.name == "train.py.orig"
    assert backup.read_bytes() == b"before\n"
    assert names() == ["train.py", "train.py.orig"]


def test_never_overwrites_a_backup(script: Path) -> None:
    Path("train.py.orig").write_text("oldest")
    backups = [replace_all({script: (b"before\n", b"before\n")})[0].name for _ in range(2)]
    assert backups == ["train.py.orig.1", "train.py.orig.2"]
    assert Path("train.py.orig").read_text() == "oldest"


def test_does_not_write_over_what_changed_meanwhile(script: Path) -> None:
    with pytest.raises(WriteError, match=r"train\.py changed"):
        replace_all({script: (b"older\n", b"after\n")})
    assert names() == ["train.py"]


def test_takes_everything_back_when_one_file_cannot_be_written(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("other.py").absolute()
    other.write_bytes(b"before\n")
    replace = files._replace

    def failing(path: Path, content: bytes) -> None:
        if path == other:
            raise OSError(28, "No space left on device", str(path))
        replace(path, content)

    monkeypatch.setattr(files, "_replace", failing)
    with pytest.raises(WriteError, match="No space left"):
        replace_all({script: (b"before\n", b"after\n"), other: (b"before\n", b"after\n")})
    assert script.read_bytes() == other.read_bytes() == b"before\n"
    assert names() == ["other.py", "train.py"]


def test_a_clean_tree_may_be_changed(committed: Path) -> None:
    Path("untracked.txt").write_text("")
    check_clean([committed])


def test_no_git_is_no_obstacle(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_clean([script])
    monkeypatch.setenv("PATH", "")
    check_clean([script])


def test_a_dirty_tree_may_not_be_changed(committed: Path) -> None:
    Path("other.py").write_text("changed\n")
    with pytest.raises(
        WriteError, match=r"uncommitted changes in .*\(other\.py\): commit them first, or --force"
    ):
        check_clean([committed])


def test_a_file_unknown_to_git_may_not_be_changed_but_an_ignored_one(committed: Path) -> None:
    new = Path("new.py").absolute()
    new.write_text("")
    with pytest.raises(WriteError, match=r"new\.py is not under version control"):
        check_clean([new])
    ignored = Path("ignored.py").absolute()
    ignored.write_text("")
    check_clean([ignored])
