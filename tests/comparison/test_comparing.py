"""Comparisons: the numbers are those of the obvious way, and the sick layer is named."""

from __future__ import annotations

import copy
import itertools
import math
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import precdoctor
from precdoctor.evaluation import EvaluationError
from precdoctor.formats import BlockFormat, block_format
from precdoctor.numerics import fake_quantize, sqnr_db
from tests.comparison.build import (
    Attention,
    CoarseNorm,
    Large,
    classifier,
    convolutional,
    data,
    residual,
    token_loss,
)

CE = nn.CrossEntropyLoss()


def one_by_one(model: nn.Module, dtype: torch.dtype) -> tuple[list[float], list[int]]:
    """Return loss and prediction of each sample in the obvious way."""
    losses, predicted = [], []
    with torch.no_grad():
        for x, y in data():
            logits = model(x.to(dtype)).float()
            losses += F.cross_entropy(logits, y, reduction="none").tolist()
            predicted += logits.argmax(1).tolist()
    return losses, predicted


def result(found: precdoctor.comparison.Comparison, name: str) -> Any:
    return next(one for one in found.formats if one.name == name)


def test_a_cast_model_gives_what_casting_it_by_hand_gives() -> None:
    found = precdoctor.compare(classifier(), data(), CE, formats=["bfloat16"])
    exact, predicted = one_by_one(classifier().eval(), torch.float32)
    low, changed = one_by_one(classifier().eval().bfloat16(), torch.bfloat16)
    bf16 = result(found, "bfloat16")
    assert found.reference.losses == pytest.approx(exact, rel=1e-6)
    assert bf16.losses == pytest.approx(low, rel=1e-6)
    steps = [one - other for one, other in zip(low, exact, strict=True)]
    assert bf16.difference.mean == pytest.approx(fmean(steps), rel=1e-4)
    assert bf16.difference.error == pytest.approx(stdev(steps) / math.sqrt(48), rel=1e-4)
    assert bf16.changed_share == fmean(a != b for a, b in zip(predicted, changed, strict=True))
    assert bf16.predictions == 48
    assert (
        bf16.held_bytes * 2
        == found.reference.held_bytes
        == 4 * sum(p.numel() for p in classifier().parameters())
    )


def test_a_format_of_weights_gives_what_rounding_them_by_hand_gives() -> None:
    found = precdoctor.compare(classifier(), data(), CE, formats=["nf4", "int8"])
    for name, full in (("nf4", "nf4"), ("int8", "int8:channel")):
        model, fmt = classifier().eval(), block_format(full)
        packed = 0
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.copy_(fake_quantize(parameter, fmt))
                    packed += fmt.held_bytes(tuple(parameter.shape))
                else:
                    packed += parameter.nbytes
        one = result(found, name)
        assert one.losses == pytest.approx(one_by_one(model, torch.float32)[0], rel=1e-6)
        assert one.kind == "weights"
        assert one.stored == full
        assert one.held_bytes == packed
        assert one.seconds_per_sample is None, "its arithmetic is float32's"


def test_embeddings_and_what_is_tied_to_them_stay() -> None:
    torch.manual_seed(0)
    model = Attention()
    model.head.weight = model.embedding.weight
    tokens = torch.randint(0, 40, (6, 8))
    found = precdoctor.compare(model, [(tokens, tokens)], token_loss, formats=["int8"])
    assert found.quantized_elements == sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)


def test_sqnr_of_a_layer_is_that_of_its_output() -> None:
    found = precdoctor.compare(classifier(), [(data()[0][0][:4], data()[0][1][:4])], CE, formats=["bfloat16"])
    exact, low = classifier().eval(), classifier().eval().bfloat16()
    x = data()[0][0][:4]
    with torch.no_grad():
        for depth in (1, 3, 4, 6):
            expected = sqnr_db(exact[:depth](x), low[:depth](x.bfloat16()).float())
            # one sample at a time, so other kernels may sum in another order
            layer = next(one for one in result(found, "bfloat16").layers if one.name == str(depth - 1))
            assert layer.sqnr_db == pytest.approx(expected.item(), abs=0.3)


