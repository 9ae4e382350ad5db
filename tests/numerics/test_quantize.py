from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from precdoctor import numerics
from precdoctor.formats import BLOCK_FORMATS, BlockFormat, arrays, block_format
from precdoctor.numerics import (
    Quantized,
    Scales,
    dequantize,
    fake_quantize,
    flip_distance,
    flushed_share,
    quantize,
    quantize_stochastic,
    quantum,
    saturated_share,
    scales_of,
    sqnr_db,
)
from tests.numerics.patterns import assert_identical
from tests.reference import quantize as reference

every = pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def spread() -> torch.Tensor:
    """Return rows of 70: normal, with an outlier, all zero, small halves (ties), of many magnitudes."""
    generator = torch.Generator().manual_seed(1)
    rows = normal(2, 5, 70)
    rows[1, 3] = 10.0
    rows[2] = 0.0
    rows[3] = torch.randint(-12, 13, (70,), generator=generator) / 2
    rows[4] *= 2.0 ** torch.randint(-20, 20, (70,), generator=generator)
    return rows


@every
def test_float64_round_trip_is_that_of_exact_fractions(fmt: BlockFormat) -> None:
    expected = torch.tensor(reference.round_trip(fmt, spread().tolist()), dtype=torch.float64)
    actual = fake_quantize(spread().double(), fmt)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=2**-22, atol=0)


@every
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_dtype_is_quantized_as_the_numbers_it_holds(fmt: BlockFormat, dtype: torch.dtype) -> None:
    x = spread().to(dtype)
    actual, expected = fake_quantize(x, fmt), fake_quantize(x.double(), fmt)
    assert actual.dtype == torch.float32
    # where an element lies within float32's rounding of a threshold, either code is right
    near = flip_distance(x.double(), fmt) < 1e-5 * quantum(x.double(), fmt)
    wrong = (actual - expected).abs() > 1e-6 * expected.abs()
    assert not (wrong & ~near).any()
    assert near.float().mean() < 0.2  # the ties of one row


@every
def test_numpy_and_torch_agree(fmt: BlockFormat) -> None:
    x = spread().double()
    expected = torch.from_numpy(arrays.fake_quantize(x.numpy(), fmt))
    torch.testing.assert_close(fake_quantize(x, fmt), expected, rtol=2**-22, atol=0)


@every
def test_scales_are_those_of_the_scalar_rule(fmt: BlockFormat) -> None:
    x, scales = spread(), scales_of(spread(), fmt)
    amax = x.abs().max().item()
    assert (1.0 if scales.tensor is None else scales.tensor.item()) == fmt.tensor_scale(amax)
    expected = []
    for places in reference.blocks(fmt, x.tolist()):
        block = [x[place].item() for place in places]
        low, high = min(*block, 0.0), max(*block, 0.0)
        extent = high - low if fmt.affine else max(-low, high)
        expected.append(fmt.block_scale(extent, fmt.tensor_scale(amax)))
    assert scales.block.tolist() == expected
    assert (scales.zero is not None) == fmt.affine


@every
def test_quantizing_what_came_back_changes_nothing_at_the_same_scale(fmt: BlockFormat) -> None:
    first = quantize(spread(), fmt)
    again = quantize(dequantize(first), fmt, first.scales)
    assert torch.equal(again.codes, first.codes)
    assert_identical(dequantize(again), dequantize(first))


@every
def test_every_code_is_reached_and_stands_for_its_value(fmt: BlockFormat) -> None:
    values = torch.tensor(fmt.codebook.values)
    x = values.unsqueeze(0) if fmt.block == "tensor" else values.unsqueeze(1).expand(-1, 64)
    blocks = fmt.grid(tuple(x.shape)).blocks
    scales = Scales(block=torch.full((blocks,), 0.25), zero=torch.zeros(blocks) if fmt.affine else None)
    quantized = quantize(x * 0.25, fmt, scales)
    assert quantized.codes.flatten().unique().tolist() == list(range(len(values)))
    assert torch.equal(dequantize(quantized), x * 0.25)
    beyond = fake_quantize(x.sign() * 1e9, fmt, scales)
    assert beyond.unique().tolist() == [values[0].item() / 4, 0, values[-1].item() / 4]


