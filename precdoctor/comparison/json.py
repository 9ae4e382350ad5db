"""A comparison as JSON, schema precdoctor.comparison/1. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from precdoctor.comparison.result import Comparison, FormatResult, Layer
from precdoctor.comparison.verdict import status
from precdoctor.report import strict

SCHEMA = "precdoctor.comparison/1"


def render(comparison: Comparison) -> str:
    """Return strict JSON text: what is not a finite number is null."""
    return strict.dumps(document(comparison))


def document(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain containers."""
    fields = {
        field.name: getattr(comparison, field.name)
        for field in dataclasses.fields(comparison)
        if field.name not in ("formats", "sentences")
    }
    return {
        "schema": SCHEMA,
        "conclusion": comparison.sentences[-1],
        "sentences": comparison.sentences,
        **fields,
        "formats": [_format(result, comparison.reference) for result in comparison.formats],
    }


def _format(result: FormatResult, reference: FormatResult) -> dict[str, Any]:
    fields = dataclasses.asdict(result)
    fields["status"] = None if result is reference else status(result, reference.loss)
    fields["layers"] = [_layer(layer) for layer in result.layers]
    fields["departs"] = None if result.departs is None else _layer(result.departs)
    if result.difference is not None:
        fields["difference"]["significant"] = result.difference.is_significant
    return fields


def _layer(layer: Layer) -> dict[str, Any]:
    # null would not tell an exact layer from one that is not finite
    return {**dataclasses.asdict(layer), "exact": layer.sqnr_db == math.inf}