HEALTHY = {
    "classifier": (classifier, data, CE),
    "convolutions": (
        convolutional,
        lambda: [(torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,))) for _ in range(3)],
        CE,
    ),
    "residual": (residual, data, CE),
    "transformer": (
        Attention,
        lambda: [(torch.randint(0, 40, (6, 12)), torch.randint(0, 40, (6, 12))) for _ in range(3)],
        token_loss,
    ),
    "recurrent": (
        lambda: nn.GRU(8, 16, batch_first=True),
        lambda: [(torch.randn(6, 10, 8), torch.randn(6, 10, 16)) for _ in range(3)],
        lambda output, target: (output[0].transpose(0, 0) - target).square().mean((1, 2)),
    ),
}


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_no_layer_of_a_healthy_model_departs(name: str) -> None:
    build, batches, loss = HEALTHY[name]
    torch.manual_seed(3)
    found = precdoctor.compare(build(), batches(), loss, formats=["bfloat16", "float16", "int8", "nf4"])
    for one in found.formats[1:]:
        assert one.departs is None, f"{one.name}: {one.departs}"
        assert one.layers


def test_the_layer_that_takes_a_difference_of_large_numbers_is_named_and_worth_keeping() -> None:
    model = classifier()
    model[2] = CoarseNorm()
    found = precdoctor.compare(model, data(), CE, formats=["bfloat16"])
    bf16 = result(found, "bfloat16")
    assert bf16.departs is not None
    assert bf16.departs.name == "2"
    assert bf16.departs.sqnr_db < 10 < 30 < bf16.departs.expected_db
    assert bf16.sensitivity is not None
    assert bf16.sensitivity.together.names == ("2",)
    assert abs(bf16.sensitivity.together.difference.mean) < 0.1 * abs(bf16.sensitivity.before.mean)
    assert "Inference precision matters: in bfloat16" in found.sentences[-1]
    assert any("2 is the first that departs further" in sentence for sentence in found.sentences)


def test_layers_are_tried_where_another_one_uses_their_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm = nn.Embedding(40, 32), CoarseNorm()

        def forward(self, tokens: Tensor) -> Tensor:
            return F.linear(self.norm(self.embedding(tokens)), self.embedding.weight)

    torch.manual_seed(0)
    tokens = torch.randint(0, 40, (8, 12))
    found = precdoctor.compare(Tied(), [(tokens, tokens)], token_loss, formats=["bfloat16"])
    tried = result(found, "bfloat16").sensitivity
    assert {kept.names for kept in tried.alone} == {("embedding",), ("norm",)}
    assert tried.together.names == ("norm",)


def test_an_overflow_in_float16_is_named_and_is_not_bad_input() -> None:
    model = classifier()
    model[1] = Large()
    found = precdoctor.compare(model, data(), CE, formats=["bfloat16", "float16"])
    fp16 = result(found, "float16")
    assert math.isnan(fp16.loss)
    assert fp16.departs is not None
    assert fp16.departs.name == "1"
    assert fp16.departs.overflows
    assert fp16.sensitivity.together.names == ("1",)
    assert math.isfinite(fp16.sensitivity.together.difference.mean)
    assert result(found, "bfloat16").departs is None
    assert any("loss is not finite in 48 of 48; 1 is the first" in text for text in found.sentences)
    assert found.sentences[-1].startswith("Inference precision matters: in float16")


