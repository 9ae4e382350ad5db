"""How rules read where values leave their format or lose digits: shared by PD501 to PD507."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from precdoctor.evidence import Evidence, Place
from precdoctor.evidence.exactness import Exactness, NonFinite, Site
from precdoctor.rules.finding import Location, Subject
from precdoctor.rules.reading import format_named, locations
from precdoctor.rules.wording import at, number, percent, several

_Site = TypeVar("_Site", bound=Site)

#: passes in which the same has to happen, and share of all that were seen: what is rarer may be handled
MIN_PASSES = 2
MIN_SHARE = 0.1
#: share of the passes in which what gradient goes through has to be noise
NOISE_SHARE = 0.5
#: share of the passes in which Python has to read inf or NaN: a loop may well look for what it then skips
READ_SHARE = 0.5
#: losses at the end of the run that are not finite, from which it stays so
MIN_LOSSES = 3
#: error of what wrong values have reached, from which it is an error and not a warning: less than one
#: correct bit on the whole
ERROR = 0.5
#: where wrong values do harm by being there, in training
_ENDS = ("layer", "loss", "gradient", "parameter", "logarithm", "schedule", "choice")
_IN_WORDS = {
    "layer": "the layers that follow",
    "loss": "the loss",
    "gradient": "the gradients that the optimizer gets",
    "parameter": "the parameters",
    "logarithm": "a logarithm or a reciprocal, which makes a large error of it",
    "schedule": "a root, a logarithm or a quotient, for the first values of a schedule",
    "choice": "the choice of elements",
    "read": "Python, which reads it",
}


def exactness(evidence: Evidence) -> Exactness:
    """Return what was seen beside float64, nothing where nothing was."""
    return evidence.exactness or Exactness()


def by_line(sites: Iterable[_Site]) -> list[list[_Site]]:
    """Sort sites into lists that share their line."""
    sorts: dict[object, list[_Site]] = {}
    for site in sites:
        sorts.setdefault(site.place or site, []).append(site)
    return list(sorts.values())


def told_of_gradients(evidence: Evidence) -> set[tuple[str, int] | None]:
    """Return the lines at which gradients overflow, which is the business of PD204."""
    flow = evidence.gradient_flow
    losses = flow.losses if flow is not None else ()
    return {line_of(loss.place) for loss in losses if loss.kind == "overflow" and not loss.backward} - {None}


def line_of(place: Place | None) -> tuple[str, int] | None:
    """Return a place without the function that it is in, which is told in more than one way."""
    return (place.file, place.line) if place is not None else None


def lasts(passes: int, seen: Exactness) -> bool:
    """Tell whether something happened in more passes than a loop may skip on purpose."""
    return passes >= MIN_PASSES and passes >= MIN_SHARE * seen.passes


def ends(site: Site, seen: Exactness) -> list[str]:
    """Return what wrong values of a site reached in more than a few passes: "layer", "loss", ..."""
    return [where for where, passes in site.reached if where in _ENDS and _lasts(where, passes, seen)]


def _lasts(where: str, passes: int, seen: Exactness) -> bool:
    """Tell whether something was reached often enough; a schedule is the same in each pass."""
    return lasts(passes, seen) or (where == "schedule" and passes >= MIN_PASSES)


def in_words(reached: Sequence[str]) -> str:
    """Return in words what was reached: "the layers that follow and the loss"."""
    # what goes through a logarithm is told only where nothing graver is
    rest = [where for where in reached if where != "logarithm"] or list(reached)
    return several([_IN_WORDS[where] for where in rest], shown=4)


def stays_non_finite(evidence: Evidence) -> bool:
    """Tell whether the loss is inf or NaN to the end of the run."""
    last = [loss for _, loss in evidence.losses[-MIN_LOSSES:]]
    return bool(last) and not any(map(math.isfinite, last))


def first_non_finite_step(evidence: Evidence) -> int | None:
    """Return the optimizer steps made before the first of the losses that stay inf or NaN."""
    first = None
    for step, loss in reversed(evidence.losses):
        if math.isfinite(loss):
            break
        first = step
    return first


def spoils_loss(site: NonFinite, evidence: Evidence) -> bool:
    """Tell whether the loss is not finite because of a site: to the end, or again and again."""
    if site.loss_passes and stays_non_finite(evidence):
        return True
    return lasts(site.loss_passes, exactness(evidence))


def spoils_gradients(site: NonFinite, seen: Exactness) -> bool:
    """Tell whether gradients of a finite loss are not finite because of a site, again and again."""
    return lasts(site.gradient_passes, seen)


def is_read(site: NonFinite, seen: Exactness) -> bool:
    """Tell whether Python goes on with inf or NaN, in most passes."""
    return site.read_passes >= MIN_PASSES and site.read_passes >= READ_SHARE * seen.passes


def harm(site: NonFinite, evidence: Evidence) -> str:
    """Return in words what harm inf or NaN of a site did; empty for none."""
    seen = exactness(evidence)
    if spoils_loss(site, evidence):
        nan = f"NaN comes of it{at(site.nan_at)}, and " if site.nan_at not in (None, site.place) else ""
        return f"{nan}the loss is not finite"
    if spoils_gradients(site, seen):
        return f"NaN comes of it{at(site.nan_at)}; the loss is finite, its gradients are not"
    if site.kind == "undefined":
        return ""
    reached = ends(site, seen)
    if reached:
        return f"it turns into finite numbers that are wrong{at(site.reached_at)}, in {in_words(reached)}"
    return "Python reads it and goes on with it" if is_read(site, seen) else ""


def foremost(sites: Sequence[NonFinite], evidence: Evidence) -> NonFinite:
    """Return, of the sites on one line, the one that does harm, else the one that was seen most often."""
    return max(sites, key=lambda s: (bool(harm(s, evidence)), s.passes))


def overflow_in_words(site: NonFinite) -> str:
    """Return what happens at a site that overflows, with its numbers."""
    form = format_named(site.format)
    limit = f", {site.format} ends at {_large(form.max)}" if form is not None else ""
    share = f" ({percent(site.share)} of the result)" if site.share < 1 else ""
    return f"{where(site)}: {site.operation} gives {_large(site.largest)}{limit}{share}"


def _large(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None and 1e3 <= value < 1e6 else number(value)


def subjects(sites: Sequence[Site]) -> tuple[Subject, ...]:
    """Return the modules and functions in which sites are; the operation where neither is known."""
    modules = dict.fromkeys(name for site in sites for name in site.modules)
    functions = dict.fromkeys(s.function for s in sites if s.function not in ("", "forward", "__call__"))
    if not modules and not functions:
        functions = dict.fromkeys(site.function or site.operation for site in sites)
    return (
        *(Subject(kind="module", name=name) for name in modules),
        *(Subject(kind="op", name=name) for name in functions),
    )


def site_locations(sites: Sequence[Site], *more: Place | None) -> tuple[Location, ...]:
    """Return the lines that bring the error in (causes), and where it grows and gets to (sites)."""
    causes = [place for site in sites for place in (site.cause, *site.births)]
    found = [place for site in sites for place in (site.place, site.reached_at)]
    return locations(causes if any(causes) else [s.place for s in sites], [*found, *more])


def where(site: Site) -> str:
    """Return where a site is, in words: "blocks.0.norm at train.py:14"."""
    names = list(site.modules) or [site.function or site.operation]
    return f"{several(names)}{at(site.place)}"
