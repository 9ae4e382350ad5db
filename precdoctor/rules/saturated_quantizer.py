"""PD604: a quantizer's scale does not fit what it gets."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import DataQuantizer, Evidence, Fidelity, GradientQuantizer, Quantizer
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.quantized import (
    Quantized,
    by_quantizer,
    elements,
    gradient_finding,
    gradient_quantizers,
    named_shape,
    quantized,
    quantizer_locations,
    who,
)
from precdoctor.rules.reading import locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.stale_quantized_weight import is_stale
from precdoctor.rules.wording import at, number, percent

#: share of a weight beyond the largest code from which its scale is too small (measured: 0 to 0.022 healthy,
#: 0.415 and 0.760 where the loss suffered)
CLIPPED_WEIGHT = 0.2
#: the same for the values, other than 0, of data
CLIPPED_DATA = 0.5
#: part of a gradient that clipping takes away (measured: 0 to 0.025, and 0.25 where a scale is rounded down)
CLIPPED_GRADIENT = 0.1
#: the largest value of data over the bound of the range, below which, and with `NEARLY_ALL` of the values
#: used as zero, its scale is too large: 16 of 127 codes, and even those for the few
UNREACHED = 1 / 8
#: the same where more than `FLUSHED` of the values are used as zero at less than `FLUSHED_DB`: two bits of
#: the codes are not used (measured on normal, Laplace, t, log-normal, gated, sparse data and probabilities:
#: int8 and float8 at four times the range they need keep 8.9 dB or more, int4 at twice it reaches 0.5 of it)
UNUSED = 1 / 4
#: share of a weight that is used as zero, and decibels below which its scale is too large, or missing
FLUSHED = 0.5
FLUSHED_DB = 6.0
#: share used as zero from which the SQNR does not matter: an outlier may hold all the energy
NEARLY_ALL = 0.8
#: factor within which the largest used magnitude is that of the weight
REACH = 1.4

#: values of a grid from which what is used of a weight follows it, and how closely at least: rounding to 16
#: levels leaves a correlation above 0.98
MANY_LEVELS, FOLLOWING = 16, 0.7
_BLOCKS = ("block-scale", "a scale per block, from the largest magnitude in it, clips and flushes little")


class SaturatedQuantizer(Rule):
    """A quantizer's scale is wrong: much of what it gets lies beyond the largest code, or rounds to zero.

    ## What it means

    The scale maps the largest magnitude that the quantizer expects onto its last code. Taken too small (one
    calibration batch, an amax that is never updated, a clip at one standard deviation), everything
    beyond is one and the same value. Taken too large, or left out, most of the weight rounds to zero. A
    scale of zero, or one that is not finite, gives NaN.

    ## Why it hurts

    What is clipped carries no information, and with a masked estimator no gradient; with the gradient passed
    through, the weight runs away from what is seen of it (moved by 6.8 of its norm, seen 0.8).
    Clipped at one standard deviation a model ended at loss 3.83, at two at 1.80, unclipped at 0.35.

    ## Criterion

    An error where more than 20 % of a weight lies beyond the largest magnitude that is used in its tensor
    or its row; where used values are not finite and the weight is; and where more than half of a weight is
    used as zero at less than 6 dB of SQNR, or more than 80 % at any, and the largest magnitude used is not
    that of the weight (by a factor of 1.4): a scale that follows amax and still flushes is too coarse a
    grid (PD603); and where a grid of 16 values or more is used whose correlation with the weight is below
    0.7, first and last. For data: more than half of the values other than 0 lie beyond the bounds of a
    clamp next to a rounding, or of the format of a cast to 8 bits, in the forward pass of a module in
    training mode, the last time it was seen (a lower bound of 0 is a rectifier and does not count); or more
    than 80 % of them are used as zero and the largest does not reach an eighth of the range; or more than
    half of them are, at less than 6 dB of SQNR, and the largest does not reach a quarter. For gradients
    that a backward pass rounds, a warning where more than a tenth of the gradient, by projection, is gone
    and what is used as zero does not account for it; an error where more than half of the squared gradient
    is used as zero (of a cast to 8 bits without a scale speaks PD203).

    ## Blind spots

    Rounding to signs, with or without zero, has no range. Of data whose scale follows an outlier of its own
    all the rest may be used as zero: its range is reached (of whole columns PD603 says so). Codes that are
    shifted by a zero point before they are rounded have none at 0. Clipping inside a block is not told from
    rounding. Data is looked at in the steps in which the probe is awake.

    ## Remedies

    Follow the largest magnitude (a running maximum, or the current one); give blocks their own scale.

    ## References

    - Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv 2209.05433 (delayed scaling, amax
      history)
    """

    id: ClassVar[str] = "PD604"
    name: ClassVar[str] = "saturated-quantizer"
    example: ClassVar[str] = "saturated_quantizer.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per quantizer and way in which its scale is wrong."""
        items = [i for i in quantized(evidence) if i.quantizer.kind == "quantizer" and not is_stale(i)]
        found = []
        for how in ("not finite", "clipped", "flushed", "scrambled"):
            for members in by_quantizer(i for i in items if _wrong(i.quantizer) == how):
                found.append(cls._weights(members, how))
        found += [cls._data(site) for site in evidence.data_quantizers if is_lost(site)]
        return found + [cls._gradients(members) for members in gradient_quantizers(evidence, _misses_scale)]

    @classmethod
    def _weights(cls, members: list[Quantized], how: str) -> Finding:
        worst = max(members, key=lambda i: _badness(i, how)).quantizer
        last = worst.last
        assert last is not None
        what = {
            "not finite": f"{last.non_finite:,} of the used values of {worst.parameter} are not finite and "
            "the weight is: its scale is zero, or is not finite itself",
            "clipped": f"{percent(last.clipped_share)} of {worst.parameter} lie beyond the largest value "
            "that is used of it: the scale is too small",
            "flushed": f"{percent(last.flushed_share)} of {worst.parameter} are used as zero, at "
            f"{number(last.sqnr_db)} dB of signal to quantization noise: the scale is too large, zero or "
            "missing",
            "scrambled": f"the {worst.levels:,} values that are used of {worst.parameter} do not follow it "
            f"(correlation {number(last.correlation)}), which no rounding does: a zero point or a scale is "
            "wrong on the way, or codes wrap around in their format",
        }[how]
        if len(members) > 1:
            what = f"{who(members)}: {what}"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=tuple(Subject(kind="parameter", name=i.quantizer.parameter) for i in members),
            message=f"{what}.",
            locations=quantizer_locations(members),
            measured={
                "weights": len(members),
                "elements": elements(members),
                "clipped_share": last.clipped_share,
                "flushed_share": last.flushed_share,
                "sqnr_db": last.sqnr_db,
                "non_finite": last.non_finite,
                "correlation": last.correlation,
                "levels": worst.levels,
            },
            prescriptions=() if how == "scrambled" else ranked([_BLOCKS]),
        )

    @classmethod
    def _data(cls, site: DataQuantizer) -> Finding:
        grown = ""
        if site.last_step > site.first_step:
            grown = f" ({percent(site.clipped_share_first)} before step {site.first_step + 1})"
        quality = ""
        if site.sqnr_db is not None:
            quality = f", at {number(site.sqnr_db)} dB of signal to quantization noise"
        name = site.module or "?"
        if site.clipped_share > CLIPPED_DATA:
            message = (
                f"{percent(site.clipped_share)} of the values other than 0 that {name} quantizes"
                f"{at(site.place)} lie beyond its range after {site.last_step:,} steps{grown}: its scale "
                "does not follow them."
            )
        elif site.non_finite_share > CLIPPED_DATA:
            message = (
                f"{percent(site.non_finite_share)} of the values that {name} quantizes{at(site.place)} "
                f"are not finite after {site.last_step:,} steps."
            )
        else:
            message = (
                f"{percent(site.flushed_share)} of the values other than 0 that {name} quantizes"
                f"{at(site.place)} are used as zero after {site.last_step:,} steps{quality}, and the largest "
                f"reaches {percent(site.reach)} of its range: its scale is too large for them."
            )
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=(Subject(kind="module", name=name),),
            message=message,
            locations=locations([site.place]),
            measured={
                "clipped_share": site.clipped_share,
                "clipped_share_first": site.clipped_share_first,
                "step": site.last_step,
                "non_finite_share": site.non_finite_share,
                "flushed_share": site.flushed_share,
                "reach": site.reach,
                "sqnr_db": site.sqnr_db,
            },
            prescriptions=ranked(
                [("update-amax", "follow the largest magnitude: a running maximum, or that of the batch")]
            ),
        )

    @classmethod
    def _gradients(cls, members: list[GradientQuantizer]) -> Finding:
        worst = max(members, key=lambda i: (i.flushed_energy, _cut_away(i)))
        which, flushed = f"gradients ({named_shape(worst)})", worst.flushed_energy > FLUSHED
        if flushed:
            message = (
                f"{percent(worst.flushed_share)} of the values of {which} that are not 0 become zero where "
                f"they are rounded{at(worst.rounding)}: the scale is too large, or missing."
            )
        else:
            message = (
                f"Of {which} {number(worst.projection)} is left, by projection, once they are rounded"
                f"{at(worst.rounding)}: the largest values lie beyond the last code. Stochastic rounding "
                "does not change that."
            )
        cure = ("update-amax", "give the largest magnitude the last code: follow it, and round its scale up")
        return gradient_finding(cls, worst, "error" if flushed else "warning", message, cure)


