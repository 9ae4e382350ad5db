"""Search in the user's source: for what the run itself could not show, always ``certain=False``."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterable, Iterator
from pathlib import Path

from precdoctor.evidence import Place

_Function = ast.FunctionDef | ast.AsyncFunctionDef

#: names of torch dtypes below float32, and the formats they are
_LOW = {
    "bfloat16": "bfloat16",
    "half": "float16",
    "float16": "float16",
    "float8_e4m3fn": "e4m3fn",
    "float8_e5m2": "e5m2",
}
#: methods that return something without a gradient
_CUTTING_METHODS = {
    "item",
    "detach",
    "detach_",
    "numpy",
    "tolist",
    "round",
    "argmax",
    "sign",
    "floor",
    "ceil",
}
#: calls that build a new leaf from values
_REBUILDING = {
    "torch.tensor",
    "torch.as_tensor",
    "torch.from_numpy",
    "torch.FloatTensor",
    "np.array",
    "np.asarray",
}
_CUTTING_CALLS = {
    *_REBUILDING,
    *("float", "int", "round"),
    *("torch.round", "torch.argmax", "torch.sign", "torch.floor", "torch.ceil"),
}
_GRADIENT_OFF = ("no_grad", "inference_mode")
_MODEL_WORDS = ("model", "net", "encoder", "decoder", "actor", "critic", "policy", "head", "layer", "self")


class Source:
    """The user's source files, parsed once; paths are relative to ``root``, the working directory."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or Path.cwd()
        self._trees: dict[str, ast.Module | None] = {}

    def place(self, file: str, line: int, function: str = "", *, certain: bool = True) -> Place:
        """Return the place of a line; the file is given relative to the root where it lies below it."""
        path = str(self._root / file)
        code = linecache.getline(path, line).strip()
        return Place(file=self._shown(path), line=line, function=function, code=code, certain=certain)

    def excerpts(
        self, places: Iterable[Place], around: int = 6
    ) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
        """Return the source around the places as (file, first line, lines), overlapping ones merged."""
        spans: dict[str, list[tuple[int, int]]] = {}
        for file, line in sorted({(place.file, place.line) for place in places}):
            low, high = max(line - around, 1), line + around
            known = spans.setdefault(file, [])
            if known and low <= known[-1][1] + 1:
                known[-1] = (known[-1][0], high)
            else:
                known.append((low, high))
        found = []
        for file, ranges in spans.items():
            lines = [line.rstrip("\n") for line in linecache.getlines(str(self._root / file))]
            found += [(file, low, tuple(lines[low - 1 : high])) for low, high in ranges if low <= len(lines)]
        return tuple(found)

    def dtype_constant(self, place: Place) -> Place | None:
        """Return the assignment that gave the cast at a place its format, one name away.

        Such as ``DTYPE = torch.bfloat16`` for ``model.to(DTYPE)``; assignments in the enclosing function,
        defaults of its arguments and the module level are searched, in this order.
        """
        tree = self._tree(place.file)
        if tree is None:
            return None
        for call in _calls_at(tree, place.line):
            for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                if isinstance(argument, ast.Name):
                    value = _value_of(argument.id, tree, _function_at(tree, place.line))
                    if value is not None and _low_format(value, {}):
                        return self._found(place.file, value.lineno, tree)
        return None

    def likely_casts(self, files: Iterable[str], format: str = "") -> tuple[Place, ...]:
        """Return the lines that look like casts of a model to a format below float32, the likeliest first.

        ``format`` restricts the search to one format. Casts whose receiver does not look like a model are
        returned only where there is no other.
        """
        ranked = []
        for file in files:
            tree = self._tree(file)
            if tree is not None:
                constants = dict(_assignments(tree))
                for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                    rank, found = _cast_rank(call, constants)
                    if rank is not None and (not format or found in (format, "")):
                        ranked.append((rank, self._found(file, _call_line(call), tree)))
        best = min((rank for rank, _ in ranked), default=0)
        return tuple(place for rank, place in ranked if rank == best)

    def data_assignments(self, files: Iterable[str]) -> tuple[Place, ...]:
        """Return the lines that assign to ``.data``."""
        found = []
        for file in files:
            tree = self._tree(file)
            for node in ast.walk(tree) if tree is not None else ():
                if (
                    isinstance(node, ast.Attribute)
                    and node.attr == "data"
                    and isinstance(node.ctx, ast.Store)
                ):
                    found.append(self._found(file, node.lineno, tree))
        return tuple(found)

    def cuts_in(self, place: Place) -> tuple[Place, ...]:
        """Return the lines that cut the graph of the loss whose backward is called at a place, nearest first.

        Follows the receiver through the assignments of the function that calls backward, the lists it is
        built from and the functions of the same file.
        """
        tree = self._tree(place.file)
        if tree is None:
            return ()
        scope = _function_at(tree, place.line) or tree
        for call in _calls_at(tree, place.line):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "backward":
                search = _CutSearch(tree)
                search.follow([call.func.value, *call.args], scope)
                return tuple(self._found(place.file, line, tree) for line in search.lines)
        return ()

    def _tree(self, file: str) -> ast.Module | None:
        path = str(self._root / file)
        if path not in self._trees:
            try:
                self._trees[path] = ast.parse("".join(linecache.getlines(path)))
            except (SyntaxError, ValueError):
                self._trees[path] = None
        return self._trees[path]

    def _found(self, file: str, line: int, tree: ast.Module | None) -> Place:
        function = _function_at(tree, line) if tree is not None else None
        return self.place(file, line, "" if function is None else function.name, certain=False)

    def _shown(self, path: str) -> str:
        try:
            return str(Path(path).relative_to(self._root))
        except ValueError:
            return path


