"""Evidence to JSON and back, losslessly, by the fields of the records themselves."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

from precdoctor.evidence.records import SCHEMA, Evidence


class EvidenceError(ValueError):
    """The text is not evidence of a version that this precdoctor reads."""


def to_json(evidence: Evidence) -> str:
    """Return the evidence as JSON text; fields at their default are left out."""
    return json.dumps(_encode(evidence), indent=None, separators=(",", ":"), allow_nan=False)


def from_json(text: str) -> Evidence:
    """Return the evidence held by JSON text.

    Raises `EvidenceError` with one line that says what is wrong.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise EvidenceError(f"not JSON: {error}") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise EvidenceError(f"expected schema {SCHEMA!r}, found {schema!r}")
    try:
        evidence = _decode(Evidence, data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise EvidenceError(f"malformed evidence: {error}") from None
    assert isinstance(evidence, Evidence)
    return evidence


def save(evidence: Evidence, path: Path) -> None:
    """Write the evidence to a file."""
    path.write_text(to_json(evidence), encoding="utf-8")


def load(path: Path) -> Evidence:
    """Read the evidence from a file; raises `EvidenceError` or `OSError`."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise EvidenceError("not a text file") from None


def _is_same(value: Any, default: Any) -> bool:
    # -0.0 equals 0.0
    return bool(value == default) and not (isinstance(value, float) and repr(value) != repr(default))


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name == "schema" or not _is_same(getattr(value, field.name), _default(field))
        }
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no infinities: "inf", "-inf", "nan"
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _decode(kind: Any, data: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), data)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = set(data) - set(hints)
        if unknown:
            raise ValueError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
        return kind(**{name: _decode(hints[name], item) for name, item in data.items()})
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_decode(arguments[0], item) for item in data)
        return tuple(_decode(a, item) for a, item in zip(arguments, data, strict=True))
    if kind is float:
        return float(data)
    if kind in (int, str, bool) and not isinstance(data, kind):
        raise TypeError(f"expected {kind.__name__}, found {data!r}")
    return data