@every
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_what_is_not_finite_takes_along_all_that_share_its_scale(
    fmt: BlockFormat, bad: float, dtype: torch.dtype
) -> None:
    x = spread().to(dtype)
    x[0, 0] = bad
    back, share = fake_quantize(x, fmt), scales_of(x, fmt).total.isnan()
    assert back[0, :16].isnan().all()
    whole = fmt.has_tensor_scale or fmt.block == "tensor"
    assert back.isnan().all() == whole
    assert share.all() == whole
    assert share.any()
    assert quantum(x, fmt)[0, :16].isnan().all()
    assert flip_distance(x, fmt)[0, :16].isnan().all()
    for statistic in (saturated_share(x, fmt), flushed_share(x, fmt)):
        assert statistic.isfinite()


@every
def test_zeros_and_nothing_at_all_come_back_as_they_went(fmt: BlockFormat) -> None:
    for x in (torch.zeros(3, 70), torch.zeros(()), torch.zeros(0), torch.zeros(0, 4), torch.zeros(4, 0)):
        assert_identical(fake_quantize(x, fmt), x)
        assert quantize(x, fmt).codes.shape == x.shape
        assert quantum(x, fmt).isfinite().all()
        assert not flip_distance(x, fmt).isnan().any()
    assert flushed_share(torch.zeros(3, 70), fmt) == saturated_share(torch.zeros(3, 70), fmt) == 0


@every
@pytest.mark.parametrize("amax", [2.0**-149, 2.0**-130, 3.4e38])
def test_the_ends_of_float32_neither_grow_nor_turn_into_nan(fmt: BlockFormat, amax: float) -> None:
    x = torch.linspace(-1, 1, 64) * amax
    back = fake_quantize(x, fmt)
    # e8m0 reaches beyond float32: 4 x 2^126 overflows in dequantization
    assert not back.isnan().any()
    assert (back.abs() <= 1.2 * amax).all() or fmt.rule == "ceil"


def test_a_single_outlier_flushes_its_block_and_no_other() -> None:
    x = normal(3, 8, 64)
    x[2, 5] = 100.0
    flushed = fake_quantize(x, block_format("mxfp4")) == 0
    assert flushed[2, :32].sum() == 31
    assert flushed[2, 32:].float().mean() < 0.2
    assert (fake_quantize(x, block_format("e2m1:tensor")) == 0).sum() == x.numel() - 1


@every
def test_stochastic_codes_enclose_the_element_and_are_right_on_average(fmt: BlockFormat) -> None:
    draws, row = 4096, normal(4, 64)
    x = row.expand(draws, 64).contiguous()
    generator = torch.Generator().manual_seed(5)
    scales = scales_of(x, fmt)
    drawn = dequantize(quantize_stochastic(x, fmt, generator, scales)).double()
    nearest = fake_quantize(x, fmt).double()
    step = quantum(x, fmt).double()
    assert ((drawn - x).abs() <= step * 1.0001).logical_or(drawn == nearest).all()
    ends = [quantize(x, fmt, scales).codes.fill_(code) for code in (0, len(fmt.codebook.values) - 1)]
    lowest, highest = (dequantize(Quantized(format=fmt, codes=end, scales=scales))[0] for end in ends)
    inside = (lowest <= row) & (row <= highest)  # what saturates is biased
    assert inside.float().mean() > 0.9
    # a draw has a standard deviation of at most half a step; five of the mean's
    bias = (drawn.mean(0) - row).abs()[inside]
    assert (bias <= 5 * step[0, inside] / 2 / math.sqrt(draws)).all()


