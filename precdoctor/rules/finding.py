"""A finding: an illness, who has it, where it comes from and the numbers that prove it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from precdoctor.evidence import Place

Severity = Literal["error", "warning", "note"]
#: from mild to grave
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who is ill."""

    kind: Literal["parameter", "module", "state", "buffer", "op", "optimizer", "file"]
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A line of the user's code and its part in the illness."""

    place: Place
    #: "cause": changing this line cures it; "site": where it shows
    role: Literal["cause", "site"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prescription:
    """A cure to try."""

    #: id of the remedy, such as "autocast"
    remedy: str
    #: 1 = try first
    rank: int
    #: what it would change here, one sentence
    why: str
    #: unified diff against the user's lines; empty when none was written
    diff: str = ""
    #: what the remedy is to be set to, by name, such as {"factor": 30.0}; solved from the evidence
    settings: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One illness found in a run."""

    #: id of the rule, such as "PD101", and its name
    rule: str
    name: str
    severity: Severity
    subjects: tuple[Subject, ...]
    #: the mechanism with its numbers, in one or two sentences
    message: str
    locations: tuple[Location, ...] = ()
    #: the numbers that prove it, by name with unit suffix
    measured: dict[str, float | int | str | None] = field(default_factory=dict)
    prescriptions: tuple[Prescription, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VitalSign:
    """One line of the checklist."""

    name: str
    #: unknown means "not seen", and the text says why
    status: Literal["ok", "ill", "unknown"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the rules make of the evidence."""

    verdict: Literal["ill", "healthy", "unknown"]
    #: the verdict in one sentence
    summary: str
    vital_signs: tuple[VitalSign, ...]
    findings: tuple[Finding, ...]
