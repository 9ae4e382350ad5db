"""The user's source files under edit: nodes are found by line, changed together, and everything else stays.

A change is a function of the node as its own children's changes left it, so that changes nest.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, ParentNodeProvider, PositionProvider

from precdoctor.evidence import Place

_Node = TypeVar("_Node", bound=cst.CSTNode)
Change = Callable[[Any], Any]
#: what holds statements that stand on lines of their own
Block = (cst.Module, cst.IndentedBlock)


class NoSafeEdit(Exception):
    """What to do cannot be written safely; the sentence says what to do by hand, and where."""


class SourceFile:
    """One file; its text on disk is read once."""

    def __init__(self, path: Path, shown: str) -> None:
        self.path, self.shown = path, shown
        try:
            self.before = path.read_bytes()
            self._encoding, _ = tokenize.detect_encoding(io.BytesIO(self.before).readline)
            text = self.before.decode(self._encoding)  # "utf-8-sig" takes the mark off and puts it back
            wrapper = MetadataWrapper(cst.parse_module(text))
        except (OSError, SyntaxError, UnicodeDecodeError, cst.ParserSyntaxError) as error:
            raise NoSafeEdit(f"{shown} cannot be edited: {str(error).splitlines()[0]}") from None
        self.module = wrapper.module
        if self.module.code != text:
            raise NoSafeEdit(f"{shown} cannot be edited: it would not stay as it is elsewhere")
        self._ranges = wrapper.resolve(PositionProvider)
        self._parents = wrapper.resolve(ParentNodeProvider)
        self._lines = text.splitlines()
        self._changes: dict[cst.CSTNode, list[Change]] = {}
        self._imports: dict[str, None] = {}

    # ------------------------------------------------------------------ looking

    def line(self, number: int) -> str:
        """Return a line, stripped; empty where there is none."""
        return self._lines[number - 1].strip() if 0 < number <= len(self._lines) else ""

    def all(self, kind: type[_Node]) -> list[_Node]:
        """Return all nodes of a kind in the order of the text."""
        found = [node for node in self._ranges if isinstance(node, kind)]
        return sorted(found, key=lambda node: (self.range(node).start.line, self.range(node).start.column))

    def range(self, node: cst.CSTNode) -> CodeRange:
        """Return where a node stands, without the whitespace around it."""
        found = self._ranges[node]
        assert isinstance(found, CodeRange)
        return found

    def parent(self, node: cst.CSTNode) -> cst.CSTNode:
        """Return the node that holds another."""
        found = self._parents[node]
        assert isinstance(found, cst.CSTNode)
        return found

    def ancestors(self, node: cst.CSTNode) -> list[cst.CSTNode]:
        """Return the nodes around a node, innermost first."""
        found = []
        while (above := self._parents.get(node)) is not None:
            assert isinstance(above, cst.CSTNode)
            found.append(above)
            node = above
        return found

    def calls_at(self, line: int) -> list[cst.Call]:
        """Return the calls that the interpreter reports at a line; where none is, those that span it.

        Outermost first. In a chain the line is that of the method's name.
        """
        spanning = [
            call
            for call in self.all(cst.Call)
            if self.range(call).start.line <= line <= self.range(call).end.line
        ]
        exact = [call for call in spanning if self._call_line(call) == line]
        return sorted(exact or spanning, key=lambda call: len(self.ancestors(call)))

    def _call_line(self, call: cst.Call) -> int:
        if isinstance(call.func, cst.Attribute):
            return self.range(call.func).end.line
        return self.range(call).start.line

    def code(self, node: cst.CSTNode) -> str:
        """Return the text of a node."""
        return self.module.code_for_node(node)

    def statement(self, node: cst.CSTNode) -> cst.SimpleStatementLine | None:
        """Return the line of simple statements that a node stands in; None in headers, lambdas and suites."""
        for above in [node, *self.ancestors(node)]:
            if isinstance(above, cst.SimpleStatementLine):
                return above
            if isinstance(above, (cst.BaseCompoundStatement, cst.Lambda, cst.SimpleStatementSuite)):
                return None
        return None

    def imports(self, name: str) -> bool:
        """Tell whether the module level imports a name."""
        for line in self.module.body:
            for part in line.body if isinstance(line, cst.SimpleStatementLine) else ():
                if isinstance(part, (cst.Import, cst.ImportFrom)) and not isinstance(
                    part.names, cst.ImportStar
                ):
                    for alias in part.names:
                        bound = alias.evaluated_alias or alias.evaluated_name
                        if bound.partition(".")[0] == name:
                            return True
        return False

    # ------------------------------------------------------------------ changing

    def change(self, node: cst.CSTNode, change: Change) -> None:
        """Arrange a change of a node."""
        self._changes.setdefault(node, []).append(change)

    def replace(self, node: cst.CSTNode, other: cst.CSTNode) -> None:
        """Put another node in a node's place."""
        self.change(node, lambda _: other)

    def changed(self, node: _Node) -> Any:
        """Return a node as its changes and those inside it make it."""
        return node.visit(_Apply(self._changes))

    def remove(self, part: cst.BaseSmallStatement) -> None:
        """Remove a simple statement; comments above it stay, and ``pass`` where nothing else would."""
        holder = self.parent(part)
        if isinstance(holder, cst.SimpleStatementSuite) or (
            isinstance(holder, cst.SimpleStatementLine) and len(holder.body) > 1
        ):
            others = [other for other in holder.body if other is not part]
            if not others:
                self.replace(part, cst.Pass())
                return
            self.change(part, lambda _: cst.RemoveFromParent())
            if holder.body[-1] is part:  # what is last now ends in a semicolon
                self.change(others[-1], lambda last: last.with_changes(semicolon=cst.MaybeSentinel.DEFAULT))
            return
        block = self.parent(holder)
        assert isinstance(holder, cst.SimpleStatementLine)
        assert isinstance(block, Block)
        siblings = list(block.body)
        if len(siblings) == 1 and not isinstance(block, cst.Module):
            plain = cst.TrailingWhitespace(newline=holder.trailing_whitespace.newline)
            self.change(holder, lambda line: line.with_changes(body=[cst.Pass()], trailing_whitespace=plain))
            return
        above = list(holder.leading_lines)
        self.change(holder, lambda _: cst.RemoveFromParent())
        index = siblings.index(holder) + 1
        if index < len(siblings):
            self.change(siblings[index], lambda after: _below(above, after))
        elif any(line.comment for line in above):
            self.change(block, lambda b: b.with_changes(footer=[*above, *b.footer]))

    def wrap(self, statements: Sequence[cst.BaseStatement], context: cst.BaseExpression) -> None:
        """Put neighbouring statements of a block into a ``with`` of their own."""
        held: list[Any] = []

        def hold(statement: Any) -> Any:
            held.append(statement)
            return cst.RemoveFromParent()

        def close(statement: Any) -> Any:
            first, *rest = [*held, statement]
            held.clear()
            return cst.With(
                items=[cst.WithItem(context)],
                body=cst.IndentedBlock([first.with_changes(leading_lines=()), *rest]),
                leading_lines=first.leading_lines,
            )

        for statement in statements[:-1]:
            self.change(statement, hold)
        self.change(statements[-1], close)

    def add_import(self, statement: str, name: str) -> None:
        """Import a name at the module level, unless it is imported there already."""
        if not self.imports(name):
            self._imports[statement] = None

    # ------------------------------------------------------------------ the result

    @property
    def after(self) -> bytes:
        """Return the file as all changes make it; raises `NoSafeEdit` where that is no Python."""
        changed = self.changed(self.module)
        assert isinstance(changed, cst.Module)
        for statement in self._imports:
            changed = _with_import(changed, cst.parse_statement(statement, config=changed.config_for_parsing))
        code = changed.code
        try:
            compile(code, str(self.path), "exec", dont_inherit=True)
        except SyntaxError as error:
            raise NoSafeEdit(f"{self.shown} cannot be edited: {error.msg}") from None
        return code.encode(self._encoding)


