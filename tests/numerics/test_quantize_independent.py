"""Block formats against the implementations of others; those that are not installed are skipped."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from precdoctor.formats import BLOCK_FORMATS, BlockFormat, block_format
from precdoctor.numerics import (
    Quantized,
    Scales,
    dequantize,
    fake_quantize,
    flip_distance,
    quantize,
    quantum,
    scales_of,
)

MX = ("mxfp4", "mxfp4:ceil", "mxfp8", "mxfp8:e5m2")


def imported(name: str) -> ModuleType:
    """Return a module that may be absent, and may warn about what it can't find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            pytest.importorskip(name.partition(".")[0])
            return importlib.import_module(name)
        finally:
            logging.disable(logging.NOTSET)


def blocks(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return rows of blocks: normal, of many magnitudes, outliers, zeros, ties, subnormals, the largest."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 2 * size, generator=generator) * 0.02
    rows[100:200] *= 2.0 ** torch.randint(-30, 30, (100, 1), generator=generator)
    rows[200:300] *= 2.0 ** torch.randint(-8, 8, (100, 2 * size), generator=generator)
    rows[300:400, 7] = 10.0 * rows[300:400, 7].sign()
    rows[400, :] = 0
    rows[401, :size] = -0.0
    rows[402, 1:] = 0
    rows[403:500] = torch.randint(-24, 25, (97, 2 * size), generator=generator) / 4
    return rows.to(dtype)


def extremes(size: int) -> torch.Tensor:
    """Return blocks at both ends of float32."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 2 * size, generator=generator)
    rows[:20] *= 2.0 ** torch.randint(-149, -110, (20, 1), generator=generator)
    rows[20:] *= 2.0 ** torch.randint(100, 125, (20, 1), generator=generator)
    return rows


def assert_same(
    x: torch.Tensor,
    fmt: BlockFormat,
    theirs: torch.Tensor,
    *,
    scales: Scales | None = None,
    most_ties: float = 1e-3,
) -> None:
    """Equal, but for elements within float32's rounding of a threshold, where either code is right."""
    ours, step = fake_quantize(x, fmt, scales), quantum(x, fmt, scales)
    off = (ours - theirs.float()).abs()
    different = off > 1e-6 * (ours.abs() + step)
    near = flip_distance(x, fmt, scales=scales) <= 1e-5 * step
    assert not (different & ~near).any(), (x[different & ~near][:4], ours[different & ~near][:4])
    assert different.float().mean() < most_ties
    assert (off <= 1.00001 * step)[different].all()


@pytest.mark.parametrize("name", MX)
def test_mx_formats_are_the_casts_of_ml_dtypes_at_a_scale_in_e8m0(name: str) -> None:
    fmt = block_format(name)
    element = {
        "e2m1": ml_dtypes.float4_e2m1fn,
        "e4m3fn": ml_dtypes.float8_e4m3fn,
        "e5m2": ml_dtypes.float8_e5m2,
    }[fmt.codebook.name]
    for x in (blocks(32), extremes(32)):
        split = x.numpy().reshape(-1, 32)
        amax = np.abs(split).max(axis=1)
        top = np.frexp(fmt.codebook.max)[1] - 1 if fmt.rule == "floor" else np.log2(fmt.codebook.max)
        with np.errstate(divide="ignore"):
            power = np.log2(amax.astype(np.float64)) - top
        power = np.clip(np.floor(power) if fmt.rule == "floor" else np.ceil(power), -127, 127)
        scale = np.exp2(power).astype(ml_dtypes.float8_e8m0fnu)
        assert np.array_equal(scales_of(x, fmt).block.numpy(), scale.astype(np.float32))
        elements = np.clip(split / scale.astype(np.float32)[:, None], -fmt.codebook.max, fmt.codebook.max)
        back = elements.astype(element).astype(np.float32) * scale.astype(np.float32)[:, None]
        np.testing.assert_array_equal(fake_quantize(x, fmt).numpy(), back.reshape(x.shape))


@pytest.mark.parametrize(
    "name", ["e2m1:tensor", "e2m1:channel", "e4m3fn:tensor", "e4m3fn:channel", "e5m2:tensor"]
)
def test_scaled_floats_are_the_casts_of_ml_dtypes(name: str) -> None:
    fmt = block_format(name)
    element = {
        "e2m1": ml_dtypes.float4_e2m1fn,
        "e4m3fn": ml_dtypes.float8_e4m3fn,
        "e5m2": ml_dtypes.float8_e5m2,
    }[fmt.codebook.name]
    x = blocks(32)[:100] if fmt.block == "tensor" else blocks(32)
    amax = x.abs().amax() if fmt.block == "tensor" else x.abs().amax(1, keepdim=True)
    scale = (amax / fmt.codebook.max).clamp(min=1e-30)
    elements = (x / scale).clamp(-fmt.codebook.max, fmt.codebook.max).numpy().astype(element)
    assert_same(x, fmt, torch.from_numpy(elements.astype(np.float32)) * scale)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "mxfp8:e5m2"])
