"""What `precdoctor fix` does: find the illness, write the cures, prove one, show or apply it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from precdoctor.fix.candidates import Candidate, grave, treatments, write
from precdoctor.fix.diff import unified
from precdoctor.fix.edits import Treatment
from precdoctor.fix.files import WriteError, check_clean, replace_all
from precdoctor.fix.proof import Program, prove, scan
from precdoctor.fix.sources import NoSafeEdit
from precdoctor.program import from_module, from_path
from precdoctor.rules import diagnose

Say = Callable[[str], None]

FIXED, ILL, USAGE, SCRIPT_FAILED = 0, 1, 2, 3


class FixError(Exception):
    """Wrong input; one line says what."""


def fix(
    program: Program,
    say: Say,
    *,
    remedy: str | None = None,
    order: Sequence[str] = (),
    apply: bool = False,
    force: bool = False,
) -> int:
    """Find, prove and print (``apply``: write) an edit that cures a program; return the exit code.

    ``remedy`` allows one only, ``order`` are remedies to try before the others. The diff goes to stdout, the
    rest to ``say``. Raises `TargetError`, and `FixError` before anything has run or been written.
    """
    here = Path.cwd()
    _check_target(program, apply=apply and not force)
    say(f"running {program.target} as it is{_until(program)}")
    first = scan(program, here)
    evidence = first.evidence
    if evidence is None and first.code == USAGE:
        raise FixError(first.log.rpartition("\n")[2] or f"{program.target} could not be run")
    if evidence is None or not first.ran:
        ended = (
            f"ended with code {first.code}" if evidence is None else evidence.run.error or evidence.run.ended
        )
        say(f"{program.target} fails as it is: {ended}\n{first.log}".rstrip())
        return SCRIPT_FAILED
    diagnosis = diagnose(evidence)
    if not grave(diagnosis):
        healthy = diagnosis.verdict == "healthy"
        say(
            f"nothing to fix: {diagnosis.summary}" if healthy else f"nothing can be said: {diagnosis.summary}"
        )
        return FIXED if healthy else ILL
    say(diagnosis.summary)
    asked = treatments(diagnosis, evidence, order)
    if remedy is not None:
        asked = [treatment for treatment in asked if treatment.remedy == remedy]
        if not asked:
            raise FixError(f"no finding asks for {remedy!r}")
    won: Candidate | None = None
    by_hand: list[tuple[Treatment, str]] = []
    shown: bytes | None = None
    for treatment in asked:
        try:
            candidate = write(treatment, here)
        except NoSafeEdit as error:
            by_hand.append((treatment, str(error)))
            continue
        say(f"{treatment.remedy}: running the edited copy{_until(program)}")
        failure = prove(candidate, program, evidence, diagnosis)
        if not failure:
            won = candidate
            break
        say(f"{treatment.remedy} does not hold: {failure}")
        shown = unified(candidate.changes, _root(candidate, here))
    cured = set() if won is None else {id(finding) for finding in won.treatment.findings}
    left = [finding for finding in grave(diagnosis) if id(finding) not in cured]
    for finding in left:
        say(f"not cured: {finding.rule} {finding.name}: {finding.message}")
    for treatment, reason in by_hand:
        if won is None or any(id(finding) not in cured for finding in treatment.findings):
            say(f"by hand ({treatment.remedy}): {reason}")
    if won is None:
        if remedy is not None and shown is not None:
            _show(shown)
        return ILL
    return _deliver(won, here, say, apply=apply, force=force)


def _deliver(won: Candidate, here: Path, say: Say, *, apply: bool, force: bool) -> int:
    """Print the edit that was proved, and write it where that was asked for."""
    root = _root(won, here)
    _show(unified(won.changes, root))
    rules = sorted({finding.rule for finding in won.treatment.findings})
    gone = f"{' and '.join(rules)} {'is' if len(rules) == 1 else 'are'} gone"
    say(f"{won.treatment.remedy} holds: the edited copy ran, and {gone}")
    for note in won.notes:
        say(f"note: {note}")
    if not apply:
        where = "" if root == here else f" (the patch is relative to {root})"
        say(f"nothing was changed{where}; --write changes the files")
        return FIXED
    try:
        if not force:
            check_clean(won.changes)
        backups = replace_all(won.changes)
    except WriteError as error:
        raise FixError(str(error)) from None
    for path, backup in zip(won.changes, backups, strict=True):
        say(f"{os.path.relpath(path, here)} is changed, as it was: {os.path.relpath(backup, here)}")
    return FIXED


def _check_target(program: Program, *, apply: bool) -> None:
    """Raise what is wrong with the input before anything runs."""
    if program.module:
        from_module(program.target)
        return
    from_path(program.target)
    path = Path(program.target)
    if apply and path.is_file():
        try:
            check_clean([path.resolve()])
        except WriteError as error:
            raise FixError(str(error)) from None


def _root(candidate: Candidate, here: Path) -> Path:
    """Return the folder that a diff's paths are relative to: here, or one around all files."""
    if all(path.is_relative_to(here.resolve()) for path in candidate.changes):
        return here
    return Path(os.path.commonpath([path.parent for path in candidate.changes]))


def _until(program: Program) -> str:
    return " to its end" if program.steps is None else f" for {program.steps} optimizer steps"


def _show(diff: bytes) -> None:
    sys.stdout.flush()
    output = getattr(sys.stdout, "buffer", None)
    if output is None:
        sys.stdout.write(diff.decode("utf-8", errors="replace"))
        return
    output.write(diff)  # as it is: line ends and encoding are the file's
    output.flush()