class Sources:
    """The files that an edit touches; paths are relative to ``root``, the working directory of the run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: what the user should know about the edit, in sentences
        self.notes: dict[str, None] = {}
        self._files: dict[Path, SourceFile] = {}

    def at(self, place: Place) -> SourceFile:
        """Return the file of a place, as long as its line is what the run saw there."""
        path = (self.root / place.file).resolve()
        if {"site-packages", "dist-packages"} & set(path.parts):
            raise NoSafeEdit(f"{place.file} belongs to an installed package")
        if path not in self._files:
            self._files[path] = SourceFile(path, place.file)
        file = self._files[path]
        if place.code and file.line(place.line) != place.code:
            raise NoSafeEdit(f"{place.file}:{place.line} is no longer what ran: {place.code}")
        return file

    def note(self, text: str) -> None:
        """Tell the user something about the edit."""
        self.notes[text] = None

    def changes(self) -> dict[Path, tuple[bytes, bytes]]:
        """Return the bytes before and after of the files that change."""
        found = {file.path: (file.before, file.after) for file in self._files.values()}
        return {path: (before, after) for path, (before, after) in found.items() if before != after}


class _Apply(cst.CSTTransformer):
    def __init__(self, changes: dict[cst.CSTNode, list[Change]]) -> None:
        super().__init__()
        self._changes = changes

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        for change in self._changes.get(original_node, ()):
            updated_node = change(updated_node)
        return updated_node


def _below(above: list[cst.EmptyLine], after: Any) -> Any:
    """Return a statement with the lines that stood above the removed one before it."""
    own = list(after.leading_lines)
    commented = any(line.comment for line in above)
    if not commented and own and own[0].comment is None:  # one empty line is enough
        return after
    return after.with_changes(leading_lines=[*above, *own])


def _with_import(module: cst.Module, statement: Any) -> cst.Module:
    """Return a module with an import after the imports at its head."""
    body = list(module.body)
    position = 0
    for index, line in enumerate(body):
        parts: Iterable[Any] = line.body if isinstance(line, cst.SimpleStatementLine) else ()
        if index == 0 and any(
            isinstance(p, cst.Expr) and isinstance(p.value, cst.SimpleString) for p in parts
        ):
            position = 1
        elif any(isinstance(part, (cst.Import, cst.ImportFrom)) for part in parts):
            position = index + 1
        else:
            break
    if position == 0 or (position == 1 and not _is_import(body[0])):
        after = body[position].leading_lines if position < len(body) else ()
        blank = () if position == 0 else (cst.EmptyLine(indent=False),)
        statement = statement.with_changes(leading_lines=blank)
        if position < len(body) and (not after or after[0].comment is not None):
            body[position] = body[position].with_changes(leading_lines=(cst.EmptyLine(indent=False), *after))
    return module.with_changes(body=[*body[:position], statement, *body[position:]])


def _is_import(line: Any) -> bool:
    return any(isinstance(part, (cst.Import, cst.ImportFrom)) for part in getattr(line, "body", ()))