def test_mx_formats_agree_with_gfloat(name: str) -> None:
    gfloat, known = imported("gfloat"), imported("gfloat.formats")
    info = {
        "mxfp4": known.format_info_mxfp4_e2m1,
        "mxfp8": known.format_info_mxfp8_e4m3,
        "mxfp8:e5m2": known.format_info_mxfp8_e5m2,
    }[name]
    fmt = block_format(name)
    assert (info.k, info.element_bits, info.scale_bits) == (fmt.block, fmt.codebook.bits, fmt.scale.bits)
    assert info.block_size_bytes == fmt.held_bytes((32,))
    x = torch.cat([blocks(32)[::15, :32], extremes(32)[::8, :32]]).double()
    for block in x:
        theirs = gfloat.quantize_block(info, block.numpy(), gfloat.compute_scale_amax)
        assert torch.equal(fake_quantize(block, fmt), torch.from_numpy(theirs))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "mxfp8:e5m2"])
def test_every_code_at_every_scale_decodes_as_gfloat_says(name: str) -> None:
    gfloat, known = imported("gfloat"), imported("gfloat.formats")
    fmt = block_format(name)
    info = {"mxfp4": "mxfp4_e2m1", "mxfp8": "mxfp8_e4m3", "mxfp8:e5m2": "mxfp8_e5m2"}[name]
    info = getattr(known, f"format_info_{info}")
    decoded = [gfloat.decode_float(info.etype, pattern).fval for pattern in range(2**fmt.codebook.bits)]
    finite = sorted({value for value in decoded if np.isfinite(value)})
    assert list(fmt.codebook.values) == finite
    scales = torch.tensor([gfloat.decode_float(info.stype, pattern).fval for pattern in range(255)])
    x = torch.zeros(255, 32)
    x[:, 0] = scales * 2.0 ** (np.frexp(fmt.codebook.max)[1] - 1)
    x = x[x[:, 0].isfinite()]
    quantized = quantize(x, fmt)
    assert torch.equal(quantized.scales.block, scales[: len(x)])
    assert (x[:, 0] > 0).all()
    for start in range(0, len(finite), 32):
        codes = (torch.arange(start, start + 32) % len(finite)).to(torch.uint8).expand(len(x), 32)
        values = dequantize(Quantized(format=fmt, codes=codes, scales=quantized.scales, dtype=torch.float64))
        expected = torch.tensor(finite, dtype=torch.float64)[codes.long()] * scales[: len(x), None].double()
        assert torch.equal(values, expected)


