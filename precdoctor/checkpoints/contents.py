"""Reads one or two checkpoints and says what is in them: `Contents`, as evidence."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from precdoctor.checkpoints.checkpoint import Checkpoint, CheckpointError, Entry
from precdoctor.checkpoints.look import compare, look_at
from precdoctor.checkpoints.names import matched, plain
from precdoctor.checkpoints.open import open_checkpoint
from precdoctor.checkpoints.optimizers import OptimizerState, Owned, looks_like_buffer, optimizers
from precdoctor.checkpoints.prognosis import LEAST, MOST, Outlook, outlook
from precdoctor.checkpoints.replay import kind_of, name_of
from precdoctor.checkpoints.shared import shared_data
from precdoctor.checkpoints.sources import FileRange
from precdoctor.evidence import CheckpointFile, Contents, Tensor
from precdoctor.formats import Format

#: told how many bytes of how many have been read
Progress = Callable[[int, int], None]
#: threads that read: while one waits for the disk, the other one counts
_THREADS = 2


@dataclass(slots=True)
class _File:
    checkpoint: Checkpoint
    #: by plain name
    entries: dict[str, Entry]
    #: names that are state of an optimizer
    state: set[str]
    optimizers: list[OptimizerState]
    #: what the optimizers keep, by the weight's plain name
    owned: dict[str, Owned]


def look_through(
    first: Path, second: Path | None, formats: Sequence[Format], progress: Progress
) -> tuple[Contents, tuple[str, ...]]:
    """Return what was seen, and what could not be; raises `CheckpointError`."""
    files = [_opened(path) for path in (first, second) if path is not None]
    last = files[-1]
    if second is not None:
        files[0].entries, last.entries = matched(files[0].entries, last.entries)
        _rename(files)
    names = list(dict.fromkeys(name for file in files for name in file.entries))
    total = sum(entry.nbytes for file in files for entry in file.entries.values())
    if not names:
        raise CheckpointError(f"{first}: no tensors in it")
    seen: dict[str, Tensor] = {}
    done = 0
    with ThreadPoolExecutor(_THREADS) as threads:
        # tensors that must be loaded whole are taken one at a time: two would need the memory of both
        parts = [n for n in names if all(_in_parts(f.entries.get(n)) for f in files)]
        whole = [n for n in names if n not in set(parts)]
        for group, run in ((parts, threads.map), (whole, map)):
            for name, tensor in zip(group, run(lambda n: _tensor(n, files), group), strict=True):
                seen[name] = tensor
                done += sum(f.entries[name].nbytes for f in files if name in f.entries)
                progress(done, total)
        tensors = {name: seen[name] for name in names}
        limit = max(LEAST, MOST // max(len(last.owned), 1))
        for name, owned in last.owned.items():
            seen_ahead = outlook(last.entries[name], owned, formats, limit)
            tensors[name] = _with_outlook(tensors[name], seen_ahead)
    shared = shared_data(files[0].entries, last.entries if second is not None else None, tensors)
    contents = Contents(
        files=tuple(_file(file) for file in files),
        tensors=tuple(tensors.values()),
        shared=shared,
        assumptions=_assumptions(last),
        formats=tuple(fmt.name for fmt in formats),
    )
    return contents, _limits(files)


def _opened(path: Path) -> _File:
    checkpoint = open_checkpoint(path)
    states = optimizers(checkpoint.tree, ordered=checkpoint.ordered)
    entries: dict[str, Entry] = {}
    state: set[str] = set()
    owned: dict[str, Owned] = {}
    for where, entry in checkpoint.entries().items():
        name = plain(where)
        entries[name] = entry
        if any(where[: len(each.path)] == each.path for each in states):
            state.add(name)
        for each in states:
            if where in each.owned:
                owned[name] = each.owned[where]
    return _File(checkpoint, entries, state, states, owned)


def _rename(files: Sequence[_File]) -> None:
    """Give what is known by name the names that entries have after they were matched."""
    for file in files:
        by_entry = {id(entry): name for name, entry in file.entries.items()}
        old = {plain(where): entry for where, entry in file.checkpoint.entries().items()}
        names = {name: by_entry.get(id(entry)) for name, entry in old.items()}
        file.state = {new for name in file.state if (new := names.get(name)) is not None}
        file.owned = {new: o for name, o in file.owned.items() if (new := names.get(name)) is not None}


def _in_parts(entry: Entry | None) -> bool:
    return entry is None or isinstance(entry.source, FileRange)


def _tensor(name: str, files: Sequence[_File]) -> Tensor:
    last = files[-1]
    entries = [file.entries.get(name) for file in files]
    there = [entry for entry in entries if entry is not None]
    floating = all(entry.dtype.is_floating_point for entry in there)
    kind = "state" if any(name in file.state for file in files) else "parameter" if floating else "buffer"
    stepped = None
    if last.optimizers and not any(state.unknown for state in last.optimizers) and kind == "parameter":
        stepped = name in last.owned
    elif name in last.owned:
        stepped = True
    if kind == "parameter" and not stepped and looks_like_buffer(name):
        kind = "buffer"
    tensor = Tensor(name=name, kind=kind, stepped=stepped)  # type: ignore[arg-type]  # one of the three
    if len(there) == 2:
        pair = compare(there[0], there[1])
        return replace(
            tensor, first=pair.first, second=pair.second, travel=pair.travel, identical=pair.identical
        )
    only = look_at(there[0])
    if len(files) == 2 and entries[0] is None:
        return replace(tensor, second=only)
    return replace(tensor, first=only)


def _with_outlook(tensor: Tensor, seen: Outlook) -> Tensor:
    return replace(
        tensor,
        kind="parameter",
        prognoses=seen.prognoses,
        driven=seen.driven,
        has_master=seen.has_master,
        extra_state=seen.extra_state,
    )


def _file(file: _File) -> CheckpointFile:
    names = dict.fromkeys(name_of(owned) for state in file.optimizers for owned in state.all[:1])
    return CheckpointFile(
        path=os.path.relpath(file.checkpoint.path),
        kind=file.checkpoint.kind,
        tensors=len(file.entries),
        nbytes=file.checkpoint.nbytes,
        optimizers=tuple(names),
    )


def _assumptions(file: _File) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for owned in file.owned.values():
        kind = kind_of(owned)
        if kind is not None:
            found[f"{name_of(owned)}: the next gradient {kind.assumed}."] = None
    return tuple(found)


def _limits(files: Sequence[_File]) -> tuple[str, ...]:
    found = [limit for file in files for limit in file.checkpoint.limits]
    last = files[-1]
    unknown = sum(state.unknown for state in last.optimizers)
    if unknown:
        found.append(
            f"The optimizer's state does not name its parameters, and for {unknown} of "
            f"{sum(len(s.all) for s in last.optimizers)} there is no telling which weight they are."
        )
    for state in last.optimizers:
        if state.all and kind_of(state.all[0]) is None:
            found.append(f"No prognosis: the state is that of {name_of(state.all[0])}, not known here.")
        elif not state.all:
            found.append("No prognosis: the optimizer keeps no state, so nothing tells its next gradient.")
    return tuple(found)
