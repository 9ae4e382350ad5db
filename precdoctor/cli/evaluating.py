"""The commands that evaluate a model that a function builds: compare and memory."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from precdoctor.cli.deliver import write
from precdoctor.cli.options import Output

if TYPE_CHECKING:
    from precdoctor.evaluation import Evaluation

#: words that a line of help says about build(), for both commands
_BUILD = """\b
build() takes no arguments and returns three things:
  model      a torch.nn.Module, with its weights
  batches    an iterable, such as a DataLoader, of tensors, of (inputs, ..., target), or of
             dicts of the model's arguments; what is compared are indices of the first dimension
  loss       a function of (output, target), such as torch.nn.CrossEntropyLoss(); for dicts
             and lone tensors, the batch itself is the target"""


@click.command(
    epilog=f"""{_BUILD}

\b
Examples:
  precdoctor compare eval.py:build
  precdoctor compare eval.py:build --formats bfloat16,int8,nf4 --samples 500 --html compare.html
  precdoctor compare --hf ./SmolLM2-135M --text article.txt

\b
Exit code: 0 it was compared, whatever the result; 2 it could not be.""",
)
@click.argument("target", required=False, metavar="FILE.py:FUNCTION")
@click.option(
    "--hf",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A Hugging Face language model in a local folder (or .gguf file), instead of FILE.py:FUNCTION; "
    "needs --text and the package transformers. Nothing is fetched.",
)
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="The text for --hf.")
@click.option(
    "--window",
    type=click.IntRange(min=2),
    default=256,
    show_default=True,
    metavar="N",
    help="Tokens of a sample, with --hf.",
)
@click.option(
    "--formats",
    metavar="NAMES",
    help="What to compare with float32; bfloat16 and float16 by a cast of the model, others (e4m3fn, int8, "
    "int4, nf4, mxfp4, ...: precdoctor formats) by rounding its weights. "
    "Default: bfloat16,float16,e4m3fn,int8,nf4.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Samples to evaluate: the first ones of the batches.",
)
@click.option("--device", metavar="NAME", help="Move the model there. Default: where build() put it.")
@click.option("--json", type=Output(), metavar="F", help="Write the comparison as JSON.")
@click.option("--html", type=Output(), metavar="F", help="Write the comparison as a page.")
def compare(
    target: str | None,
    hf: Path | None,
    text: Path | None,
    window: int,
    formats: str | None,
    samples: int,
    device: str | None,
    json: Path | None,
    html: Path | None,
) -> None:
    """Evaluate one model on one data set in several number formats, and tell whether precision matters.

    For each format: the loss, its difference to float32 with a paired standard error, memory, time,
    changed predictions, and the layers that lose most. Ends with a sentence that says what follows.
    """
    if (target is None) == (hf is None):
        raise click.UsageError("give FILE.py:FUNCTION, or --hf DIR --text FILE")
    if (hf is None) != (text is None):
        raise click.UsageError("--hf and --text go together")
    names = None if formats is None else tuple(filter(None, map(str.strip, formats.split(","))))
    if names == ():
        raise click.UsageError("--formats names no format")
    from precdoctor.comparison import compare_evaluation
    from precdoctor.comparison import html as page
    from precdoctor.comparison import json as records
    from precdoctor.comparison.formats import choose

    with _one_line():
        choose(names or ())  # before anything is loaded
        evaluation = _evaluation(target, hf, text, window, device)
        with _progress() as tell, contextlib.redirect_stdout(sys.stderr):
            found = compare_evaluation(evaluation, formats=names, samples=samples, progress=tell)
    click.echo(str(found))
    if json is not None:
        write(json, "comparison", lambda path: path.write_text(records.render(found), encoding="utf-8"))
    if html is not None:
        write(html, "page", lambda path: path.write_text(page.render(found), encoding="utf-8"))


def _evaluation(
    target: str | None, hf: Path | None, text: Path | None, window: int, device: str | None
) -> Evaluation:
    from precdoctor import evaluation as evaluations

    if target is not None:
        evaluation = evaluations.load(target)
    else:
        assert hf is not None
        assert text is not None
        click.echo(f"precdoctor: loading {hf}", err=True)
        evaluation = evaluations.load_folder(hf, text, window=window)
    if device is not None:
        evaluations.to_device(evaluation, device)
    return evaluation


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn what can't be evaluated into one line, exit code 2."""
    from precdoctor.evaluation import EvaluationError

    try:
        yield
    except EvaluationError as error:
        raise click.ClickException(str(error)) from None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what to call with what is being done: bars on a terminal, elsewhere a line for each thing."""
    if not sys.stderr.isatty():
        told: set[str] = set()

        def line(what: str, *_: int) -> None:
            if what not in told:
                told.add(what)
                click.echo(f"precdoctor: {what}", err=True)

        yield line
        return
    from tqdm import tqdm

    with tqdm(total=1, desc="precdoctor", leave=False, dynamic_ncols=True) as bar:

        def update(what: str, done: int, total: int) -> None:
            if bar.desc != f"{what}: ":
                bar.reset(total)
                bar.set_description(what, refresh=False)
            bar.n = done
            bar.refresh()

        yield update


@click.command(
    epilog=f"""{_BUILD}

\b
Recipes: fp32, amp, bf16, bf16-master, bf16-kahan, bf16-sr, 8bit-adam, fp4-mxfp4, fp4-nvfp4,
fp4-nf4, fp4-bnb-fp4; all with AdamW. A model on the meta device is estimated, not checked.

\b
Examples:
  precdoctor memory eval.py:build
  precdoctor memory eval.py:build --batch 32 --recipe amp
  precdoctor memory eval.py:build --batch 32 --recipe fp4-nvfp4 --html memory.html

\b
Exit code: 0 it was estimated; 2 it could not be.""",
)
@click.argument("target", metavar="FILE.py:FUNCTION")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples that one forward and backward pass sees (a micro-batch): the first batch of build(), cut "
    "or repeated to N. Default: as it is.",
)
@click.option("--recipe", default="fp32", show_default=True, metavar="NAME", help="How it is trained.")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Make a real step of a copy, and compare what it allocates.",
)
@click.option("--device", metavar="NAME", help="Move the model there. Default: where build() put it.")
@click.option("--json", type=Output(), metavar="F", help="Write the figures as JSON.")
@click.option("--html", type=Output(), metavar="F", help="Write the figures as a page with a stacked bar.")
def memory(
    target: str,
    batch: int | None,
    recipe: str,
    check: bool,
    device: str | None,
    json: Path | None,
    html: Path | None,
) -> None:
    """Say what training a model would hold in memory, by recipe: weights, gradients, states, activations.

    Estimated on tensors without numbers, and checked against what a real step allocates. Tells packed
    size, bytes held in training and file size apart.
    """
    from precdoctor.memory import html as page
    from precdoctor.memory import json as records
    from precdoctor.memory import memory as measured
    from precdoctor.memory import recipe as known

    try:
        known(recipe)
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from None
    with _one_line():
        evaluation = _evaluation(target, None, None, 0, device)
        with _progress() as tell, contextlib.redirect_stdout(sys.stderr):
            found = measured(evaluation, recipe_name=recipe, batch=batch, check=check, progress=tell)
    click.echo(str(found))
    if json is not None:
        write(json, "figures", lambda path: path.write_text(records.render(found), encoding="utf-8"))
    if html is not None:
        write(html, "page", lambda path: path.write_text(page.render(found), encoding="utf-8"))