@pytest.mark.parametrize(("name", "mode"), [("mxfp4", "FLOOR"), ("mxfp4:ceil", "RCEIL"), ("mxfp8", "FLOOR")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mx_formats_agree_with_torchao(name: str, mode: str, dtype: torch.dtype) -> None:
    mx = imported("torchao.prototype.mx_formats.mx_tensor")
    fmt = block_format(name)
    element = torch.float4_e2m1fn_x2 if fmt.codebook.bits == 4 else torch.float8_e4m3fn
    x = blocks(32, dtype)
    x[500, 3] = float("nan")
    scale, data = mx.to_mx(x, element, 32, getattr(mx.ScaleCalculationMode, mode))
    theirs = mx.to_dtype(data, scale, element, 32, torch.float32)
    ours = fake_quantize(x, fmt)
    zero = x.float().reshape(-1, 32).abs().amax(1) == 0
    blocks_agree = (ours.isnan() == theirs.isnan()).all() and ours[500, :32].isnan().all()
    assert blocks_agree
    exact = torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert exact
    stored, chosen = scale.view(torch.uint8).flatten(), scales_of(x, fmt).block
    nan = chosen.isnan()
    assert torch.equal(stored[~zero & ~nan].int() - 127, torch.log2(chosen[~zero & ~nan]).int())
    assert (stored[nan] == 255).all()


@pytest.mark.parametrize("tensor_scale", [True, False])
def test_nvfp4_agrees_with_torchao_where_its_scales_are_normal(tensor_scale: bool) -> None:
    mx = imported("torchao.prototype.mx_formats.nvfp4_tensor")
    fmt = block_format("nvfp4" if tensor_scale else "nvfp4:no-tensor-scale")
    x = blocks(16)[:100] if tensor_scale else blocks(16)[:100] * 50
    scale = mx.per_tensor_amax_to_scale(x.abs().max()) if tensor_scale else None
    theirs = mx.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(torch.float32)
    ours = scales_of(x, fmt)
    assert (ours.block >= 2**-6).all()  # torchao's smallest scale; below, ours are the subnormals of e4m3fn
    if scale is not None and ours.tensor is not None:
        assert ours.tensor == scale
    assert_same(x, fmt, theirs)


@pytest.mark.parametrize("name", [fmt.name for fmt in BLOCK_FORMATS if fmt.codebook.name.startswith("int")])
def test_integers_agree_with_torchao(name: str) -> None:
    ao = imported("torchao.quantization.quant_primitives")
    fmt, x = block_format(name), blocks(64)
    size = {"tensor": tuple(x.shape), "channel": (1, x.shape[1])}.get(str(fmt.block), (1, 64))
    kind = ao.MappingType.ASYMMETRIC if fmt.affine else ao.MappingType.SYMMETRIC
    limits = int(fmt.codebook.values[0]), int(fmt.codebook.values[-1])
    scale, zero = ao.choose_qparams_affine(x, kind, size, torch.int8, *limits, eps=1e-38)
    ours = scales_of(x, fmt)
    some = ours.block != 0
    torch.testing.assert_close(ours.block[some], scale.flatten()[some], rtol=1e-6, atol=0)
    if ours.zero is None:
        assert (zero == 0).all()
    else:  # in float32 a zero point may become a tie that it is not
        differ = some & (ours.zero != zero.flatten())
        low = x.reshape(len(ours.block), -1).amin(1)[differ].double() / ours.block[differ]
        assert ((low.frac().abs() - 0.5).abs() < 1e-5).all()
        assert differ.float().mean() < 0.2  # rows of ties
        ours = Scales(block=ours.block, zero=torch.where(differ, zero.flatten(), ours.zero))
    codes = ao.quantize_affine(x, size, scale, zero, torch.int8, *limits)
    theirs = ao.dequantize_affine(codes, size, scale, zero, torch.int8, *limits)
    # an odd zero point turns ties_to_even round: they round before it is added, we after
    assert_same(x, fmt, theirs, scales=ours, most_ties=0.05 if fmt.affine else 1e-3)


@pytest.mark.parametrize("name", ["nf4", "bnb-fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_4_bit_codes_agree_with_bitsandbytes(name: str, dtype: torch.dtype) -> None:
    bnb = imported("bitsandbytes.functional")
    fmt = block_format(name)
    kind = "fp4" if name == "bnb-fp4" else "nf4"
    rows = blocks(64) if dtype == torch.float32 else blocks(64)[:100]
    x = rows.to(dtype)
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type=kind)
    theirs = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).reshape(x.shape).long()
    assert torch.equal(state.absmax, scales_of(x, fmt).block)
    # their table of fp4 is rounded to four digits
    values = state.code.float()
    decode = torch.tensor(
        [min(range(len(fmt.codebook.values)), key=_distance(fmt, v)) for v in values.tolist()]
    )
    ours = quantize(x, fmt).codes.long()
    step = quantum(x, fmt)
    different = ours != decode[theirs]
    near = flip_distance(x, fmt) <= 4e-4 * step  # thresholds in four digits, or ties
    assert not (different & ~near).any()
    assert (ours - decode[theirs]).abs().max() <= 1
    back = bnb.dequantize_4bit(packed, state).float()
    close = (fake_quantize(x, fmt) - back).abs() <= 1e-4 * x.float().abs().amax(
        1, keepdim=True
    ) + 2**-8 * back.abs()
    assert (close | different).all()


def _distance(fmt: BlockFormat, value: float) -> Callable[[int], Any]:
    return lambda code: abs(fmt.codebook.values[code] - value)
