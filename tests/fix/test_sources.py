"""What is not edited stays byte for byte."""

from __future__ import annotations

import codecs
from pathlib import Path

import libcst as cst
import pytest

from precdoctor.evidence import Place
from precdoctor.fix.sources import NoSafeEdit, SourceFile, Sources

SOURCE = "import torch\nmodel = 1\nx = 'é'\n"


def edit(content: bytes) -> bytes:
    """Return the content with `model = 1` turned into `model = 2`."""
    path = Path("train.py")
    path.write_bytes(content)
    file = SourceFile(path, "train.py")
    for node in file.all(cst.Integer):
        if node.value == "1":
            file.replace(node, cst.Integer("2"))
    return file.after


@pytest.mark.parametrize(
    "content",
    [
        SOURCE.encode(),
        SOURCE.encode().removesuffix(b"\n"),
        SOURCE.replace("\n", "\r\n").encode(),
        codecs.BOM_UTF8 + SOURCE.encode(),
        b"# -*- coding: latin-1 -*-\n" + SOURCE.encode("latin-1"),
        SOURCE.encode() + b"\n\n\n",
        b"#!/usr/bin/env python\n\n" + SOURCE.encode() + b"if x:\n\tx  =  [ 7,8 ,\n\t9]   # odd\n\n",
        b"model = 1\r\nx = 3\n",
    ],
    ids=[
        "plain",
        "no newline at the end",
        "CRLF",
        "BOM",
        "latin-1",
        "empty lines",
        "tabs",
        "mixed line ends",
    ],
)
def test_keeps_everything_else(content: bytes) -> None:
    assert edit(content) == content.replace(b"model = 1", b"model = 2")


def test_writes_new_lines_with_the_files_own_line_ends() -> None:
    Path("train.py").write_bytes(b"import os\r\nf(1)\r\n")
    file = SourceFile(Path("train.py"), "train.py")
    (statement,) = [line for line in file.module.body if line is not file.module.body[0]]
    file.wrap([statement], cst.parse_expression("region"))  # type: ignore[list-item]
    file.add_import("import torch", "torch")
    assert file.after == b"import os\r\nimport torch\r\nwith region:\r\n    f(1)\r\n"


@pytest.mark.parametrize(
    "content", [b"model = (\n", b"\xff\xfe\x00", b"# coding: nonsense\n"], ids=["syntax", "bytes", "cookie"]
)
def test_refuses_what_it_cannot_read(content: bytes) -> None:
    with pytest.raises(NoSafeEdit, match=r"train\.py cannot be edited"):
        edit(content)


def test_refuses_a_line_that_is_no_longer_what_ran() -> None:
    Path("train.py").write_text("a = 1\nb = 2\n")
    sources = Sources(Path.cwd())
    assert sources.at(Place(file="train.py", line=2, code="b = 2")).shown == "train.py"
    with pytest.raises(NoSafeEdit, match=r"train\.py:1 is no longer what ran: b = 2"):
        sources.at(Place(file="train.py", line=1, code="b = 2"))


def test_refuses_an_installed_package() -> None:
    path = Path("site-packages/engine.py")
    path.parent.mkdir()
    path.write_text("a = 1\n")
    with pytest.raises(NoSafeEdit, match="belongs to an installed package"):
        Sources(Path.cwd()).at(Place(file=str(path), line=1, code="a = 1"))


@pytest.mark.parametrize(
    ("statement", "bound"),
    [
        ("import torch", True),
        ("import torch.nn", True),
        ("import torch as th", False),
        ("from a import torch", True),
    ],
)
def test_knows_which_names_are_imported(statement: str, bound: bool) -> None:
    Path("train.py").write_text(f"{statement}\n")
    assert SourceFile(Path("train.py"), "train.py").imports("torch") == bound
