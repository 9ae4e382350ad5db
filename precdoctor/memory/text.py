"""What a recipe holds, for the terminal. Needs no torch."""

from __future__ import annotations

import shutil

import click

from precdoctor.formats.text import table
from precdoctor.memory.result import CATEGORIES, Holding, MemoryReport
from precdoctor.report import words
from precdoctor.report.terminal import heading, showable, wrap
from precdoctor.rules.wording import size

CHOSEN_COLUMNS = ("what", "bytes per parameter", "total")
RECIPE_COLUMNS = ("recipe", "bytes per parameter", "between steps", "activations", "total", "against fp32")
FORMAT_COLUMNS = ("weights in", "packed", "saves")


def render(report: MemoryReport) -> str:
    """Return the report."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [
        heading(f"{report.name} trained by {report.chosen.recipe}: {size(report.chosen.total_bytes)}"),
        wrap(f"{report.chosen.what}; {setting(report)}.", width, ""),
        "",
        table(chosen_rows(report), CHOSEN_COLUMNS),
        "",
        *(wrap(text, width, "") for text in activations(report)),
        "",
        heading("Checked against a real step") if report.checks else "",
        *(wrap(text, width, "  ") for text in checks(report)),
        "",
        heading("Three numbers that are easily confused"),
        table(confused_rows(report)),
        "",
        heading("What each recipe would hold, estimated"),
        table(recipe_rows(report), RECIPE_COLUMNS),
        "",
        heading("What the weights alone would take"),
        table(format_rows(report), FORMAT_COLUMNS),
        "",
        *(wrap(note, width, "  ", "- ") for note in report.notes),
        "" if report.notes else None,
        click.style(wrap(conclusion(report), width, ""), bold=True),
    ]
    kept = [line for line in lines if line is not None]
    return showable("\n".join(line for i, line in enumerate(kept) if line or (i and kept[i - 1])))


def setting(report: MemoryReport) -> str:
    """Return the model and the batch, in words."""
    shapes = ", ".join(report.batch_shapes)
    return (
        f"{words.count(report.elements)} parameters, {words.count(report.trained_elements)} of them trained; "
        f"{report.batch} sample{'s' * (report.batch != 1)} in memory at once (build() gave tensors of "
        f"{shapes})"
    )


def chosen_rows(report: MemoryReport) -> list[tuple[str, str, str]]:
    """Return what the recipe holds, category by category, and the sum."""
    rows = [
        (_WHAT.get(name, name), per_parameter(report, held), size(held))
        for name in CATEGORIES
        if (held := report.chosen.bytes[name])
    ]
    total = report.chosen.total_bytes
    return [*rows, ("total", per_parameter(report, total), size(total))]


def activations(report: MemoryReport) -> tuple[str, ...]:
    """Return what the activations depend on."""
    chosen = report.chosen
    fixed = (
        f" and {size(chosen.fixed_bytes)} whatever the batch (such as copies of weights)"
        if chosen.fixed_bytes > 0.01 * chosen.bytes["activations"]
        else ""
    )
    return (
        "Activations, what the forward pass keeps for the backward pass, are "
        f"{size(chosen.per_sample_bytes)} for each sample{fixed}. The batch is what one forward and backward "
        "pass sees: with accumulation, a micro-batch.",
    )


def checks(report: MemoryReport) -> tuple[str, ...]:
    """Return how estimate and real step agree."""
    told = [
        f"{check.what}: estimated {size(check.estimated_bytes)}, allocated {size(check.measured_bytes)} "
        f"({100 * check.deviation:+.1f} %, {'within' if check.holds else 'NOT within'} "
        f"{100 * check.tolerance:.0f} %)"
        for check in report.checks
    ]
    if report.peak_bytes is not None:
        told.append(f"the most held at once, optimizer's temporaries included: {size(report.peak_bytes)}")
    return tuple(told)


def confused_rows(report: MemoryReport) -> list[tuple[str, str, str]]:
    """Return packed size, bytes held in training and file size."""
    how = "written and counted" if report.files_measured else "added up"
    products = "codes and scales" if report.chosen.bytes["scales"] else "as the products read them"
    return [
        ("packed size", size(report.packed_bytes), f"the weights alone, {products}: what inference needs"),
        ("held in training", size(report.chosen.total_bytes), "all of the table above"),
        ("file size", size(report.file_bytes), f"torch.save(model.state_dict()), {how}"),
        ("", size(report.checkpoint_bytes), "the same with the optimizer's state"),
    ]


def recipe_rows(report: MemoryReport) -> list[tuple[str, ...]]:
    """Return one row of `RECIPE_COLUMNS` per recipe."""
    full = report.holding("fp32")
    base = full.total_bytes if full is not None else None
    return [
        (
            f"{'> ' if one.recipe == report.chosen.recipe else ''}{one.recipe}",
            per_parameter(report, one.between_bytes),
            size(one.between_bytes),
            size(one.bytes["activations"]),
            size(one.total_bytes),
            saved(one, base),
        )
        for one in report.recipes
    ]


def format_rows(report: MemoryReport) -> list[tuple[str, str, str]]:
    """Return one row of `FORMAT_COLUMNS` per format."""
    return [
        (packed.format, size(packed.bytes), words.percent(packed.saved_share) if packed.saved_share else "")
        for packed in report.formats
    ]


def saved(one: Holding, base: int | None) -> str:
    """Return the change against float32 in percent."""
    return "" if one.recipe == "fp32" or base is None else f"{100 * one.total_bytes / base - 100:+.0f} %"


def conclusion(report: MemoryReport) -> str:
    """Return the sentence that the report ends with."""
    chosen, base = report.chosen, report.holding("fp32")
    against = ""
    if chosen.recipe != "fp32" and base is not None:
        change = 1 - chosen.total_bytes / base.total_bytes
        word = "less" if change > 0 else "more"
        against = f", {100 * abs(change):.0f} % {word} than all in float32"
    packed = 1 - report.packed_bytes / (4 * report.elements)
    beside = (
        f"; packed, its weights are {100 * packed:.0f} % smaller than float32's" if packed > 0.005 else ""
    )
    return (
        f"Training by {chosen.recipe} holds {size(chosen.total_bytes)} "
        f"({per_parameter(report, chosen.between_bytes)} bytes per parameter and "
        f"{size(chosen.bytes['activations'])} of activations){against}{beside}."
    )


def per_parameter(report: MemoryReport, amount: int) -> str:
    """Return bytes per parameter, with two decimals."""
    return f"{amount / report.elements:.2f}"


_WHAT = {
    "scales": "quantization scales",
    "masters": "master weights",
    "compensation": "Kahan compensation",
}
