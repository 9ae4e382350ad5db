"""Rounding the elements of a tensor to a format, by a tie rule or stochastically."""

from __future__ import annotations

import math

import torch

from precdoctor.formats import Format, Tie
from precdoctor.numerics.carrier import carry, exponent_field, power_of_two


def round_to(
    x: torch.Tensor, fmt: Format, tie: Tie = "ties_to_even", *, saturate: bool = False
) -> torch.Tensor:
    """Return ``x`` rounded to the format, once: float64 does not stop at float32 on its way to bfloat16.

    In float32, or in float64 if ``x`` or the format is. Beyond the format's max: infinity, or NaN in a
    format without one (e4m3fn); ``saturate`` gives max, and so does toward_zero for finite elements and
    any rule in a format that has neither (e2m1). NaN stays NaN.
    """
    x, layout = carry(x, fmt.precision)
    binade = power_of_two(exponent_field(x, layout, fmt, None), layout, x.dtype)
    quanta = _quanta(x, binade, fmt)
    if tie == "ties_to_even":
        quanta.round_()
    elif tie == "ties_away":
        lower = quanta.abs().floor_()
        quanta = lower.add_(quanta.abs().sub_(lower).ge_(0.5)).copysign_(x)
    else:
        quanta.trunc_()
    rounded = _value(quanta, binade, fmt)
    beyond = x.isinf() if tie == "toward_zero" else rounded.abs() > fmt.max
    return _bounded(rounded, beyond, fmt, saturate)


def round_stochastic(
    x: torch.Tensor, fmt: Format, generator: torch.Generator | None = None, *, saturate: bool = False
) -> torch.Tensor:
    """Return for each element one of its two neighbours in the format, drawn so that the mean is the element.

    Takes one uniform number per element from ``generator``, by default torch's global one. Dtype and
    overflow are as in `round_to`.
    """
    x, layout = carry(x, fmt.precision)
    binade = power_of_two(exponent_field(x, layout, fmt, None), layout, x.dtype)
    quanta = _quanta(x, binade, fmt)
    lower = quanta.abs_().floor()
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    rounded = _value(lower.add_(uniform < quanta.sub_(lower)).copysign_(x), binade, fmt)
    return _bounded(rounded, rounded.abs() > fmt.max, fmt, saturate)


def _quanta(x: torch.Tensor, binade: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Return ``x`` counted in ulps, ``binade`` being the power of two at the foot of its binade.

    The ulp itself is never formed: it may be subnormal, and so 0 where subnormals are flushed.
    """
    return (x / binade).mul_(math.ldexp(1.0, fmt.precision - 1))


def _value(quanta: torch.Tensor, binade: torch.Tensor, fmt: Format) -> torch.Tensor:
    return quanta.mul_(math.ldexp(1.0, 1 - fmt.precision)).mul_(binade)


def _bounded(rounded: torch.Tensor, beyond: torch.Tensor, fmt: Format, saturate: bool) -> torch.Tensor:
    bounded = rounded.clamp(-fmt.max, fmt.max)
    if saturate or fmt.overflow == fmt.max:
        return bounded
    return torch.where(beyond, rounded * fmt.overflow, bounded)