class _CutSearch:
    """Walks backwards from a loss through assignments, and notes the lines that cut its graph."""

    def __init__(self, tree: ast.Module) -> None:
        self.lines: list[int] = []
        self._tree = tree
        self._seen: set[tuple[int, str]] = set()

    def follow(self, expressions: list[ast.expr], scope: ast.AST, depth: int = 3) -> None:
        """Note the cuts in expressions of a scope and in all that they are built from."""
        queue = list(expressions)
        while queue:
            expression = queue.pop(0)
            names = self._examine(expression)
            for function in self._called(expression) if depth else ():
                key = (id(function), "()")
                if key not in self._seen:
                    self._seen.add(key)
                    self._note(*(d.lineno for d in function.decorator_list if _turns_gradient_off(d)))
                    results = [
                        n.value
                        for n in ast.walk(function)
                        if isinstance(n, ast.Return) and n.value is not None
                    ]
                    self.follow(results, function, depth - 1)
            for name in names:
                if (id(scope), name) not in self._seen:
                    self._seen.add((id(scope), name))
                    queue += self._sources(name, scope)

    def _examine(self, expression: ast.expr) -> list[str]:
        """Note the cuts in an expression; return the names through which a graph may still come."""
        names: list[str] = []
        pending: list[ast.AST] = [expression]
        while pending:
            node = pending.pop(0)
            line = _cut_line(node)
            if line:
                self._note(line)
                if not (isinstance(node, ast.Call) and _dotted(node.func) in _REBUILDING):
                    continue
            name = _dotted(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""
            if name:
                names.append(name)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                pending += [*node.args, *(keyword.value for keyword in node.keywords)]
            else:
                pending += ast.iter_child_nodes(node)
            if "." in name:  # loss.mean: the graph comes through loss, or through self.loss
                names += [name.rpartition(".")[0]]
        return names

    def _sources(self, name: str, scope: ast.AST) -> Iterator[ast.expr]:
        for node in ast.walk(scope):
            value: ast.expr | None = None
            if isinstance(node, ast.Assign) and any(_targets(target, name) for target in node.targets):
                value = node.value
            elif isinstance(node, (ast.For, ast.comprehension)) and _targets(node.target, name):
                value = node.iter
            elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)):
                value = node.value if _targets(node.target, name) else None
            elif isinstance(node, ast.Call) and _dotted(node.func) in (f"{name}.append", f"{name}.extend"):
                before = len(self.lines)
                for argument in node.args:
                    self._examine(argument)
                if len(self.lines) == before:
                    yield from node.args
            elif isinstance(node, (ast.With, ast.AsyncWith)):
                off = [item.context_expr for item in node.items if _turns_gradient_off(item.context_expr)]
                if off and any(_assigns(statement, name) for statement in node.body):
                    self._note(*(expression.lineno for expression in off))
            if value is not None:
                yield value

    def _called(self, expression: ast.expr) -> list[_Function]:
        names = {
            _dotted(node.func).removeprefix("self.")
            for node in ast.walk(expression)
            if isinstance(node, ast.Call)
        }
        functions = [node for node in ast.walk(self._tree) if isinstance(node, _Function)]
        found = [[f for f in functions if f.name == name] for name in sorted(names)]
        return [same[0] for same in found if len(same) == 1]

    def _note(self, *lines: int) -> None:
        self.lines += [line for line in lines if line not in self.lines]


def _cut_line(node: ast.AST) -> int:
    """Return the line at which a node cuts the graph, 0 where it does not."""
    if isinstance(node, ast.Attribute) and node.attr == "data" and isinstance(node.ctx, ast.Load):
        return node.end_lineno or node.lineno
    if not isinstance(node, ast.Call):
        return 0
    if isinstance(node.func, ast.Attribute) and node.func.attr in _CUTTING_METHODS:
        root = _dotted(node.func.value)
        if root not in ("torch", "np", "numpy", "math"):
            return _call_line(node)
    if _dotted(node.func) in _CUTTING_CALLS and node.args and not isinstance(node.args[0], ast.Constant):
        counts = isinstance(node.args[0], ast.Call) and _dotted(node.args[0].func) == "len"
        return 0 if counts else node.lineno
    return 0


