"""The command that reads checkpoints: diff."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precdoctor.cli.deliver import deliver, write
from precdoctor.cli.options import Output, judging_options


def _formats(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from precdoctor.formats import FormatError, by_name

    names = tuple(part.strip() for each in value for part in each.split(",") if part.strip())
    for name in names:
        try:
            by_name(name)
        except FormatError as error:
            raise click.BadParameter(str(error.args[0]), ctx, param) from None
    return names


@click.command(
    epilog="""\b
Examples:
  precdoctor diff step-1000.safetensors step-2000.safetensors
  precdoctor diff checkpoint-500/ checkpoint-1000/    sharded, or torch distributed
  precdoctor diff model.pt                            one file: disguised formats, NaN, weights still at 1.0
  precdoctor diff --format bfloat16 --format e4m3fn training_state.pt
  precdoctor diff --fail-on warning --json report.json a.pt b.pt

\b
Exit code: 0 no finding at or above --fail-on; 1 such a finding; 2 a file that can't be read, or wrong
usage. Files are read as streams, and nothing in them is run: what a pickle asks for beyond tensors and
plain values is refused."""
)
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="[B]", type=click.Path(path_type=Path), required=False)
@click.option(
    "--format",
    "formats",
    metavar="NAME",
    multiple=True,
    default=("bfloat16", "float16"),
    show_default=True,
    callback=_formats,
    help="Try the next update in this format beside the stored one; repeat it for more.",
)
@click.option("--save", type=Output(), metavar="F", help="Save what was seen as evidence.")
@judging_options
@click.pass_context
def diff(
    context: click.Context,
    /,
    first: Path,
    second: Path | None,
    formats: tuple[str, ...],
    save: Path | None,
    **judging: Any,
) -> None:
    """Compare two checkpoints of one run, A the earlier one, or examine A alone.

    Says of every tensor which elements moved and by how many ulps, whether that is more than rounding lets
    through, which weights never moved, and which formats changed. Of the last file, where it holds the
    optimizer's state, it also says how the next update would fare. Reads safetensors, torch.save, sharded
    checkpoints by their directory or index, and torch distributed checkpoints.
    """
    from precdoctor import evidence as records
    from precdoctor.checkpoints import CheckpointError
    from precdoctor.checkpoints.api import examine

    try:
        with _Progress() as show:
            seen = examine(first, second, formats=formats, progress=show)
    except CheckpointError as error:
        raise click.ClickException(f"diff: {error}") from None
    if save is not None:
        write(save, "evidence", lambda path: records.save(seen, path))
    context.exit(deliver(seen, err=False, **judging))


class _Progress:
    """A bar on stderr, where that is a terminal and reading takes longer than a moment."""

    def __enter__(self) -> Any:
        from tqdm import tqdm

        self._bar = tqdm(unit="B", unit_scale=True, delay=1.0, disable=None, leave=False, desc="reading")
        return self._show

    def _show(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
