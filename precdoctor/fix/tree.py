"""A temporary tree in which an edited program runs as it would run in its place.

The tree stands for the root directory. Folders with the program's source are copies; everything else in it is
a link to the real thing, so that data found by relative paths, upwards too, is still there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

#: folders that are no part of a program's source
_SKIPPED = frozenset({".git", ".hg", ".svn", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"})
#: folders that are only linked: installed packages
_LINKED = frozenset({"node_modules", "site-packages", ".venv", "venv", ".tox", ".nox"})
#: larger files are linked; beyond so many entries and bytes everything but Python files is
_FILE_BYTES, _ENTRIES, _BYTES = 4 << 20, 20_000, 256 << 20


class Tree:
    """Copies of source folders, with some files changed, below a temporary directory."""

    def __init__(self, top: Path, folders: Iterable[Path], changes: Mapping[Path, bytes]) -> None:
        self.top = top
        self._entries = self._bytes = 0
        #: folders that are never links, whatever the budget
        self._needed = {above for path in changes for above in path.resolve().parents}
        for root in _outermost(folder.resolve() for folder in folders):
            self._link_around(root)
            self._copy(root)
        for path, content in changes.items():
            inside = self.inside(path)
            if (
                inside.parent.resolve() != inside.parent
            ):  # a link leads to the real file, which stays as it is
                raise OSError(f"{path} is not in the folders copied")
            inside.unlink(missing_ok=True)
            inside.write_bytes(content)
            shutil.copymode(path, inside)

    def inside(self, path: Path) -> Path:
        """Return where a real path is in the tree."""
        path = path.resolve()
        return self.top / path.relative_to(path.anchor)

    def _link_around(self, root: Path) -> None:
        """Make the folders above a root, with links to everything beside."""
        for folder in reversed(root.parents):
            inside = self.inside(folder)
            if inside.is_symlink():
                inside.unlink()
            if not inside.exists():
                inside.mkdir(parents=True)
                with suppress(PermissionError):
                    for entry in os.scandir(folder):
                        if not self.top.is_relative_to(entry.path):
                            self._link(Path(entry.path), inside / entry.name)
        here = self.inside(root)
        if here.is_symlink():
            here.unlink()

    def _copy(self, folder: Path) -> None:
        inside = self.inside(folder)
        inside.mkdir(exist_ok=True)
        with suppress(PermissionError):
            for entry in sorted(os.scandir(folder), key=lambda e: (e.is_dir(), e.name)):
                path, target = Path(entry.path), inside / entry.name
                if entry.name in _SKIPPED or target.exists() or self.top.is_relative_to(path):
                    continue
                self._entries += 1
                if entry.is_symlink():
                    self._link(self.inside(path), target)
                elif entry.is_dir():
                    linked = self._is_full or entry.name in _LINKED or (path / "pyvenv.cfg").exists()
                    if linked and path not in self._needed:
                        self._link(path, target)
                    else:
                        self._copy(path)
                elif entry.is_file():
                    self._take(path, target, entry.stat().st_size)

    def _take(self, path: Path, target: Path, size: int) -> None:
        if path.suffix != ".py" and (size > _FILE_BYTES or self._is_full):
            self._link(path, target)
            return
        self._bytes += size
        try:
            shutil.copy2(path, target)
        except OSError:
            self._link(path, target)

    @property
    def _is_full(self) -> bool:
        return self._entries > _ENTRIES or self._bytes > _BYTES

    def _link(self, path: Path, target: Path) -> None:
        if not target.exists() and not target.is_symlink():
            with suppress(OSError):
                target.symlink_to(path)


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that lie in no other."""
    found: list[Path] = []
    for folder in sorted(set(folders), key=lambda path: len(path.parts)):
        if not any(folder.is_relative_to(other) for other in found):
            found.append(folder)
    return found


def package_root(file: Path) -> Path:
    """Return the folder from which a file is imported: the first around it that is no package."""
    folder = file.resolve().parent
    while (folder / "__init__.py").exists() and folder.parent != folder:
        folder = folder.parent
    return folder
