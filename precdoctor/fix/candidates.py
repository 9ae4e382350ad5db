"""Which edits to try, in which order, and what is left to do by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from precdoctor.evidence import Evidence
from precdoctor.fix.diff import unified
from precdoctor.fix.edits import EDITS, Treatment
from precdoctor.fix.sources import NoSafeEdit, Sources
from precdoctor.rules import Diagnosis, Finding, Prescription


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A remedy written into the user's source."""

    treatment: Treatment
    #: bytes before and after of each file that changes
    changes: dict[Path, tuple[bytes, bytes]]
    #: what the user should know, in sentences
    notes: tuple[str, ...] = ()


def grave(diagnosis: Diagnosis) -> list[Finding]:
    """Return the findings that are no mere notes."""
    return [finding for finding in diagnosis.findings if finding.severity != "note"]


def treatments(diagnosis: Diagnosis, evidence: Evidence, order: Sequence[str] = ()) -> list[Treatment]:
    """Return one treatment per remedy prescribed: those of ``order`` first, then by finding and rank."""
    asked: dict[str, list[tuple[Finding, Prescription]]] = {}
    for finding in grave(diagnosis):
        for prescription in sorted(finding.prescriptions, key=lambda p: p.rank):
            asked.setdefault(prescription.remedy, []).append((finding, prescription))
    known = {remedy: place for place, remedy in enumerate(order)}
    remedies = sorted(asked, key=lambda remedy: known.get(remedy, len(known)))  # stable: else as prescribed
    return [Treatment.of(asked[remedy], evidence) for remedy in remedies]


def write(treatment: Treatment, root: Path) -> Candidate:
    """Return the edit of a treatment; raises `NoSafeEdit` with what to do by hand."""
    edit = EDITS.get(treatment.remedy)
    if edit is None:
        why = next(p.why for f in treatment.findings for p in f.prescriptions if p.remedy == treatment.remedy)
        places = [location.place for finding in treatment.findings for location in finding.locations]
        where = f" ({places[0].file}:{places[0].line})" if places else ""
        raise NoSafeEdit(f"{why}{where}")
    if not treatment.parameters:
        raise NoSafeEdit("which parameters it concerns is not known")
    sources = Sources(root)
    edit(sources, treatment)
    changes = sources.changes()
    if not changes:
        raise NoSafeEdit("nothing is left to edit")
    return Candidate(treatment=treatment, changes=changes, notes=tuple(sources.notes))


def with_diffs(diagnosis: Diagnosis, evidence: Evidence, root: Path) -> Diagnosis:
    """Return a diagnosis whose prescriptions carry the diffs that `precdoctor fix` would try, not proven.

    Reads the user's source files below ``root``, the working directory of the run; runs nothing.
    """
    diffs: dict[str, str] = {}
    for treatment in treatments(diagnosis, evidence):
        try:
            diff = unified(write(treatment, root).changes, root)
        except NoSafeEdit:
            continue
        diffs[treatment.remedy] = diff.decode("utf-8", errors="replace")
    findings = [
        finding
        if finding.severity == "note"
        else replace(
            finding,
            prescriptions=tuple(replace(p, diff=diffs.get(p.remedy, p.diff)) for p in finding.prescriptions),
        )
        for finding in diagnosis.findings
    ]
    return replace(diagnosis, findings=tuple(findings))
