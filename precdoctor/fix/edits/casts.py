"""Takes a cast of a model to a format below float32 out of the line that makes it."""

from __future__ import annotations

from typing import Any

import libcst as cst

from precdoctor.evidence import Cast, Place
from precdoctor.fix.edits.syntax import (
    dotted,
    ending_as,
    keyword,
    last_name,
    names_low_format,
    positional,
    text,
    with_keyword,
    without_argument,
)
from precdoctor.fix.sources import NoSafeEdit, SourceFile, Sources

#: keyword arguments that name the format of what a call makes
_FORMATS = ("dtype", "torch_dtype")


def remove_cast(sources: Sources, cast: Cast, place: Place) -> None:
    """Take a cast out of the line at a place, or change the constant that names its format."""
    file = sources.at(place)
    if _remove_at(file, place, cast.how):
        if _is_conditional(file, place):
            sources.note(
                f"the cast at {place.file}:{place.line} depended on a condition; autocast now does not"
            )
        return
    if cast.constant is not None and _to_float32(sources.at(cast.constant), cast.constant):
        return
    raise NoSafeEdit(f"take the cast to {cast.after} out of {place.file}:{place.line}: {place.code}")


def _remove_at(file: SourceFile, place: Place, how: str) -> bool:
    done = False
    for call in file.calls_at(place.line):
        if _remove(file, call, how):
            done = True
    return done


def _remove(file: SourceFile, call: cst.Call, how: str) -> bool:
    name = last_name(call.func)
    if name == "set_default_dtype":
        statement = file.parent(call)
        if not isinstance(statement, cst.Expr):
            return False
        file.remove(statement)
        return True
    if how == "from_pretrained":
        argument = keyword(call, *_FORMATS)
        if argument is None or argument.keyword is None:
            return False
        format = argument.keyword.value
        file.change(call, lambda updated: with_keyword(updated, format, "torch.float32"))
        file.add_import("import torch", "torch")
        return True
    if how.startswith("module.") and name not in ("to", "type", "bfloat16", "half"):
        return False
    index = _format_argument(call, name, how)
    if isinstance(call.func, cst.Attribute):
        if name in ("bfloat16", "half") and not call.args and dotted(call.func.value) != "torch":
            return _unwrap(file, call)
        if name in ("to", "type") and index is not None and len(call.args) == 1:
            return _unwrap(file, call)
    if index is None:
        return False
    file.change(call, lambda updated: without_argument(updated, index))
    return True


def _format_argument(call: cst.Call, name: str, how: str) -> int | None:
    """Return which argument of a call names the format."""
    named = keyword(call, *_FORMATS)
    if named is not None:
        other = dotted(named.value).startswith("torch.") and not names_low_format(named.value)
        return None if other else list(call.args).index(named)
    for index, argument in enumerate(call.args):
        if names_low_format(argument.value) and argument.keyword is None and name in ("to", "type"):
            return index
    given = positional(call)
    if how == "module.to" and name == "to" and 1 <= len(given) <= 2 and not any(a.star for a in call.args):
        last = given[-1]  # the line is known to have changed the format
        if len(given) == 2 or not any(word in text(last) for word in ("dev", "cuda", "cpu")):
            return list(call.args).index(last)
    return None


def _unwrap(file: SourceFile, call: cst.Call) -> bool:
    """Put the receiver of a method in the place of its call; a statement left without effect goes."""
    assert isinstance(call.func, cst.Attribute)
    above = call.func.dot.whitespace_before
    if "#" in text(call.func.dot.whitespace_after) + text(call.whitespace_before_args):
        return False
    if "#" in text(above) and not _keep_comment(file, call, above):
        return False

    def receiver(updated: cst.Call) -> cst.BaseExpression:
        assert isinstance(updated.func, cst.Attribute)
        inner = updated.func.value
        return inner.with_changes(lpar=[*updated.lpar, *inner.lpar], rpar=[*inner.rpar, *updated.rpar])

    file.change(call, receiver)
    for holder in file.ancestors(call):
        if isinstance(holder, (cst.Assign, cst.Expr)):
            if _is_idle(file.changed(holder)):
                file.remove(holder)
            break
        if isinstance(holder, cst.BaseStatement):
            break
    return True


def _keep_comment(file: SourceFile, call: cst.Call, above: cst.BaseParenthesizableWhitespace) -> bool:
    """Move a comment on the line above a method's call to what follows the call."""
    after = file.parent(call)
    if isinstance(after, cst.Attribute):
        file.change(after.dot, lambda dot: dot.with_changes(whitespace_before=above))
        return True
    if call.rpar:
        first = call.rpar[0].with_changes(whitespace_before=ending_as(above, call.rpar[0].whitespace_before))
        file.change(call, lambda updated: updated.with_changes(rpar=[first, *updated.rpar[1:]]))
        return True
    return False


def _is_idle(statement: Any) -> bool:
    """Tell whether a statement does nothing: ``model`` or ``model = model``."""
    value = statement.value
    if not dotted(value):
        return False
    if isinstance(statement, cst.Expr):
        return True
    targets = [target.target for target in statement.targets]
    return len(targets) == 1 and dotted(targets[0]) in (dotted(value), dotted(value).removesuffix(".data"))


def _to_float32(file: SourceFile, constant: Place) -> bool:
    """Set a constant that names a format to float32."""
    for node in [*file.all(cst.Attribute), *file.all(cst.SimpleString)]:
        if file.range(node).start.line != constant.line or not names_low_format(node):
            continue
        if isinstance(node, cst.SimpleString):
            file.replace(node, cst.SimpleString(node.value.replace(str(node.evaluated_value), "float32")))
        else:
            file.change(node, lambda updated: updated.with_changes(attr=cst.Name("float32")))
        return True
    return False


def _is_conditional(file: SourceFile, place: Place) -> bool:
    for call in file.calls_at(place.line):
        for above in file.ancestors(call):
            if isinstance(above, (cst.If, cst.IfExp)):
                return "__name__" not in text(above.test)
            if isinstance(above, cst.FunctionDef):
                return False
    return False
