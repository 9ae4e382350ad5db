"""Runs a program under `precdoctor scan` in a fresh process, in its place or edited in a tree of its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from precdoctor.evidence import Evidence, EvidenceError, load
from precdoctor.fix.candidates import Candidate, grave
from precdoctor.fix.files import git
from precdoctor.fix.tree import Tree, package_root
from precdoctor.rules import Diagnosis, Finding, diagnose

#: lines of a failed program's output that are shown
_TAIL = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is run: a script, a module or a console command, with its arguments."""

    target: str
    arguments: tuple[str, ...] = ()
    module: bool = False
    #: optimizer steps after which it is stopped; None: it runs to its end
    steps: int | None = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What came of one run."""

    #: None where precdoctor itself could not run it; ``log`` says why
    evidence: Evidence | None
    #: exit code of the process
    code: int
    #: the last lines of what it wrote to stderr before the report
    log: str

    @property
    def ran(self) -> bool:
        """Tell whether the program came to its end, or to the steps asked for."""
        return self.evidence is not None and self.evidence.run.ended in ("finished", "stopped")


def scan(program: Program, folder: Path, environment: Mapping[str, str] | None = None) -> Scan:
    """Run a program under observation in a process of its own; its output goes to files that are removed."""
    with tempfile.TemporaryDirectory(prefix="precdoctor-") as place:
        saved, log = Path(place) / "evidence.json", Path(place) / "log"
        command = [sys.executable, "-m", "precdoctor", "scan", "--save", str(saved), "--fail-on", "never"]
        command += ["--steps", "all" if program.steps is None else str(program.steps)]
        command += [*(["-m"] if program.module else []), program.target, *program.arguments]
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
            )
        try:
            evidence = load(saved)
        except (OSError, EvidenceError):
            evidence = None
        text = log.read_text(encoding="utf-8", errors="replace")
    said = text.partition(f"\nprecdoctor: {program.target} ")[0] if evidence else text
    lines = [
        line for line in said.splitlines() if line.strip() and not line.startswith("precdoctor: watching ")
    ]
    return Scan(evidence=evidence, code=done.returncode, log="\n".join(lines[-_TAIL:]))


def prove(candidate: Candidate, program: Program, before: Evidence, diagnosis: Diagnosis) -> str:
    """Run the edited program in a temporary tree; return why the edit does not hold, empty where it does."""
    here = Path.cwd()
    script = Path(program.target)
    runs_file = not program.module and script.is_file()
    roots = {package_root(path) for path in candidate.changes}
    folders = {*roots, *(path.parent for path in candidate.changes)}
    if runs_file:
        folders.add(script.resolve().parent)
    copied = not runs_file or any(folder.is_relative_to(here.resolve()) for folder in folders)
    if copied:
        folders.add(here)
    with tempfile.TemporaryDirectory(prefix="precdoctor-") as top:
        changes = {path: after for path, (_, after) in candidate.changes.items()}
        tree = Tree(Path(top).resolve(), folders, changes)
        target = (
            str(tree.inside(script)) if runs_file and (script.is_absolute() or not copied) else program.target
        )
        edited = Program(
            target=target, arguments=program.arguments, module=program.module, steps=program.steps
        )
        # beside an installed package the edited one has to be found first
        paths = [*sorted(roots), *(Path(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
        inside = [str(tree.inside(p)) if tree.inside(p).exists() else str(p) for p in paths]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(inside), "PYTHONDONTWRITEBYTECODE": "1"}
        if repository := git(here, "rev-parse", "--absolute-git-dir"):  # for programs that note their commit
            environment = {"GIT_DIR": repository, "GIT_OPTIONAL_LOCKS": "0", **environment}
        after = scan(edited, tree.inside(here) if copied else here, environment)
    return judge(candidate, before, diagnosis, after)


def judge(candidate: Candidate, before: Evidence, diagnosis: Diagnosis, after: Scan) -> str:
    """Return why an edit does not hold, empty where it does.

    It holds when the edited program ran as far, its targets are gone and were looked at, none of the ill
    parameters has another illness instead, no new error came up, and the losses are still finite.
    """
    if after.evidence is None or not after.ran:
        error = after.evidence.run.error if after.evidence is not None else ""
        return f"the edited program failed: {error or after.log.rpartition(chr(10))[2] or after.code}"
    evidence = after.evidence
    if evidence.run.steps < before.run.steps:
        return f"the edited program made {evidence.run.steps} optimizer steps instead of {before.run.steps}"
    if _finite(before) and not _finite(evidence):
        return "the loss is not finite any more"
    found = grave(diagnose(evidence))
    targets = {finding.rule for finding in candidate.treatment.findings}
    names = candidate.treatment.names
    known = {(f.rule, s.name) for f in grave(diagnosis) for s in f.subjects}
    for finding in found:
        concerned = sorted({s.name for s in finding.subjects} & names)
        if finding.rule in targets and concerned:
            return f"{_named(finding)} is still there: {finding.message}"
        if [name for name in concerned if (finding.rule, name) not in known]:
            return f"{_named(finding)} takes its place: {finding.message}"
        if finding.severity == "error" and any((finding.rule, s.name) not in known for s in finding.subjects):
            return f"{_named(finding)} is new: {finding.message}"
    seen = {p.name for p in evidence.parameters if p.updates is not None and p.updates.intended}
    missed = {
        p.name for p in candidate.treatment.parameters if p.updates is not None and p.updates.intended
    } - seen
    if missed:
        return f"no update of {min(missed)} was seen, so whether it is cured is not known"
    return ""


def _named(finding: Finding) -> str:
    return f"{finding.rule} {finding.name}"


def _finite(evidence: Evidence) -> bool:
    return all(math.isfinite(loss) for _, loss in evidence.losses)
