"""Finds where an optimizer is constructed, and edits that: a wrapper around it, its lr, its settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import libcst as cst

from precdoctor.evidence import Optimizer, Place
from precdoctor.fix.edits.syntax import keyword, last_name, positional, text, times, with_keyword
from precdoctor.fix.edits.treatment import Treatment
from precdoctor.fix.sources import NoSafeEdit, SourceFile, Sources

_WRAPPERS = {
    "master-weights": "MasterWeights",
    "stochastic-rounding": "StochasticRounding",
    "kahan": "KahanSummation",
    "float32-state": "Float32State",
}


def wrap_optimizer(sources: Sources, treatment: Treatment) -> None:
    """Put the remedy's wrapper around the optimizers that step the ill parameters."""
    wrapper = _WRAPPERS[treatment.remedy]
    for file, call, _, _ in _constructions(sources, treatment):
        file.change(call, lambda updated: cst.Call(cst.Name(wrapper), [cst.Arg(updated)]))
        file.add_import(f"from precdoctor.remedies import {wrapper}", wrapper)


def multiply_lr(sources: Sources, treatment: Treatment) -> None:
    """Multiply the learning rate of the groups that hold the ill parameters and no others."""
    factor = _number(treatment, "factor")
    for file, call, number, optimizer in _constructions(sources, treatment):
        for group in treatment.groups(number):
            members = _made_with(treatment, optimizer, group)
            if members - treatment.names:
                raise NoSafeEdit(
                    f"give the ill parameters a group of their own with {factor:.3g} times the lr at "
                    f"{_where(optimizer.place)}: {len(members - treatment.names)} others share theirs"
                )
            place = optimizer.groups[group].place if group < len(optimizer.groups) else None
            _multiply(sources, file, call, group, optimizer, place, factor)


def set_eps(sources: Sources, treatment: Treatment) -> None:
    """Set eps where the optimizer is constructed."""
    value = f"{_number(treatment, 'eps'):g}"
    _set_keywords(sources, treatment, "eps", 3, lambda _, call: with_keyword(call, "eps", value))


def set_beta2(sources: Sources, treatment: Treatment) -> None:
    """Set the second of the betas where the optimizer is constructed."""
    beta2 = f"{_number(treatment, 'beta2'):g}"

    def change(optimizer: Optimizer, call: cst.Call) -> cst.Call:
        argument = keyword(call, "betas")
        if argument is None:
            betas = next((group.betas for group in optimizer.groups if len(group.betas) == 2), None)
            if betas is None:
                raise NoSafeEdit(f"lower beta2 to {beta2} at {_where(optimizer.place)}: it has no betas")
            return with_keyword(call, "betas", f"({betas[0]:g}, {beta2})")
        value = argument.value
        if isinstance(value, (cst.Tuple, cst.List)) and len(value.elements) == 2:
            first, second = value.elements
            pair = value.with_changes(
                elements=[first, second.with_changes(value=cst.parse_expression(beta2))]
            )
            return with_keyword(call, "betas", text(pair))
        if isinstance(value, (cst.Name, cst.Attribute)):
            return with_keyword(call, "betas", f"({text(value)}[0], {beta2})")
        raise NoSafeEdit(f"lower beta2 to {beta2} at {_where(optimizer.place)}")

    _set_keywords(sources, treatment, "betas", 2, change)


def plain_loop(sources: Sources, treatment: Treatment) -> None:
    """Turn the fused and the foreach implementation off where the optimizer is constructed."""

    def change(optimizer: Optimizer, call: cst.Call) -> cst.Call:
        if not optimizer.type.startswith("torch.optim."):
            raise NoSafeEdit(f"use another implementation of the optimizer at {_where(optimizer.place)}")
        return with_keyword(with_keyword(call, "foreach", "False"), "fused", "False")

    _set_keywords(sources, treatment, "fused", 99, change)


# ---------------------------------------------------------------------- where


def _constructions(
    sources: Sources, treatment: Treatment
) -> list[tuple[SourceFile, cst.Call, int, Optimizer]]:
    """Return the call that constructs each optimizer concerned; one line may make several optimizers."""
    found: dict[cst.Call, tuple[SourceFile, cst.Call, int, Optimizer]] = {}
    for number, optimizer in treatment.optimizers:
        if optimizer.place is None:
            raise NoSafeEdit(f"no line is known that constructs {optimizer.type}")
        file = sources.at(optimizer.place)
        calls = file.calls_at(optimizer.place.line)
        name = optimizer.type.rpartition(".")[2]
        named = [call for call in calls if last_name(call.func) == name]
        # made under another name: the outermost call of an assignment or a return is the optimizer
        outer = [c for c in calls if isinstance(file.parent(c), (cst.Assign, cst.AnnAssign, cst.Return))]
        for call in named or outer[:1]:
            found.setdefault(call, (file, call, number, optimizer))
        if not named and not outer:
            raise NoSafeEdit(f"{treatment.remedy}: edit the optimizer at {_where(optimizer.place)} by hand")
    if not found:
        raise NoSafeEdit("no optimizer is known that steps the ill parameters")
    return list(found.values())