def _misses_scale(item: GradientQuantizer) -> bool:
    """Tell whether the scale of gradients is wrong; what a cast to 8 bits loses below its range is PD203."""
    if _cut_away(item) > CLIPPED_GRADIENT:
        return True
    return item.flushed_energy > FLUSHED and not item.format.startswith("float8") and not item.random


def _cut_away(item: GradientQuantizer) -> float:
    return 0.0 if item.projection is None else 1 - item.projection - item.flushed_energy


def _wrong(item: Quantizer) -> str:
    last = item.last
    if last is None:
        return ""
    if last.non_finite:
        return "not finite"
    if last.clipped_share > CLIPPED_WEIGHT:
        return "clipped"
    if is_flushed(last):
        return "" if follows_amax(last) else "flushed"
    looks = [look for look in (item.first, last) if look is not None]
    follows = any(look.correlation >= FOLLOWING for look in looks)
    return "" if follows or item.levels < MANY_LEVELS else "scrambled"


def is_flushed(last: Fidelity) -> bool:
    """Tell whether most of a weight is used as zero, and little is left of it."""
    few = last.flushed_share > FLUSHED and last.sqnr_db is not None and last.sqnr_db < FLUSHED_DB
    return few or last.flushed_share > NEARLY_ALL


def follows_amax(last: Fidelity) -> bool:
    """Tell whether the largest code stands for the largest weight: the scale is what it is meant to be."""
    return 1 / REACH < last.reach < REACH


def _badness(item: Quantized, how: str) -> float:
    last = item.quantizer.last
    if last is None:
        return 0.0
    return {"not finite": last.non_finite, "clipped": last.clipped_share}.get(how, last.flushed_share)


def is_lost(site: DataQuantizer) -> bool:
    """Tell whether the scale of data is too small or too large for it."""
    if site.clipped_share > CLIPPED_DATA or site.non_finite_share > CLIPPED_DATA:
        return True
    noisy = site.sqnr_db is not None and site.sqnr_db < FLUSHED_DB
    few = site.flushed_share > FLUSHED and noisy and site.reach < UNUSED
    return few or (site.flushed_share > NEARLY_ALL and site.reach < UNREACHED)
