"""Writes edited files in the place of the user's: never without a backup, never half."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path


class WriteError(Exception):
    """Nothing was written; one line says why."""


def check_clean(paths: Iterable[Path]) -> None:
    """Raise `WriteError` where git could not bring a file, or others changed beside it, back."""
    for path in paths:
        top = git(path.parent, "rev-parse", "--show-toplevel")
        if top is None or git(path.parent, "check-ignore", "-q", path.name) is not None:
            continue
        changed = git(path.parent, "status", "--porcelain", "--untracked-files=no", ":/")
        if changed:
            first = changed.splitlines()[0][3:]
            raise WriteError(f"uncommitted changes in {top} ({first}): commit them first, or --force")
        if git(path.parent, "ls-files", "--error-unmatch", path.name) is None:
            raise WriteError(f"{path.name} is not under version control in {top}: add it first, or --force")


def replace_all(changes: Mapping[Path, tuple[bytes, bytes]]) -> list[Path]:
    """Replace files by their edited text and return the backups; on failure all is as before.

    Raises `WriteError` where a file is no longer what was edited, or cannot be written.
    """
    for path, (before, _) in changes.items():
        if path.read_bytes() != before:
            raise WriteError(f"{path.name} changed while its edit was being proved")
    backups: list[Path] = []
    done: list[tuple[Path, Path]] = []
    try:
        backups += [_back_up(path) for path in changes]
        for (path, (_, after)), backup in zip(changes.items(), backups, strict=True):
            _replace(path, after)
            done.append((path, backup))
    except OSError as error:
        for path, backup in done:
            shutil.copy2(backup, path)
        for backup in backups:
            backup.unlink()
        raise WriteError(f"cannot write {error.filename}: {error.strerror}") from None
    return backups


def _back_up(path: Path) -> Path:
    """Copy a file to one beside it that was not there: train.py.orig, train.py.orig.1, ..."""
    names = itertools.chain([".orig"], (f".orig.{number}" for number in itertools.count(1)))
    for name in names:
        backup = path.with_name(path.name + name)
        try:
            with backup.open("xb") as file:
                file.write(path.read_bytes())
        except FileExistsError:
            continue
        shutil.copystat(path, backup)
        return backup
    raise AssertionError("unreachable")


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, name)
        Path(name).replace(path)
    except OSError:
        with suppress(OSError):
            Path(name).unlink()
        raise


def git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, None where it fails or is not there."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
