"""The tables of the FP4 case: the report beside ours, all recipes, memory, formats; for 100 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate

from precdoctor.report.terminal import wrap
from precdoctor.report.words import percent
from precdoctor.reproduce.fp4.diagnosis import gap_closed, with_packed_copy
from precdoctor.reproduce.fp4.runs import REPORTED_FORMAT, Measured, Training
from precdoctor.reproduce.fp4.sentences import MEAN_MAGNITUDE

#: characters of a line
WIDTH = 98
#: tokens of the report's vocabulary and of ours; the loss of guessing is their logarithm
VOCABULARY, OUR_VOCABULARY = 49_152, 1024


def beside(m: Measured) -> str:
    """Return the report's table, ours, and how to read it."""
    run, baseline, cured = (m.trained[name] for name in ("fp4-reported", "baseline", "ste-bnb-fp4"))
    full, fidelity = m.sizes["fp4-reported"], m.errors[REPORTED_FORMAT]
    relative = fidelity["mean_absolute_error"] / MEAN_MAGNITUDE
    tied = m.sizes["baseline"]["held_bytes"]
    fewer = percent(1 - full["flops"] / m.sizes["untied"]["flops"])
    rows = [
        ("baseline loss", "0.342", f"{baseline.loss:.3f}", f"on unseen text {baseline.honest_loss:.2f}"),
        (
            "baseline accuracy",
            "91.5 %",
            percent(baseline.accuracy),
            f"leaked; on unseen text {percent(baseline.honest_accuracy)}",
        ),
        ("baseline perplexity", "1.41", f"{baseline.perplexity:.2f}", "of a text known by heart"),
        (
            "FP4 loss",
            f"6.997 = {6.997 / math.log(VOCABULARY):.3f} ln V",
            f"{run.loss:.3f} = {run.loss / math.log(OUR_VOCABULARY):.3f} ln V",
            f"the same FP4 with a gradient: {cured.loss:.3f}",
        ),
        (
            "FP4 accuracy",
            "24.1 %",
            percent(run.accuracy),
            f"bigram ceiling {percent(run.bigram_ceiling)}; with a gradient {percent(cured.accuracy)}",
        ),
        ("FP4 perplexity", "1093.6", f"{run.perplexity:.1f}", f"with a gradient {cured.perplexity:.2f}"),
        (
            "quantization error",
            "0.001931, constant",
            f"{run.errors[0]:.6f}, {'constant' if len(set(run.errors)) == 1 else 'varies'}",
            f"frozen weights; with a gradient it grows to {cured.errors[-1]:.6f}",
        ),
        (
            "relative error",
            "0.1-1 %",
            percent(relative),
            f"SQNR {fidelity['sqnr_db']:.1f} dB, at the report's size",
        ),
        (
            "time of training",
            "-10.7 %",
            _change(run.seconds, baseline.seconds),
            f"{fewer} fewer FLOPs; severed and not quantized "
            f"{_change(m.trained['severed-none'].seconds, baseline.seconds)}",
        ),
        (
            "memory of weights",
            '"-45.7 %", "-11 %"',
            _change(run.held_bytes, baseline.held_bytes),
            f"held, at the report's size {_change(full['held_bytes'], tied)}",
        ),
    ]
    return _table(rows, ("", "report", "here", "reading"), [20, 20, 22, 34])


def recipes(m: Measured) -> str:
    """Return what every run came to."""
    rows = [
        (
            name,
            f"{run.loss:.3f}",
            _share(run.accuracy),
            _share(gap_closed(m, name)) if run.updates == m.trained["untied"].updates else "",
            f"{run.honest_loss:.2f}",
            _share(run.honest_accuracy),
            _errors(run),
            f"{run.sqnr_db[-1]:.1f}" if run.sqnr_db else "",
            f"{run.seconds:.0f}" if run.seconds else "",
        )
        for name, run in m.trained.items()
    ]
    heads = ("run", "loss", "acc", "gap", "loss*", "acc*", "error", "dB", "s")
    key = (
        f"{m.trained['untied'].updates:,} updates{_fewer(m)}.  acc: share of right predictions.  gap: in "
        "loss, closed from fp4-reported to untied.  *: on unseen text.  error: of quantization, mean of "
        "magnitudes; dB: its SQNR.  s: of one core."
    )
    return f"{_table(rows, heads, None, right=range(1, 9))}\n{wrap(key, WIDTH, '')}"


