"""The tables of the order case: what size costs, and what is stored in each order; for 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from tabulate import tabulate

from precdoctor.report.words import percent
from precdoctor.reproduce.order.claims import cost
from precdoctor.reproduce.order.runs import INT4, INT8, Difference, Measured, Trained

#: standard errors below which a difference is marked as not seen
SEEN = 2
#: formats in the table of sizes, by their headings
FORMATS = {"INT8 channel": INT8, "INT4 channel": "int4", "INT4 group 64": INT4, "NF4 block 64": "nf4"}
#: what is stored in the end, by the name of the model
FLOAT32 = {"finetune": "fine-tuned, float32", "finetune-lora": "adapters merged, float32"}
QUANTIZED = {
    "finetune": "fine-tuned, then rounded",
    "qat": "rounded while fine-tuned (QAT)",
    "finetune-lora": "adapters merged, then rounded",
    "lora": "rounded, then adapters (QLoRA)",
    "lora-merged": "... merged, rounded again",
    "dequantized": "rounded, restored, fine-tuned",
    "dequantized-again": "... rounded again",
    "codes": "codes trained by themselves",
}


def sizes(m: Measured) -> str:
    """Return what each format costs models of each size and training."""
    rows = [
        (
            runs[0].dim,
            f"{runs[0].weights:,}",
            f"{runs[0].pretrain_steps:,}",
            f"{runs[0].bytes_per_weight:.1f}",
            f"{fmean(run.loss('base', 'old') for run in runs):.3f}",
            *(_thousandths([cost(run, fmt) for run in runs]) for fmt in FORMATS.values()),
        )
        for runs in m.trained.values()
    ]
    headers = ("width", "weights", "steps", "bytes per\nweight", "loss",
               *(name.replace(" ", "\n", 1) for name in FORMATS))  # fmt: skip
    return f"{_right(rows, headers)}\n\n{_LEGEND}"


_LEGEND = """Pretrained on documentation.  bytes per weight: of text seen in training.  loss: in float32, nats
per byte; then what rounding adds in thousandths of that.  ~: below two standard errors, not seen."""


def orders(m: Measured, fmt: str) -> str:
    """Return what is stored in each order, what it takes, and what it loses on both texts."""
    runs = m.orders
    rows = [(about, *_stored(runs, name)) for name, about in FLOAT32.items()]
    rows += [(about, *_stored(runs, f"{name} {fmt}")) for name, about in QUANTIZED.items()]
    headers = ("stored in the end", "bytes", "codes\ndiffer", "SQNR\ndB", "loss on\nthe new", "above float32",
               "loss on\nthe old")  # fmt: skip
    return f"{_right(rows, headers)}\n\n{_ORDERS_LEGEND}"


_ORDERS_LEGEND = (
    "codes differ: from those of the model fine-tuned, then rounded.  SQNR: of the weights, from those\n"
    "fine-tuned in float32.  The new text is code, the old one documentation."
)


def _stored(runs: Sequence[Trained], name: str) -> tuple[str, ...]:
    models = [run.models[name] for run in runs]
    differ = [model["codes_differ"].get("finetune") for model in models]
    sqnr = [model["sqnr_db"]["finetune"] for model in models]
    return (
        f"{runs[0].bytes_of(name):,}",
        "" if None in differ else percent(fmean(differ)),
        "" if None in sqnr else f"{fmean(sqnr):.1f}",
        f"{fmean(run.loss(name, 'new') for run in runs):.3f}",
        "" if name == "finetune" else _cost([run.difference(name, "finetune", "new") for run in runs]),
        f"{fmean(run.loss(name, 'old') for run in runs):.3f}",
    )


def _cost(seeds: Sequence[Difference]) -> str:
    over = Difference.over(seeds)
    return f"{'~' if abs(over.z) < SEEN else ''}{over}"


def _thousandths(seeds: Sequence[Difference]) -> str:
    over = Difference.over(seeds)
    return f"{'~' if abs(over.z) < SEEN else ''}{1000 * over.mean:+.1f} ± {1000 * over.error:.1f}"


def _right(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Return a table with all but the first column to the right."""
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers=headers, colalign=align, disable_numparse=True)
