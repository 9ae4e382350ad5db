"""Float32 weights under autocast: the cast goes, the statements that call the model run in a region."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import libcst as cst

from precdoctor.evidence import Evidence, Forward, Parameter, Place
from precdoctor.fix.edits.casts import remove_cast
from precdoctor.fix.edits.syntax import dotted, text
from precdoctor.fix.edits.treatment import Treatment, distinct
from precdoctor.fix.sources import Block, NoSafeEdit, SourceFile, Sources


def autocast(sources: Sources, treatment: Treatment) -> None:
    """Remove the casts of the ill parameters and run the model's calls under ``torch.autocast``."""
    evidence = treatment.evidence
    formats = {p.format for p in treatment.parameters}
    if "float16" in formats:
        raise NoSafeEdit(
            "float16 under autocast needs a torch.amp.GradScaler around backward and step"
            f"{_at(treatment.parameters)}: keep the weights in float32 and add both, or use bfloat16"
        )
    if formats != {"bfloat16"}:
        raise NoSafeEdit(f"autocast knows no {', '.join(sorted(formats - {'bfloat16'}))}")
    # what was cast by the same kind of line stays together: the whole model is in float32 then
    for parameter, place in distinct(
        (p, p.cast.place) for p in evidence.parameters if p.format == "bfloat16" and p.cast is not None
    ):
        assert parameter.cast is not None
        if place is not None:
            remove_cast(sources, parameter.cast, place)
    if not any(p.cast is not None and p.cast.place is not None for p in treatment.parameters):
        raise NoSafeEdit(
            "no line is known that made the weights bfloat16: keep them in float32 where they are made"
        )
    _enter_regions(sources, evidence)


def _at(parameters: Sequence[Parameter]) -> str:
    places = [p.cast.place for p in parameters if p.cast is not None and p.cast.place is not None]
    return f" (cast at {places[0].file}:{places[0].line})" if places else ""


def _enter_regions(sources: Sources, evidence: Evidence) -> None:
    bare = [forward for forward in evidence.forwards if not forward.autocast]
    if evidence.forwards and not bare:
        return  # they all run under autocast already
    if not bare:
        raise NoSafeEdit(
            "no line of yours was seen to call the model: put the one that does into torch.autocast(..., "
            "dtype=torch.bfloat16) by hand, or let the library that calls it do so (bf16=True)"
        )
    files: dict[str, list[Forward]] = {}
    for forward in bare:
        files.setdefault(forward.place.file, []).append(forward)
    for forwards in files.values():
        file = sources.at(forwards[0].place)
        region = f'torch.autocast(device_type="{forwards[0].device or "cpu"}", dtype=torch.bfloat16)'
        statements = _calling(file, forwards)
        for run in _runs(file, statements):
            file.wrap(run, cst.parse_expression(region))
        file.add_import("import torch", "torch")


def _calling(file: SourceFile, forwards: Iterable[Forward]) -> dict[cst.SimpleStatementLine, None]:
    """Return the statements that were seen to call a model, and those that make the same call."""
    found: dict[cst.SimpleStatementLine, None] = {}
    idle: set[str] = set()
    for forward in forwards:
        calls = file.calls_at(forward.place.line)
        named = [call for call in calls if text(call.func) == forward.expression] or calls
        statement = _wrappable(file, named)
        if statement is None:
            raise _by_hand(forward.place)
        found[statement] = None
        idle |= set(_regions(file, statement))
    expressions = {forward.expression for forward in forwards} - {""}
    for call in file.all(cst.Call):
        statement = _wrappable(file, [call]) if text(call.func) in expressions else None
        if statement is not None and not set(_regions(file, statement)) - idle:
            found.setdefault(statement)
    return found


def _by_hand(place: Place) -> NoSafeEdit:
    return NoSafeEdit(
        f"run the model's call at {place.file}:{place.line} under torch.autocast(..., dtype=torch.bfloat16) "
        f"by hand, as a statement of its own: {place.code}"
    )


def _wrappable(file: SourceFile, calls: Sequence[cst.Call]) -> cst.SimpleStatementLine | None:
    """Return the statement of the calls, where a ``with`` around it would do."""
    statement = next((s for s in map(file.statement, calls) if s is not None), None)
    if statement is None or not isinstance(file.parent(statement), Block):
        return None
    leaves = any(isinstance(n, (cst.Yield, cst.Await)) for n in _nodes(statement))
    return None if leaves or _in_class_body(file, statement) else statement


def _in_class_body(file: SourceFile, node: cst.CSTNode) -> bool:
    for above in file.ancestors(node):
        if isinstance(above, (cst.FunctionDef, cst.Lambda)):
            return False
        if isinstance(above, cst.ClassDef):
            return True
    return False


def _regions(file: SourceFile, node: cst.CSTNode) -> list[str]:
    """Return the autocast contexts that are written around a node, in its function."""
    found = []
    for above in file.ancestors(node):
        if isinstance(above, cst.FunctionDef):
            found += [text(d.decorator) for d in above.decorators if "autocast" in text(d.decorator)]
            break
        if isinstance(above, cst.With):
            found += [text(item.item) for item in above.items if "autocast" in text(item.item)]
    return found


def _runs(file: SourceFile, statements: dict[cst.SimpleStatementLine, None]) -> list[list[cst.BaseStatement]]:
    """Return the statements with the losses computed right after them, neighbours in one run."""
    runs: list[list[cst.BaseStatement]] = []
    blocks = {file.parent(s): None for s in statements}
    for block in blocks:
        assert isinstance(block, Block)
        body: list[Any] = list(block.body)
        run: list[cst.BaseStatement] = []
        names: set[str] = set()
        for index, statement in enumerate(body):
            extends = run and _is_loss(statement, names) and _steps_later(body[index:])
            if statement in statements or extends:
                run.append(statement)
                names |= _assigned(statement)
            elif run:
                runs.append(run)
                run, names = [], set()
        if run:
            runs.append(run)
    return runs


def _is_loss(statement: cst.BaseStatement, names: set[str]) -> bool:
    """Tell whether a statement computes something from what the model returned, on the way to backward."""
    if not isinstance(statement, cst.SimpleStatementLine) or not _assigned(statement):
        return False
    used = {node.value for node in _nodes(statement) if isinstance(node, cst.Name)}
    methods = {node.attr.value for node in _nodes(statement) if isinstance(node, cst.Attribute)}
    return bool(used & names) and not methods & {"backward", "step", "zero_grad", "item", "detach"}


def _steps_later(rest: Sequence[cst.BaseStatement]) -> bool:
    return any(
        node.attr.value == "backward"
        for statement in rest
        for node in _nodes(statement)
        if isinstance(node, cst.Attribute)
    )


def _assigned(statement: cst.BaseStatement) -> set[str]:
    found: set[str] = set()
    for part in statement.body if isinstance(statement, cst.SimpleStatementLine) else ():
        targets: list[Any] = []
        if isinstance(part, cst.Assign):
            targets = [target.target for target in part.targets]
        elif isinstance(part, (cst.AnnAssign, cst.AugAssign)):
            targets = [part.target]
        for target in targets:
            elements = target.elements if isinstance(target, (cst.Tuple, cst.List)) else ()
            found |= {dotted(t) for t in [target, *(e.value for e in elements)]} - {""}
    return found


def _nodes(node: cst.CSTNode) -> list[cst.CSTNode]:
    found = [node]
    for child in node.children:
        found += _nodes(child)
    return found