def memory(m: Measured) -> str:
    """Return bytes as the report counts them, as held and as packing would give, at both sizes."""
    names = ("baseline", "untied", "fp4-reported", "ste-bnb-fp4")
    rows = [
        _memory_row("baseline, tied: float32", *_both(m, names[0], "held_bytes"), m),
        _memory_row("untied: float32", *_both(m, names[1], "held_bytes"), m),
        _memory_row("FP4 as the report estimates: 1 byte", *_estimated(m), m),
        _memory_row("FP4 as held: float32 and cache", *_both(m, names[2], "held_bytes"), m),
        _memory_row("FP4 if packed, no float32 beside", *_both(m, names[2], "packed_bytes"), m),
    ]
    run, cured, retied = (m.sizes[name] for name in ("fp4-reported", "ste-bnb-fp4", "ste-retied"))
    training = [
        f"{m.sizes['baseline']['training_bytes'] / 1e6:.0f} MB baseline",
        f"{run['training_bytes'] / 1e6:.0f} as run",
        f"{with_packed_copy(cured) / 1e6:.0f} done right untied",
        f"{with_packed_copy(retied) / 1e6:.0f} tied",
    ]
    heads = ("MB of weights", "here", "on tied", "report's size", "on tied", "on untied")
    table = _table(rows, heads, None, right=range(1, 6))
    key = f"With gradients and AdamW's state, at the report's size: {', '.join(training)}."
    return f"{table}\n{wrap(key, WIDTH, '')}"


def formats(m: Measured) -> str:
    """Return what formats do to the report's weights before training."""
    rows = [
        (
            name,
            f"{entry['mean_absolute_error']:.9f}",
            percent(entry["mean_absolute_error"] / MEAN_MAGNITUDE),
            f"{entry['sqnr_db']:.1f}",
        )
        for name, entry in m.errors.items()
    ]
    return _table(
        rows, ("format", "mean absolute error", "of the mean weight", "SQNR dB"), None, right=range(1, 4)
    )


def _both(m: Measured, recipe: str, field: str) -> tuple[float, float]:
    return float(getattr(m.trained[recipe], field)), float(m.sizes[recipe][field])


def _estimated(m: Measured) -> tuple[float, float]:
    """Return the bytes at one per quantized weight, here and at the report's size."""
    here, full = m.trained["fp4-reported"].parameters, m.sizes["fp4-reported"]["parameters"]
    return tuple(size["quantized"] + 4 * size["float32"] for size in (here, full))  # type: ignore[return-value]


def _memory_row(what: str, here: float, full: float, m: Measured) -> tuple[str, ...]:
    tied, untied = _both(m, "baseline", "held_bytes"), _both(m, "untied", "held_bytes")
    return (
        what,
        f"{here / 1e6:.3f}",
        _change(here, tied[0]),
        f"{full / 1e6:.1f}",
        _change(full, tied[1]),
        _change(full, untied[1]),
    )


def _fewer(m: Measured) -> str:
    """Return which runs are shorter than the main ones."""
    main = m.trained["untied"].updates
    shorter = {
        name if name == "cpu-fallback" else f"{name.partition('-')[0]}-*": run.updates
        for name, run in m.trained.items()
        if run.updates < main
    }
    return "".join(f", {name} {updates:,}" for name, updates in shorter.items())


def _errors(run: Training) -> str:
    if not run.errors:
        return ""
    first, last = run.errors[0], run.errors[-1]
    if first == last:
        return f"{last:.7f}" if last else "0"
    return f"{first:.4f} to {last:.4f}"


def _share(value: float) -> str:
    """Return a share in percent, always with one decimal: for columns."""
    return f"{100 * value:.1f} %"


def _change(value: float, base: float) -> str:
    return "" if value == base else f"{100 * (value / base - 1):+.1f} %"


def _table(
    rows: Sequence[Sequence[str]], heads: Sequence[str], widths: list[int] | None, right: Sequence[int] = ()
) -> str:
    return tabulate(
        rows,
        headers=heads,
        maxcolwidths=widths,
        disable_numparse=True,
        colalign=["right" if column in right else "left" for column in range(len(heads))],
    )
