"""Rules: evidence in, findings out; one illness per file. Imports no torch."""

from precdoctor.rules.catalogue import CATALOGUE
from precdoctor.rules.diagnose import diagnose, select
from precdoctor.rules.finding import (
    SEVERITIES,
    Diagnosis,
    Finding,
    Location,
    Prescription,
    Severity,
    Subject,
    VitalSign,
)
from precdoctor.rules.rule import Rule

__all__ = [
    "CATALOGUE",
    "SEVERITIES",
    "Diagnosis",
    "Finding",
    "Location",
    "Prescription",
    "Rule",
    "Severity",
    "Subject",
    "VitalSign",
    "diagnose",
    "select",
]
