"""PD603: a layer's quantization noise is out of proportion."""

from __future__ import annotations

from statistics import median
from typing import ClassVar

from precdoctor.evidence import DataQuantizer, Evidence, GradientQuantizer
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.quantized import (
    MIN_SEEN,
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
from precdoctor.rules.saturated_quantizer import FLUSHED, follows_amax, is_flushed, is_lost
from precdoctor.rules.stale_quantized_weight import is_stale
from precdoctor.rules.wording import at, number, percent, several

#: decibels below which a layer is noisy: 4-bit blocks have 17.8 to 20.5 on weights, sign and mean 4.4
NOISY_DB = 10.0
#: decibels below the median of the other layers of the run from which a layer stands out
OUTLIER_DB = 8.0
#: sum of a gradient's rounding errors over that of its magnitudes from which they all point one way
#: (measured: up to 0.02 where training is as without, 0.48 where it is worse or diverges)
ONE_SIDED = 0.3
#: share of the columns of data that are lost, and how many: an outlier flushes a few beside it in many models
MOST_COLUMNS, MIN_COLUMNS = 0.5, 4
#: layers from which there is a median to speak of
MIN_PEERS = 3


class QuantizationNoise(Rule):
    """A layer keeps far less of its weight than the other quantized layers do: keep it in higher precision.

    ## What it means

    The signal to quantization noise ratio (SQNR) of a layer's weight, 10 log10 of the weight's energy over
    that of the error, is low, and much lower than in the layers beside it: a single outlier per tensor
    sets the scale and rounds the rest to a few codes, or the layer's weights have heavy tails.

    ## Why it hurts

    A layer at 6 dB computes with weights of which a quarter of the energy is noise. It is seldom all of
    them: measured sensitivity decides which layers to keep in higher precision, not their kind.

    ## Criterion

    A warning where the scale follows the largest weight and yet more than half of a weight is used as zero
    at less than 6 dB, or more than 80 % at any SQNR. And where the SQNR of a weight that is quantized
    afresh and gets gradient lies below 10 dB and at least 8 dB below the median of at least 3 other
    quantized weights. Coarse grids that all layers share, signs and ternary weights among them, are a
    choice and no finding.

    A warning where a forward pass in training mode quantizes data (a clamp next to a rounding, or a cast to 8
    bits) and at least half of its columns that vary, and at least 4, were used as zero in each of 3 passes or
    more, while the largest column is over 32 times larger and reaches the end of the range. Columns are the
    last dimension, or the channels of images; those that are mostly 0 themselves do not count, nor do
    probabilities, signs and ternary codes.

    An error where a backward pass rounds gradients to nearest and the errors, added up, are more than 0.3 of
    the gradient's magnitudes: they do not cancel. So it is with the gradient of a softmax over many classes,
    one large negative value among many small positive ones: the small ones become zero, and their logits are
    never pushed down. Measured on a language model of 1,024 tokens whose gradients alone were quantized, with
    a scale per tensor, in 250 updates, loss 1.70 without: INT8 2.45, E2M1 6.74, INT4 7.83 to nearest; 1.74,
    1.94 and 2.04 stochastically.

    ## Blind spots

    The SQNR of the weight is not the loss: what a layer contributes decides. `precdoctor treat` measures it
    by keeping the layer in float32. Nor are all columns of data worth the same: small ones may be noise. Of
    gradients that is seen what a function of the program rounds (`backward`, a hook), not what kernels of a
    library do inside.

    ## Remedies

    Keep these layers in higher precision; give blocks a scale of their own instead of the tensor. Gradients:
    round them stochastically. Columns of data: bring them to one size (normalise the features) before they
    are quantized.

    ## References

    - Bennett 1948, Spectra of quantized signals (uniform noise of variance step^2 / 12)
    - Dettmers and Zettlemoyer 2023, The case for 4-bit precision, arXiv 2212.09720 (block scales, outliers)
    - Chmiel et al. 2025, FP4 All the Way, arXiv 2505.19115 (nearest for weights, stochastic for gradients)
    """

    id: ClassVar[str] = "PD603"
    name: ClassVar[str] = "quantization-noise"
    example: ClassVar[str] = "quantization_noise.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per quantizer whose grid is too coarse, and one for the layers that stand out."""
        items = [
            i
            for i in quantized(evidence)
            if i.quantizer.kind == "quantizer" and _decibels(i) is not None and not is_stale(i)
        ]
        coarse = [i for i in items if _is_coarse(i)]
        outliers = [i for i in items if i not in coarse and _stands_out(i, items)]
        found = [cls._coarse(members) for members in by_quantizer(coarse)]
        found += [cls._outliers(outliers, items)] if outliers else []
        found += [cls._columns(site) for site in evidence.data_quantizers if _loses_columns(site)]
        return found + [cls._gradients(members) for members in gradient_quantizers(evidence, _is_one_sided)]

    @classmethod
    def _coarse(cls, members: list[Quantized]) -> Finding:
        worst = max(members, key=_flushed).quantizer
        last = worst.last
        assert last is not None
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=tuple(Subject(kind="parameter", name=i.quantizer.parameter) for i in members),
            message=(
                f"{who(members)}: {percent(last.flushed_share)} of {worst.parameter} are used as zero, at "
                f"{number(last.sqnr_db)} dB of signal to quantization noise, although the largest weight "
                "gets the largest code: the grid is too coarse for what shares a scale."
            ),
            locations=quantizer_locations(members),
            measured={
                "weights": len(members),
                "elements": elements(members),
                "flushed_share": last.flushed_share,
                "sqnr_db": last.sqnr_db,
                "levels": worst.levels,
            },
            prescriptions=ranked(
                [
                    ("block-scale", "with a scale per block the largest weight flushes its neighbours only"),
                    (
                        "keep-float32",
                        "higher precision: more bits, at least where it hurts most",
                    ),
                ]
            ),
        )

    @classmethod
    def _outliers(cls, found: list[Quantized], items: list[Quantized]) -> Finding:
        lowest = min(found, key=lambda i: _decibels(i) or 0.0)
        others = [d for i in items if i not in found and (d := _decibels(i)) is not None]
        names = [i.quantizer.parameter for i in found]
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=tuple(Subject(kind="parameter", name=name) for name in names),
            message=(
                f"{who(found)} {'keep' if len(found) > 1 else 'keeps'} "
                f"{number(_decibels(lowest))} dB of signal to quantization noise at the worst; the median of "
                f"the other {len(others)} quantized weights is {number(median(others))} dB."
            ),
            locations=quantizer_locations(found),
            measured={
                "weights": len(found),
                "elements": elements(found),
                "sqnr_db_min": _decibels(lowest),
                "sqnr_db_median_others": median(others),
            },
            prescriptions=ranked(
                [
                    (
                        "keep-float32",
                        f"keep {several(names)} in float32: "
                        f"{elements(found) / max(elements(items), 1):.1%} of the quantized elements",
                        {"layers": ",".join(names)},
                    ),
                    ("block-scale", "a scale per block keeps an outlier from rounding the others away"),
                ]
            ),
        )

    @classmethod
    def _columns(cls, site: DataQuantizer) -> Finding:
        name = site.module or "?"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=(Subject(kind="module", name=name),),
            message=(
                f"Of the data that {name} quantizes{at(site.place)}, {site.lost_columns:,} of the "
                f"{site.columns:,} columns that vary were used as zero in all {site.column_passes:,} passes "
                "that were looked at: others are over 32 times larger, and set the scale that all share."
            ),
            locations=locations([site.place]),
            measured={
                "columns": site.columns,
                "lost_columns": site.lost_columns,
                "passes": site.column_passes,
                "flushed_share": site.flushed_share,
                "reach": site.reach,
                "sqnr_db": site.sqnr_db,
            },
            prescriptions=ranked(
                [
                    (
                        "column-scale",
                        "bring the columns to one size before they are quantized, or give each its own scale",
                    )
                ]
            ),
        )

    @classmethod
    def _gradients(cls, members: list[GradientQuantizer]) -> Finding:
        worst = max(members, key=lambda i: i.bias or 0.0)
        message = (
            f"Gradients ({named_shape(worst)}) are rounded to nearest{at(worst.rounding)} and the errors "
            f"point one way: together they are {number(worst.bias)} of the gradient's magnitudes, and "
            f"{percent(worst.flushed_share)} of the values other than 0 are used as zero."
        )
        cure = ("stochastic-gradients", "round each value up or down by chance, so that the errors cancel")
        return gradient_finding(cls, worst, "error", message, cure)


