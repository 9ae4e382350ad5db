"""A matplotlib figure as an SVG fragment that can stand in a page beside others, in light and in dark."""

from __future__ import annotations

import io
import re
import warnings
from contextlib import AbstractContextManager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

#: width of every figure in CSS pixels
WIDTH = 680

# Placeholders: matplotlib writes them, `to_svg` turns them into the page's own colours, so that the
# reader's theme, and not the program, decides what they look like.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
ILL, CALM, OK, PAPER = "#040404", "#050505", "#060606", "#070707"
WARN, NOTE = "#080808", "#090909"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ILL: "var(--ill)",
    CALM: "var(--calm)",
    OK: "var(--ok)",
    PAPER: "var(--panel)",
    WARN: "var(--warn)",
    NOTE: "var(--note)",
}

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.5,
    "text.color": INK,
    "text.parse_math": False,  # a parameter may be called "$math$"
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


def style() -> AbstractContextManager[None]:
    """Return the context in which a figure must be built and written."""
    context: AbstractContextManager[None] = mpl.rc_context(_STYLE)
    return context


def new_figure(height: float) -> Figure:
    """Return an empty transparent figure, ``height`` CSS pixels high (72 per inch: a point is a pixel)."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def to_svg(figure: Figure, *, prefix: str, title: str, description: str) -> str:
    """Return the figure as ``<svg>``; ids start with ``prefix``, unused ones are dropped.

    ``title`` and ``description`` are what a screen reader says of it.
    """
    buffer = io.BytesIO()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": prefix}):
        # the browser has the glyphs that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    text_of = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"url\(#([^)]+)\)", text_of)) | set(re.findall(r'href="#([^"]+)"', text_of))
    for element in root.iter():
        element.tag = _local(element.tag)
        _rewrite(element, prefix, used)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{prefix}-title {prefix}-description",
    }
    for index, (tag, content) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(tag, id=f"{prefix}-{'title' if index == 0 else 'description'}")
        label.text = content
        root.insert(index, label)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _rewrite(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    attributes = {}
    for key, value in element.attrib.items():
        name = _local(key)
        if name == "id":
            if value not in used:
                continue
            value = f"{prefix}-{value}"
        elif name == "href":
            value = value.replace("#", f"#{prefix}-", 1) if value.startswith("#") else value
        else:
            value = value.replace("url(#", f"url(#{prefix}-")
            if name in ("style", "fill", "stroke"):
                for placeholder, variable in _VARIABLES.items():
                    value = value.replace(placeholder, variable)
        attributes[name] = value
    element.attrib = attributes


def _local(name: str) -> str:
    """Return the name without its namespace: inside HTML none is needed."""
    return name.rpartition("}")[2]