def labelled_by(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return data whose targets are the model's own outputs: rounding can only hurt."""
    with torch.no_grad():
        return [(x, copy.deepcopy(model).eval()(x)) for x, _ in data()]


def left_by_hand(model: nn.Module, kept: str, fmt: BlockFormat) -> float:
    """Return the loss with every matrix rounded but one, against the model's own outputs."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.dim() == 2 and name != kept:
                parameter.copy_(fake_quantize(parameter, fmt))
        return fmean((twin(x) - y).square().mean(1).mean().item() for x, y in labelled_by(model))


@pytest.mark.parametrize("depth", [3, 16])
def test_the_layer_most_worth_keeping_is_that_of_trying_all(depth: int) -> None:
    torch.manual_seed(depth)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(depth)))
    with torch.no_grad():
        for layer in model:
            nn.init.orthogonal_(layer.weight)
        model[1].weight[0, 0] = 4.0  # the one scale of its tensor is coarse
    fmt = block_format("int4:tensor")
    found = precdoctor.compare(model, labelled_by(model), nn.MSELoss(), formats=["int4:tensor"])
    tried = result(found, "int4:tensor").sensitivity
    by_hand = {f"{i}.weight": left_by_hand(model, f"{i}.weight", fmt) for i in range(depth)}
    assert tried.layers == depth
    assert len(tried.alone) == min(depth, 12)
    assert tried.alone[0].names == ("1.weight",) == (min(by_hand, key=by_hand.__getitem__),)
    for kept in tried.alone:
        assert kept.difference.mean == pytest.approx(by_hand[kept.names[0]], rel=1e-3)
        assert kept.extra_bytes == 16 * 16 * 4 - fmt.held_bytes((16, 16))
    assert tried.together.difference.mean <= tried.alone[0].difference.mean


def test_the_users_model_is_not_touched() -> None:
    model = classifier()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    precdoctor.compare(model, data(), CE)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_dropout_is_off_and_random_models_draw_the_same() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + torch.randn(1).to(x.dtype)

    found = precdoctor.compare(nn.Sequential(nn.Dropout(0.5), Noisy()), data(), CE, formats=["float16"])
    assert abs(result(found, "float16").difference.mean) < 1e-3
    assert any("evaluation mode" in note for note in found.notes)


def test_a_bfloat16_checkpoint_is_told() -> None:
    found = precdoctor.compare(classifier().bfloat16(), data(), CE, formats=["bfloat16"])
    assert any("came in bfloat16" in note for note in found.notes)


def test_endless_data_is_read_as_far_as_it_is_asked_for() -> None:
    found = precdoctor.compare(classifier(), itertools.cycle(data()), CE, formats=["bfloat16"], samples=20)
    assert found.samples == 20


def test_too_few_samples_tell_nothing() -> None:
    found = precdoctor.compare(classifier(), data(), CE, formats=["bfloat16"], samples=3)
    assert not result(found, "bfloat16").difference.is_significant
    assert "3 samples can't tell bfloat16 from float32: at least 5 are needed" in found.sentences[-1]


class Float32Only(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError(f'"odd_kernel" not implemented for {x.dtype}')
        return self.linear(x)


def test_a_format_that_can_not_be_run_is_an_error_if_named_and_left_out_if_not() -> None:
    with pytest.raises(EvaluationError, match=r"can't run in float16 on cpu: .*leave it out of --formats"):
        precdoctor.compare(Float32Only(), data(), CE, formats=["float16"])
    found = precdoctor.compare(Float32Only(), data(), CE)
    assert [one.name for one in found.formats] == ["float32", "e4m3fn", "int8", "nf4"]
    assert sum(note.startswith("left out: can't run in") for note in found.notes) == 2


def nan_at(index: int) -> list[tuple[Tensor, Tensor]]:
    batches = data()
    batches[index // 16][0][index % 16, 0] = math.nan
    return batches


@pytest.mark.parametrize(
    ("model", "batches", "loss", "options", "told"),
    [
        (classifier(), nan_at(20), CE, {}, "loss in float32 is nan for sample 20 .*nothing can be compared"),
        (classifier(), [], CE, {}, "there are no batches"),
        (classifier(), [(torch.zeros(0, 16), torch.zeros(0).long())], CE, {}, "there are no batches"),
        (classifier(), data(), CE, {"formats": ["int9"]}, "no format 'int9' to compare in; there are"),
        (classifier(), data(), CE, {"samples": 0}, "0 samples are none"),
        (classifier().to("meta"), data(), CE, {}, "on the meta device"),
        (classifier(), data(width=9), CE, {}, "the model raised RuntimeError on the first batch"),
        (classifier(), data(), lambda *_: None, {}, "it must return a number"),
        (nn.BatchNorm1d(16), data(), CE, {"formats": ["int8"]}, "no weights of two dimensions"),
        (nn.ReLU(), data(), CE, {}, "the model has no parameters"),
    ],
)  # fmt: skip
def test_one_line_says_why_it_can_not_be_compared(
    model: nn.Module, batches: Any, loss: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(EvaluationError, match=told) as caught:
        precdoctor.compare(model, batches, loss, **options)
    assert "\n" not in str(caught.value)