def _loses_columns(site: DataQuantizer) -> bool:
    many = site.column_passes >= MIN_SEEN and site.lost_columns >= MIN_COLUMNS
    return many and site.lost_columns >= MOST_COLUMNS * site.columns and not is_lost(site)


def _is_one_sided(item: GradientQuantizer) -> bool:
    # what lies below the range of 8 bits is PD203; most of it used as zero, a wrong scale
    other = item.format.startswith("float8") or item.flushed_energy > FLUSHED
    return not item.random and not other and item.bias is not None and item.bias > ONE_SIDED


def _flushed(item: Quantized) -> float:
    last = item.quantizer.last
    return 0.0 if last is None else last.flushed_share


def _is_coarse(item: Quantized) -> bool:
    last = item.quantizer.last
    return last is not None and not last.non_finite and is_flushed(last) and follows_amax(last)


def _decibels(item: Quantized) -> float | None:
    last = item.quantizer.last
    return None if last is None else last.sqnr_db


def _stands_out(item: Quantized, items: list[Quantized]) -> bool:
    own = _decibels(item)
    others = [d for i in items if i is not item and (d := _decibels(i)) is not None]
    if own is None or len(others) < MIN_PEERS:
        return False
    return own < NOISY_DB and own < median(others) - OUTLIER_DB
