"""Small questions about expressions, and small changes of calls."""

from __future__ import annotations

import libcst as cst

#: names of torch's dtypes below float32 that have methods or are passed around
LOW = ("bfloat16", "half", "float16")


def text(node: cst.CSTNode) -> str:
    """Return the source of a node on its own."""
    return cst.Module(body=[]).code_for_node(node)


def dotted(node: cst.CSTNode) -> str:
    """Return ``a.b.c`` for a chain of names, else nothing."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr.value}" if owner else ""
    return ""


def last_name(node: cst.CSTNode) -> str:
    """Return the last part of what is called: ``AdamW`` of ``torch.optim.AdamW``."""
    if isinstance(node, cst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, cst.Name) else ""


def names_low_format(node: cst.CSTNode) -> bool:
    """Tell whether an expression is a dtype below float32, such as ``torch.bfloat16`` or "bfloat16"."""
    if isinstance(node, cst.SimpleString):
        value = node.evaluated_value
        return isinstance(value, str) and value.removeprefix("torch.") in LOW
    return isinstance(node, (cst.Name, cst.Attribute)) and last_name(node) in LOW


def keyword(call: cst.Call, *names: str) -> cst.Arg | None:
    """Return the first of the keyword arguments that a call has."""
    for argument in call.args:
        if argument.keyword is not None and argument.keyword.value in names:
            return argument
    return None


def positional(call: cst.Call) -> list[cst.Arg]:
    """Return the arguments of a call that are given by position, without ``*`` ones."""
    return [argument for argument in call.args if argument.keyword is None and not argument.star]


def ending_as(
    space: cst.BaseParenthesizableWhitespace, other: cst.BaseParenthesizableWhitespace
) -> cst.BaseParenthesizableWhitespace:
    """Return whitespace with its comment and line break, indented on the last line as another is."""
    whole = cst.ParenthesizedWhitespace
    if isinstance(space, whole) and isinstance(other, whole):
        return space.with_changes(indent=other.indent, last_line=other.last_line)
    return space if "#" in text(space) else other


def without_argument(call: cst.Call, index: int) -> cst.Call:
    """Return a call without one of its arguments, the others in their layout."""
    arguments = list(call.args)
    removed = arguments.pop(index)
    if arguments and index == len(arguments):  # the last: the one before ends as it did
        last = arguments[-1]
        before, comma = _after(last), removed.comma
        if isinstance(comma, cst.Comma):
            comma = comma.with_changes(whitespace_after=ending_as(before, comma.whitespace_after))
            arguments[-1] = last.with_changes(comma=comma)
        else:
            space = ending_as(before, removed.whitespace_after_arg)
            arguments[-1] = last.with_changes(comma=comma, whitespace_after_arg=space)
    return call.with_changes(args=arguments)


def with_keyword(call: cst.Call, name: str, value: str) -> cst.Call:
    """Return a call with a keyword argument set, in place or at the end."""
    expression = cst.parse_expression(value)
    arguments = list(call.args)
    for index, argument in enumerate(arguments):
        if argument.keyword is not None and argument.keyword.value == name:
            arguments[index] = argument.with_changes(value=expression)
            return call.with_changes(args=arguments)
    equal = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
    added = cst.Arg(expression, keyword=cst.Name(name), equal=equal)
    if not arguments:
        return call.with_changes(args=[added])
    last, closing = arguments[-1], _after(arguments[-1])
    between = ending_as(closing, _line_break(call) or cst.SimpleWhitespace(" "))
    comma = cst.Comma(whitespace_after=between)
    bare = closing
    if isinstance(bare, cst.ParenthesizedWhitespace):  # the comment has stayed with its argument
        first = bare.first_line.with_changes(comment=None, whitespace=cst.SimpleWhitespace(""))
        bare = bare.with_changes(first_line=first, empty_lines=[])
    if isinstance(last.comma, cst.Comma):  # a trailing comma goes on trailing
        added = added.with_changes(comma=last.comma.with_changes(whitespace_after=bare))
    else:
        added = added.with_changes(whitespace_after_arg=bare)
    arguments[-1] = last.with_changes(comma=comma, whitespace_after_arg=cst.SimpleWhitespace(""))
    return call.with_changes(args=[*arguments, added])


def _after(argument: cst.Arg) -> cst.BaseParenthesizableWhitespace:
    """Return the whitespace after an argument and its comma."""
    if isinstance(argument.comma, cst.Comma):
        return argument.comma.whitespace_after
    return argument.whitespace_after_arg


def _line_break(call: cst.Call) -> cst.ParenthesizedWhitespace | None:
    """Return the line break between the arguments of a call that has one argument per line."""
    for argument in call.args[:-1]:
        after = argument.comma.whitespace_after if isinstance(argument.comma, cst.Comma) else None
        if isinstance(after, cst.ParenthesizedWhitespace):
            return cst.ParenthesizedWhitespace(indent=after.indent, last_line=after.last_line)
    before = call.whitespace_before_args
    if isinstance(before, cst.ParenthesizedWhitespace):
        return cst.ParenthesizedWhitespace(indent=before.indent, last_line=before.last_line)
    return None


def times(expression: cst.BaseExpression, factor: float) -> cst.BaseExpression:
    """Return an expression multiplied by a number."""
    tight = (cst.Name, cst.Attribute, cst.Call, cst.Subscript, cst.Integer, cst.Float)
    product = isinstance(expression, cst.BinaryOperation) and isinstance(
        expression.operator, (cst.Multiply, cst.Divide)
    )
    if not expression.lpar and not isinstance(expression, tight) and not product:
        expression = expression.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return cst.BinaryOperation(expression, cst.Multiply(), cst.parse_expression(f"{factor:.3g}"))
