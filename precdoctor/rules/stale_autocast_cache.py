"""PD408: autocast goes on with casts of weights that were made before the optimizer's step."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence, Place, Region
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.quantized import Quantized, elements, quantized, who
from precdoctor.rules.reading import locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.stale_quantized_weight import MIN_STALE, is_kept_by_autocast
from precdoctor.rules.wording import at, number, percent


class StaleAutocastCache(Rule):
    """An autocast region goes on with casts of weights that have other values by now.

    ## What it means

    Autocast casts each float32 weight once and keeps the cast until the outermost region ends. A region that
    is opened around the training loop, or around several steps of it, gives the forward pass the weights of
    its first iteration for ever. A region with `enabled=False` around everything has the same effect on those
    inside, since the cache is dropped at the end of the outermost region only; so has
    `torch.set_autocast_enabled` without a region. And where other weights are swapped in inside a region (an
    average, a reference model), the forward pass after it uses the casts of those that were there before.

    ## Why it hurts

    The weights move and the loss does not see it: gradients are those of the first weights, again and again.
    Measured: a loss flat at 1.6 while the weights went 26 % of their norm; cast anew, it was 1.43.

    ## Criterion

    An error where the forward pass used casts of weights, under autocast, that were made at least one
    optimizer step before, casting anew would change more than 2 % of the values, and either a region spans
    two steps or more, or what is used moved by less than 5 % of what the weight moved. Also where, in at
    least two steps seen, a cast was used again after other values had been written into its weight, and one
    made anew would differ in more than 2 % of the values.

    ## Blind spots

    Looked at in the first steps, and now and then later (steps 5, 10, 15, 20, 30, 50, ...).

    ## Remedies

    Open the region for each forward pass. Or open it with `cache_enabled=False`, which casts at each use, or
    call `torch.clear_autocast_cache()` after each step.

    ## References

    - PyTorch documentation, torch.amp.autocast (cache_enabled)
    - X-GenGroup/Flow-Factory#186, NVIDIA/apex#132
    """

    id: ClassVar[str] = "PD408"
    name: ClassVar[str] = "stale-autocast-cache"
    example: ClassVar[str] = "stale_autocast_cache.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding for all weights whose casts are stale."""
        stale = [item for item in quantized(evidence) if is_kept_by_autocast(evidence, item)]
        if stale:
            return [cls._finding(evidence, stale)]
        swapped = [item for item in quantized(evidence) if _is_outdated(evidence, item)]
        return [cls._swapped(evidence, swapped)] if swapped else []

    @classmethod
    def _finding(cls, evidence: Evidence, stale: list[Quantized]) -> Finding:
        worst = max(stale, key=lambda i: i.quantizer.weight_moved).quantizer
        region = _spanning(evidence)
        opened = _opened(region)
        where = f"The autocast region{at(opened)} spans optimizer steps" if region else "Autocast stays on"
        text = (
            f"{where} and keeps its casts of {who(stale)} to {worst.format}: what the forward pass uses is "
            f"up to {worst.age_steps:,} steps old. {worst.parameter} has moved by "
            f"{number(worst.weight_moved)} of its norm, what is used by {number(worst.used_moved)}"
        )
        if worst.stale_share is not None:
            text += f"; cast anew, {percent(worst.stale_share)} of the values would differ"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=tuple(Subject(kind="parameter", name=i.quantizer.parameter) for i in stale),
            message=text + ".",
            locations=locations(
                [opened] if opened is not None else [worst.used_at],
                [region.place if region is not None else None, worst.used_at],
            ),
            measured={
                "weights": len(stale),
                "elements": elements(stale),
                "age_steps": worst.age_steps,
                "stale_share": worst.stale_share,
                "weight_moved": worst.weight_moved,
                "used_moved": worst.used_moved,
                "steps_inside": region.steps_inside if region is not None else None,
            },
            prescriptions=ranked(
                [("refresh-cache", "open the region for each forward pass, or with cache_enabled=False")]
            ),
        )

    @classmethod
    def _swapped(cls, evidence: Evidence, members: list[Quantized]) -> Finding:
        worst = max(members, key=lambda i: i.quantizer.outdated_share).quantizer
        opened = [_opened(r) for r in evidence.regions if r.enabled and r.cached and r.format == worst.format]
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=tuple(Subject(kind="parameter", name=i.quantizer.parameter) for i in members),
            message=f"Inside one autocast region other values are written into {who(members)}, and the casts "
            f"to {worst.format} from before are used on{at(worst.outdated_at)}, in "
            f"{worst.outdated_steps:,} of {worst.seen:,} steps seen; cast anew, "
            f"{percent(worst.outdated_share)} of the values of {worst.parameter} would differ.",
            locations=locations(opened[:1], [worst.outdated_at]),
            measured={
                "weights": len(members),
                "elements": elements(members),
                "outdated_share": worst.outdated_share,
                "outdated_steps": worst.outdated_steps,
            },
            prescriptions=ranked(
                [("refresh-cache", "open a region for each forward pass, or one with cache_enabled=False")]
            ),
        )


def _is_outdated(evidence: Evidence, item: Quantized) -> bool:
    """Tell whether a cast was used again, in steps enough, after other values had come into the weight."""
    quantizer = item.quantizer
    if quantizer.outdated_share < MIN_STALE or quantizer.outdated_steps < min(2, quantizer.seen):
        return False
    return any(r.enabled and r.cached and r.format == quantizer.format for r in evidence.regions)


def _spanning(evidence: Evidence) -> Region | None:
    """Return the region around most optimizer steps, an outer one before those inside it."""
    spanning = [r for r in evidence.regions if r.steps_inside > 0]
    return max(spanning, key=lambda r: r.steps_inside, default=None)


def _opened(region: Region | None) -> Place | None:
    return None if region is None else region.entered_at or region.place
