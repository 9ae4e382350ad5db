"""Evidence in, diagnosis out: every rule, the vital signs, the verdict."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from precdoctor.evidence import Evidence
from precdoctor.rules.catalogue import CATALOGUE
from precdoctor.rules.checkpoint_signs import checkpoint_signs, summary
from precdoctor.rules.finding import SEVERITIES, Diagnosis, Finding, VitalSign
from precdoctor.rules.reading import stepped
from precdoctor.rules.vital_signs import SURVIVAL, gradients_flowed, vital_signs, was_stepped
from precdoctor.rules.wording import at, count


def diagnose(evidence: Evidence, select: Collection[str] = (), ignore: Collection[str] = ()) -> Diagnosis:
    """Judge evidence by all rules, the selected ones, or all but those ignored (see `select`).

    Findings come gravest first. Verdict and vital signs rest on the findings that are kept.
    """
    found = [finding for rule in CATALOGUE for finding in rule.criterion(evidence)]
    kept = _select(found, select, ignore)
    kept.sort(key=lambda f: (-SEVERITIES.index(f.severity), f.rule))
    contents = evidence.contents
    signs = vital_signs(evidence, kept) if contents is None else checkpoint_signs(contents, kept)
    verdict, summary = _verdict(evidence, kept, signs)
    return Diagnosis(verdict=verdict, summary=summary, vital_signs=signs, findings=tuple(kept))


def select(
    findings: Iterable[Finding], select: Collection[str] = (), ignore: Collection[str] = ()
) -> list[Finding]:
    """Return the findings whose rule is selected (all, when nothing is) and not ignored.

    A rule is meant by its name or by its id or the beginning of it: "PD1" means PD101 to PD106.
    """
    return _select(findings, select, ignore)


def _select(findings: Iterable[Finding], select: Collection[str], ignore: Collection[str]) -> list[Finding]:
    return [f for f in findings if (not select or _is_meant(f, select)) and not _is_meant(f, ignore)]


def _is_meant(finding: Finding, patterns: Collection[str]) -> bool:
    return any(p == finding.name or (p and finding.rule.startswith(p.upper())) for p in patterns)


def _verdict(
    evidence: Evidence, findings: Sequence[Finding], signs: Sequence[VitalSign]
) -> tuple[Literal["ill", "healthy", "unknown"], str]:
    grave = [f for f in findings if f.severity != "note"]
    if grave:
        return "ill", _worst(grave)
    if evidence.contents is not None:
        return summary(evidence.contents)
    if not was_stepped(evidence):
        return "unknown", f"No optimizer step was seen{_because(evidence)}."
    if not gradients_flowed(evidence):
        return "unknown", "No gradient other than zero was seen at an optimizer step."
    ill = [s for s in signs if s.status == "ill"]
    if ill:
        return "unknown", f"No rule names an illness, but a vital sign is bad: {ill[0].name}: {ill[0].text}."
    survival = next(s for s in signs if s.name == SURVIVAL)
    # the question that matters most: not seen is not healthy
    if survival.status == "unknown" and any(item.is_low for item in stepped(evidence)):
        return "unknown", f"No illness was found, but not whether {SURVIVAL}: {survival.text}."
    steps = evidence.run.steps
    return "healthy", f"No precision illness in {count(steps, 'optimizer step')}."


def _worst(grave: Sequence[Finding]) -> str:
    """Return the gravest finding's first clause, its rule and the line that causes it."""
    first = grave[0]
    text = (
        f"{re.split(r'; |[.] ', first.message, maxsplit=1)[0].removesuffix('.')} ({first.rule} {first.name}"
    )
    causes = [location.place for location in first.locations if location.role == "cause"]
    if causes:
        text += f", {'caused' if causes[0].certain else 'likely caused'}{at(causes[0])}"
    text += ")"
    if len(grave) > 1:
        text += f"; and {count(len(grave) - 1, 'more finding')}"
    return text + "."


def _because(evidence: Evidence) -> str:
    run = evidence.run
    if run.ended == "failed" and run.error:
        return f": the script failed ({run.error})"
    if run.ended == "interrupted":
        return ": the run was interrupted"
    return ""
