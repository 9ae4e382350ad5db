"""What a recipe holds as JSON, schema precdoctor.memory/1. Needs no torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from precdoctor.memory.result import Holding, MemoryReport
from precdoctor.memory.text import conclusion
from precdoctor.report import strict

SCHEMA = "precdoctor.memory/1"


def render(report: MemoryReport) -> str:
    """Return strict JSON text."""
    return strict.dumps(document(report))


def document(report: MemoryReport) -> dict[str, Any]:
    """Return the report as plain containers."""
    fields = {
        field.name: getattr(report, field.name)
        for field in dataclasses.fields(report)
        if field.name not in ("chosen", "recipes", "checks", "formats")
    }
    return {
        "schema": SCHEMA,
        "conclusion": conclusion(report),
        "recipe": report.chosen.recipe,
        **fields,
        "recipes": [_holding(one, report.elements) for one in report.recipes],
        "formats": [dataclasses.asdict(packed) for packed in report.formats],
        "checks": [
            {**dataclasses.asdict(check), "deviation": check.deviation, "holds": check.holds}
            for check in report.checks
        ],
    }


def _holding(one: Holding, elements: int) -> dict[str, Any]:
    return {
        **dataclasses.asdict(one),
        "bytes_per_parameter": {name: held / elements for name, held in one.bytes.items()},
        "total_bytes": one.total_bytes,
        "between_bytes": one.between_bytes,
    }