def test_stochastic_rounding_repeats_with_its_generator_and_keeps_what_is_on_the_grid() -> None:
    x, fmt = normal(6, 4, 64), block_format("nvfp4")
    first, second = (quantize_stochastic(x, fmt, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    on_grid = dequantize(first)
    again = quantize_stochastic(on_grid, block_format("mxfp4"), None, Scales(block=torch.ones(8)))
    assert again.codes.shape == x.shape
    exact = torch.tensor([[-6.0, -4.0, -0.5, 0.0, 1.5, 6.0]])
    kept = quantize_stochastic(exact, block_format("mxfp4"), None, Scales(block=torch.ones(1)))
    assert torch.equal(dequantize(kept), exact)


def test_quantum_is_the_step_away_from_zero() -> None:
    x = torch.tensor([[0.0, 0.5, -0.5, 0.7, 2.0, -2.0, -2.1, 3.0, 4.0, -4.0, 5.0, 6.0, -6.0, 7.9]])
    scales = Scales(block=torch.full((1,), 0.25))
    expected = torch.tensor([[0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]])
    assert torch.equal(quantum(x * 0.25, block_format("mxfp4"), scales), expected * 0.25)


@every
def test_the_code_flips_just_beyond_the_flip_distance(fmt: BlockFormat) -> None:
    x = normal(8, 3, 70).double()
    quantized = quantize(x, fmt)
    for direction in (-1.0, 1.0):
        distance = flip_distance(x, fmt, direction, quantized.scales)
        last = 0 if direction < 0 else len(fmt.codebook.values) - 1
        assert torch.equal(distance.isinf(), quantized.codes == last)
        inner = distance.isfinite()
        for factor, flips in ((1 - 1e-6, False), (1 + 1e-6, True)):
            moved = torch.where(inner, x + direction * distance * factor, x)
            flipped = quantize(moved, fmt, quantized.scales).codes != quantized.codes
            assert (flipped[inner] == flips).all()
    nearer = flip_distance(x, fmt)
    assert torch.equal(nearer, torch.minimum(flip_distance(x, fmt, -1), flip_distance(x, fmt, 1)))
    assert torch.equal(flip_distance(x, fmt, -torch.ones_like(x)), flip_distance(x, fmt, -1))


def test_a_small_learning_rate_flips_no_code_of_a_4_bit_weight() -> None:
    x, fmt = normal(9, 64, 384), block_format("nvfp4")
    before = quantize(x, fmt)
    after = quantize(x + 1e-6, fmt, before.scales)
    flips = (after.codes != before.codes).float().mean()
    predicted = (flip_distance(x, fmt, 1.0) < 1e-6).float().mean()
    assert flips == pytest.approx(predicted.item(), abs=1e-4)
    assert flips < 1e-3
    assert flip_distance(x, fmt).median() > 1e-3


def test_shares_tell_a_scale_too_small_and_one_too_large() -> None:
    x, fmt = normal(10, 64, 384), block_format("e2m1:tensor")

    def given(sigmas: float) -> Scales:
        return Scales(block=torch.full((1,), sigmas * 0.02 / 6))

    assert saturated_share(x, fmt) == 0
    # of a normal distribution 31.7 % lies beyond one sigma, 4.6 % beyond two
    assert saturated_share(x, fmt, given(1)).item() == pytest.approx(0.317, abs=0.02)
    assert saturated_share(x, fmt, given(2)).item() == pytest.approx(0.0455, abs=0.01)
    assert flushed_share(x, fmt, given(1000)) == 1
    assert sqnr_db(x, fake_quantize(x, fmt, given(1000))) == 0
    # raw e2m1, the scale forgotten: everything below a quarter is flushed
    assert flushed_share(x, fmt, Scales(block=torch.ones(1))) == 1
    assert 0.01 < saturated_share(x, block_format("mxfp4")) < 0.03
    assert saturated_share(x, block_format("mxfp4:ceil")) == 0


def test_given_scales_saturate_infinities_and_take_nan_for_the_largest() -> None:
    x = torch.tensor([[math.inf, -math.inf, math.nan, 1.0]])
    back = fake_quantize(x, block_format("mxfp4"), Scales(block=torch.ones(1)))
    assert back.tolist() == [[6, -6, 6, 1]]


@every
def test_parameters_are_read_and_left_alone(fmt: BlockFormat) -> None:
    parameter = torch.nn.Parameter(normal(11, 70, 6))
    before = parameter.detach().clone()
    back = fake_quantize(parameter, fmt)
    assert not back.requires_grad
    assert torch.equal(parameter, before)
    assert torch.equal(fake_quantize(before.t().contiguous().t(), fmt), back)


def test_nothing_reads_a_value_back() -> None:
    with FakeTensorMode():  # raises where python would need to know a value
        x = torch.randn(8, 70)
        for fmt in map(block_format, ("mxfp4", "mxfp4:ceil", "nvfp4", "nf4", "int4:64:affine")):
            quantized = quantize(x, fmt)
            dequantize(quantized), quantize_stochastic(x, fmt), quantum(x, fmt)
            flip_distance(x, fmt), flip_distance(x, fmt, -1), flip_distance(x, fmt, x)
            numerics.saturated_share(x, fmt), numerics.flushed_share(x, fmt)