def _cast_rank(call: ast.Call, constants: dict[str, ast.expr]) -> tuple[int | None, str]:
    """Return how likely a call casts a model (0 = likeliest, None = it does not) and the format."""
    name = _dotted(call.func)
    method = call.func.attr if isinstance(call.func, ast.Attribute) else name
    if "autocast" in name or method in ("finfo", "save"):
        return None, ""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    if method in ("bfloat16", "half") and not call.args and isinstance(call.func, ast.Attribute):
        return _receiver_rank(call.func.value), _LOW[method]
    formats = [
        found for value in [*call.args, *keywords.values()] if (found := _low_format(value, constants))
    ]
    if not formats:
        if method == "from_pretrained" or (method == "load_state_dict" and "assign" in keywords):
            return 1, ""
        return None, ""
    if method in ("to", "type", "_apply") and isinstance(call.func, ast.Attribute):
        return _receiver_rank(call.func.value), formats[0]
    if method in ("set_default_dtype", "from_pretrained", "from_config"):
        return 0, formats[0]
    builds = method[:1].isupper() and method not in ("Tensor", "FloatTensor")
    return (0 if builds else 2), formats[0]


def _receiver_rank(receiver: ast.expr) -> int:
    if isinstance(receiver, ast.Call):
        name = _dotted(receiver.func)
        last = name.rpartition(".")[2]
        if last[:1].isupper() or any(word in last.lower() for word in _MODEL_WORDS):
            return 0
        return _receiver_rank(receiver.func) if isinstance(receiver.func, ast.Attribute) else 2
    last = _dotted(receiver).rpartition(".")[2].lower()
    return 0 if any(word in last for word in _MODEL_WORDS) else 2


def _low_format(value: ast.expr, constants: dict[str, ast.expr]) -> str:
    """Return the format below float32 that an expression names, else nothing."""
    if isinstance(value, ast.Name) and value.id in constants:
        return _low_format(constants[value.id], {})
    if isinstance(value, ast.IfExp):
        return _low_format(value.body, constants) or _low_format(value.orelse, constants)
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return _LOW.get(value.value.removeprefix("torch."), "")
    if isinstance(value, ast.Attribute) and _dotted(value).startswith(("torch.", "th.")):
        return _LOW.get(value.attr, "")
    return ""


def _value_of(name: str, tree: ast.Module, function: _Function | None) -> ast.expr | None:
    """Return the value a name was given in the function, by its defaults, or at the module level."""
    if function is not None:
        for found, value in _assignments(function):
            if found == name:
                return value
        arguments = function.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = dict(
            zip((a.arg for a in reversed(positional)), reversed(arguments.defaults), strict=False)
        ) | {
            a.arg: d
            for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if d is not None
        }
        if name in defaults:
            return defaults[name]
    return dict(_assignments(tree)).get(name)


def _assignments(scope: ast.Module | _Function) -> Iterator[tuple[str, ast.expr]]:
    """Yield the simple assignments directly in a scope."""
    for statement in scope.body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    yield target.id, statement.value
        elif (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value
        ):
            yield statement.target.id, statement.value


def _calls_at(tree: ast.Module, line: int) -> list[ast.Call]:
    """Return the calls that span a line, those that stand on it first."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.lineno <= line <= (n.end_lineno or 0)]
    return sorted(calls, key=lambda call: abs(_call_line(call) - line))


def _call_line(call: ast.Call) -> int:
    """Return the line of a call as the interpreter reports it: that of the method's name in a chain."""
    return (call.func.end_lineno if isinstance(call.func, ast.Attribute) else None) or call.lineno


def _function_at(tree: ast.Module, line: int) -> _Function | None:
    functions = [
        n for n in ast.walk(tree) if isinstance(n, _Function) and n.lineno <= line <= (n.end_lineno or 0)
    ]
    return max(functions, key=lambda function: function.lineno, default=None)


def _dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a chain of names, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def _targets(target: ast.expr, name: str) -> bool:
    return any(
        _dotted(node) == name for node in ast.walk(target) if isinstance(node, (ast.Name, ast.Attribute))
    )


def _assigns(statement: ast.stmt, name: str) -> bool:
    return any(
        _targets(target, name)
        for node in ast.walk(statement)
        if isinstance(node, (ast.Assign, ast.AugAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )


def _turns_gradient_off(expression: ast.expr) -> bool:
    called = expression.func if isinstance(expression, ast.Call) else expression
    return _dotted(called).rpartition(".")[2] in _GRADIENT_OFF