def _made_with(treatment: Treatment, optimizer: Optimizer, group: int) -> set[str]:
    """Return the parameters in a group of an optimizer, or of another that the same line makes."""
    optimizers = treatment.evidence.optimizers
    same = {number for number, other in enumerate(optimizers) if other.place == optimizer.place}
    return {p.name for p in treatment.evidence.parameters if p.optimizer in same and p.group == group}


def _set_keywords(
    sources: Sources,
    treatment: Treatment,
    name: str,
    position: int,
    change: Callable[[Optimizer, cst.Call], cst.Call],
) -> None:
    for file, call, _, optimizer in _constructions(sources, treatment):
        if len(positional(call)) > position or any(a.star for a in call.args):
            raise NoSafeEdit(f"set {name} at {_where(optimizer.place)} by hand")
        if name in {str(key) for element in _group_dicts(call) for key in _keys(element)}:
            raise NoSafeEdit(f"set {name} of the right group at {_where(optimizer.place)} by hand")
        file.change(call, partial(change, optimizer))


def _multiply(
    sources: Sources,
    file: SourceFile,
    call: cst.Call,
    group: int,
    optimizer: Optimizer,
    place: Place | None,
    factor: float,
) -> None:
    """Multiply a group's lr: in its dict, in the constructor, or where the group was added."""
    by_hand = NoSafeEdit(f"multiply the lr at {_where(place or optimizer.place)} by {factor:.3g} by hand")
    dicts = _group_dicts(call)
    if not dicts and place is not None and place != optimizer.place:  # add_param_group
        file = sources.at(place)
        added = [c for c in file.calls_at(place.line) if last_name(c.func) == "add_param_group"]
        dicts = [v for c in added for v in (a.value for a in c.args) if isinstance(v, cst.Dict)]
        group = 0
    argument = keyword(call, "lr")
    if argument is None and len(positional(call)) > 1 and optimizer.type.startswith("torch.optim."):
        argument = positional(call)[1]
    if dicts:
        if group >= len(dicts):
            raise by_hand
        element = _keys(dicts[group]).get("lr")
        if element is not None:
            file.change(element, lambda updated: updated.with_changes(value=times(updated.value, factor)))
        elif argument is not None:
            value = text(times(argument.value, factor))
            file.change(dicts[group], lambda updated: _with_key(updated, "lr", value))
        else:
            raise by_hand
        return
    if argument is None or len(optimizer.groups) > 1:
        raise by_hand
    file.change(argument, lambda updated: updated.with_changes(value=times(updated.value, factor)))


def _group_dicts(call: cst.Call) -> list[cst.Dict]:
    """Return the dicts of a constructor's parameter groups, where all are written out."""
    given = positional(call)[:1] + [a for a in [keyword(call, "params")] if a is not None]
    for argument in given:
        if isinstance(argument.value, (cst.List, cst.Tuple)):
            elements = [element.value for element in argument.value.elements]
            found = [element for element in elements if isinstance(element, cst.Dict)]
            return found if len(found) == len(elements) else []
    return []


def _keys(element: cst.Dict) -> dict[str, cst.DictElement]:
    return {
        str(item.key.evaluated_value): item
        for item in element.elements
        if isinstance(item, cst.DictElement) and isinstance(item.key, cst.SimpleString)
    }


def _with_key(element: cst.Dict, key: str, value: str) -> Any:
    items = list(element.elements)
    quote = next(
        (
            i.key.quote
            for i in items
            if isinstance(i, cst.DictElement) and isinstance(i.key, cst.SimpleString)
        ),
        '"',
    )
    last = items[-1]
    added = cst.DictElement(
        cst.SimpleString(f"{quote}{key}{quote}"), cst.parse_expression(value), comma=last.comma
    )
    items[-1] = last.with_changes(comma=cst.Comma(whitespace_after=cst.SimpleWhitespace(" ")))
    return element.with_changes(elements=[*items, added])


def _number(treatment: Treatment, name: str) -> float:
    value = treatment.settings.get(name)
    if not isinstance(value, (int, float)):
        raise NoSafeEdit(f"{treatment.remedy}: no {name} is known that would do")
    return float(value)


def _where(place: Place | None) -> str:
    return "an unknown line" if place is None else f"{place.file}:{place.line}"
