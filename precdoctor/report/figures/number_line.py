"""The number line of one element: the values its format has around it, and where the update would land."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes

from precdoctor import formats
from precdoctor.evidence import Example
from precdoctor.formats import Format, FormatError
from precdoctor.report.figures.canvas import ILL, INK, MUTED, OK, WIDTH, new_figure, style, to_svg
from precdoctor.rules.wording import number

_HEIGHT, _BASE, _ARROW = 122.0, 66.0, 94.0
#: room for a second arrow, where something was stored
_SECOND = 30.0
#: shortest arrow that can be seen, in pixels; shorter ones are drawn so long, and the label says so
_SHORTEST = 9.0
_MOST_TICKS = 40
#: half a gap narrower than this many pixels has no room for labels
_ROOM = 36.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberLine:
    """The picture and the same thing in words."""

    svg: str
    caption: str


def number_line(example: Example, fmt_name: str, *, prefix: str) -> NumberLine | None:
    """Draw where ``weight + intended`` lies between the values that the format has.

    None when the format is not in the catalogue or the numbers are not finite.
    """
    try:
        fmt = formats.by_name(fmt_name)
    except FormatError:
        return None
    weight, intended = example.weight, example.intended
    if not (math.isfinite(weight) and math.isfinite(intended)) or intended == 0 or abs(weight) >= fmt.max:
        return None
    caption = _caption(fmt, example)
    with style():
        svg = _draw(fmt, example, prefix, caption)
    return NumberLine(svg=svg, caption=caption)


def _caption(fmt: Format, example: Example) -> str:
    weight, intended = example.weight, example.intended
    down, up = formats.half_ulp(fmt, weight, -1), formats.half_ulp(fmt, weight, +1)
    bits = formats.headroom_bits(fmt, weight, intended)
    verdict = f"{-bits:.1f} bits short" if bits < 0 else f"{bits:.1f} bits to spare"
    after = "It was stored unchanged." if example.applied == 0 else f"Stored: {_signed(example.applied)}."
    threshold = f"an update must exceed {number(up)}"
    if down != up:
        threshold = f"a decrease must exceed {number(down)} and an increase {number(up)}"
    meant = f"The optimizer meant {_signed(intended)}: {verdict}."
    return f"At {_value(fmt, weight)} in {fmt.name}, {threshold}. {meant} {after}"


def _draw(fmt: Format, example: Example, prefix: str, caption: str) -> str:
    weight, intended = example.weight, example.intended
    down, up = formats.half_ulp(fmt, weight, -1), formats.half_ulp(fmt, weight, +1)
    low, high = min(-2.6 * down, 1.25 * intended), max(2.6 * up, 1.25 * intended)
    scale = (WIDTH - 72) / (high - low)

    def at(offset: float) -> float:
        return 36 + (offset - low) * scale

    height = _HEIGHT + (_SECOND if example.applied else 0)
    figure = new_figure(height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")

    axes.fill_between([at(-down), at(up)], _BASE - 15, _BASE + 15, color=ILL, alpha=0.16, linewidth=0)
    for edge in (-down, up):
        axes.plot([at(edge)] * 2, [_BASE - 15, _BASE + 15], color=ILL, linewidth=1, dashes=(3, 2))
    axes.plot([8, WIDTH - 8], [_BASE] * 2, color=MUTED, linewidth=1)

    roomy = min(down, up) * scale >= _ROOM
    beside = (_step(fmt, weight, -1), _step(fmt, weight, +1))
    for offset in _neighbours(fmt, weight, low, high):
        here = offset == 0
        axes.plot([at(offset)] * 2, [_BASE - 9, _BASE + 9], color=INK, linewidth=2.2 if here else 1.2)
        if here or (roomy and offset in beside):
            label = _value(fmt, weight + offset)
            axes.text(
                at(offset), _BASE - 34, label, ha="center", weight="bold" if here else "normal", color=INK
            )
    if roomy:
        for edge, text in ((-down, f"−{number(down)}"), (up, f"+{number(up)}")):
            axes.text(at(edge), _BASE - 34, text, ha="center", color=ILL, fontsize=10.5)
    axes.text(
        min(max((at(-down) + at(up)) / 2, 150), WIDTH - 150), 10,
        f"every result in the shaded gap is stored as {_value(fmt, weight)}",
        ha="center", color=ILL, fontsize=10.5,
    )  # fmt: skip

    _arrow(axes, at(0), at(intended), _ARROW, INK, f"intended {_signed(intended)}")
    if example.applied:
        _arrow(axes, at(0), at(min(max(example.applied, low), high)), _ARROW + _SECOND, OK, "stored")
    return to_svg(
        figure,
        prefix=prefix,
        title=f"Number line of {fmt.name} around {_value(fmt, weight)}",
        description=caption,
    )


def _arrow(axes: Axes, start: float, end: float, height: float, colour: str, label: str) -> None:
    direction = math.copysign(1.0, end - start)
    if abs(end - start) < _SHORTEST:
        end, label = start + direction * _SHORTEST, f"{label} (too small to draw to scale)"
    axes.annotate(
        "", (end, height), (start, height),
        arrowprops={
            "arrowstyle": "-|>,head_length=0.4,head_width=0.22", "mutation_scale": 16, "color": colour,
            "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0,
        },
    )  # fmt: skip
    axes.plot([start] * 2, [_BASE + 12, height + 5], color=colour, linewidth=1)
    # the label goes where there is more room
    left = start > WIDTH / 2
    beside = min(start, end) - 8 if left else max(start, end) + 8
    axes.text(beside, height - 4, label, ha="right" if left else "left", color=colour)


def _step(fmt: Format, weight: float, direction: int) -> float:
    return 2 * direction * formats.half_ulp(fmt, weight, direction)


def _neighbours(fmt: Format, weight: float, low: float, high: float) -> list[float]:
    """Return the distances from ``weight`` of the format's values in that range, itself included."""
    offsets = [0.0]
    for move in (formats.next_down, formats.next_up):
        value = weight
        for _ in range(_MOST_TICKS):
            before, value = value, move(fmt, value)
            if value == before or not (math.isfinite(value) and low <= value - weight <= high):
                break  # beyond the range, or beyond the format's largest value
            offsets.append(value - weight)
    return offsets


def _value(fmt: Format, value: float) -> str:
    """Return a value with enough digits to tell it from its neighbours."""
    text = f"{value:.{math.ceil(fmt.precision * math.log10(2)) + 2}g}"
    return f"{text}.0" if text.lstrip("-").isdigit() else text.replace("-", "−")


def _signed(value: float) -> str:
    return ("−" if value < 0 else "+") + number(abs(value))
