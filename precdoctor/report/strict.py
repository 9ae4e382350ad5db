"""Strict JSON: what is not a finite number is null."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(document: Any) -> str:
    """Return plain containers as JSON text that every reader takes."""
    return json.dumps(_strict(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
