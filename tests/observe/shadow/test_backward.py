"""What goes wrong in backward passes: inf and NaN though the loss is finite, and digits that are lost."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from precdoctor.evidence import Exactness, NonFiniteGradient
from precdoctor.rules import diagnose
from precdoctor.script import scan
from tests.observe.shadow.shadowing import layer, place, shadowed

PROGRAM = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
torch.manual_seed(0)
torch.set_num_threads(1)

class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        x, = ctx.saved_tensors
        return gradient * x / x  # custom

class Shielded(nn.Module):
    def forward(self, x):
        mask = torch.full((4, 4), float("-inf")).triu(1)
        return x + 0 * torch.softmax(x[:4, :4].detach() + mask, -1).sum()

model = nn.Linear(4, 4, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
zeros = torch.tensor([[0.0], [1.0]]).repeat(4, 1)
{before}
for step in range(3):
    x = torch.randn(8, 4)
    for micro in range({micro}):
        h = model(x) * zeros
        {forward}
        loss = out.sum() {loss}
        {backward}
    {after}
"""
BACKWARD, AFTER = "loss.backward()", "optimizer.step(); optimizer.zero_grad()"


def found(
    forward: str,
    *,
    before: str = "",
    micro: int = 1,
    loss: str = "",
    backward: str = BACKWARD,
    after: str = AFTER,
) -> tuple[NonFiniteGradient, ...]:
    indented = textwrap.indent(textwrap.dedent(forward), " " * 8).strip()
    text = PROGRAM.format(
        forward=indented, before=before, micro=micro, loss=loss, backward=backward, after=after
    )
    Path("train.py").write_text(text)
    evidence = scan("train.py", steps=None)
    assert evidence.run.ended == "finished", evidence.run.error
    assert not [limit for limit in evidence.run.limits if "failed" in limit]
    assert evidence.exactness is not None
    ill = [f for f in diagnose(evidence).findings if "its gradient is not" in f.message]
    sites = evidence.exactness.non_finite_gradients
    assert len(ill) == any(site.steps for site in sites)
    return sites


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("forward", "node"),
    [
        ("out = (h * h).sum(1).sqrt()", "SqrtBackward0"),
        ("out = (h.square().sum(1) ** 0.5)", "PowBackward0"),
        ("out = torch.where(h == 0, h, x / h)", "DivBackward0"),
        ("out = torch.where(h > 0, h.abs().log(), h)", "LogBackward0"),
        ("out = torch.acos(1 - h.abs())", "AcosBackward0"),
    ],
)
def test_names_the_line_of_the_operation_whose_derivative_is_not_finite(forward: str, node: str) -> None:
    (site,) = found(forward)
    assert (site.node, site.first_step, site.steps) == (node, 0, 1)
    assert site.place is not None
    assert site.place.code == forward


def test_names_the_line_of_a_backward_that_the_program_has_itself() -> None:
    (site,) = found("out = Custom.apply(h)")
    assert site.node == "CustomBackward"
    assert site.place is not None
    assert site.place.code == "return gradient * x / x  # custom"


@pytest.mark.parametrize("reentrant", [True, False])
def test_names_the_line_within_a_checkpoint(reentrant: bool) -> None:
    forward = f"out = checkpoint(lambda h: (h * h).sum(1).sqrt(), h, use_reentrant={reentrant})"
    (site,) = found(forward)
    assert site.node == "SqrtBackward0"
    assert site.place is not None
    assert site.place.code == forward


def test_finds_it_among_gradients_that_are_accumulated() -> None:
    (site,) = found("out = (h * h).sum(1).sqrt() if micro == 1 else h", micro=3)
    assert (site.passes, site.steps) == (1, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"after": "model.weight.grad.nan_to_num_(); optimizer.step(); optimizer.zero_grad()"},
        {"after": "optimizer.zero_grad()"},
        {
            "before": "scaler = torch.amp.GradScaler('cpu')",
            "backward": "scaler.scale(loss).backward()",
            "after": "scaler.step(optimizer); scaler.update(); optimizer.zero_grad()",
        },
    ],
    ids=["mended", "left out", "scaler"],
)
def test_no_step_is_taken_where_the_program_deals_with_it(changes: dict[str, str]) -> None:
    for site in found("out = (h * h).sum(1).sqrt()", **changes):
        assert site.passes > 0
        assert site.steps == 0


@pytest.mark.parametrize(
    "forward",
    [
        "out = (h * h).sum(1).add(1e-8).sqrt()",
        "out = h.norm(dim=1)",
        "out = torch.where(h == 0, h, x / torch.where(h == 0, 1, h))",
        "out = Shielded()(h)",
        "out = checkpoint(Shielded(), h, use_reentrant=False)",
    ],
)
def test_finite_gradients_are_left_alone(forward: str) -> None:
    assert [site for site in found(forward) if site.steps] == []


def test_a_loss_that_is_not_finite_is_another_matter() -> None:
    assert found("out = (h * h).sum(1).sqrt()", loss="* float('nan')") == ()


ATTENTION = """
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
model, value = nn.Linear(4, 4), nn.Linear(4, 1)
optimizer = torch.optim.SGD([*model.parameters(), *value.parameters()], lr=1e-3)
scaler = torch.amp.GradScaler("cpu")
keep = torch.arange(4) < torch.tensor([[3], {length}, [2]])
for step in range(4):
    optimizer.zero_grad()
    bias = torch.full((3, 4), {lowest}).masked_fill(keep, 0.0).to(torch.bfloat16)
    rows = {scores}.softmax(-1)
    loss = (value(torch.randn(3, 4, 4)).squeeze(-1) * {rows}).sum(-1).nanmean()
    {after}
"""
CLIPPED = """loss.backward()
    if nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
        optimizer.step()"""
ASKED = """loss.backward()
    if not any(p.grad.isnan().any() for p in model.parameters()):
        optimizer.step()"""
SCALED = """scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()"""


def kept(
    after: str,
    *,
    length: str = "[0]",
    lowest: str = "torch.finfo(torch.float32).min",
    scores: str = "(model(torch.randn(3, 4)).bfloat16() + bias)",
    rows: str = "rows",
) -> tuple[tuple[int, int], list[str]]:
    """Return how often NaN of the mask was made and kept as gradients, and the rules that find it ill."""
    text = ATTENTION.format(after=after, length=length, lowest=lowest, scores=scores, rows=rows)
    Path("train.py").write_text(text)
    evidence = scan("train.py", steps=None)
    assert evidence.run.ended == "finished", evidence.run.error
    assert evidence.exactness is not None
    sites = [(s.nan_passes, s.gradient_passes) for s in evidence.exactness.non_finite]
    findings = [f for f in diagnose(evidence).findings if f.severity != "note"]
    return sites[0] if sites else (0, 0), [f.rule for f in findings]


@pytest.mark.parametrize("after", [CLIPPED, ASKED, SCALED])
def test_nan_that_the_loss_leaves_out_is_found_in_the_gradients_of_steps_that_are_skipped(after: str) -> None:
    found, rules = kept(after)
    assert found == (4, 4)
    assert "PD504" in rules
    assert "PD508" not in rules


@pytest.mark.parametrize(
    "changes",
    [
        {"length": "[1]"},
        {"lowest": "torch.finfo(torch.bfloat16).min"},
        {"scores": "torch.randn(3, 4).bfloat16().add(bias)", "rows": "rows.nan_to_num()"},
    ],
    ids=["no empty row", "the format's own lowest number", "no gradient"],
)
def test_a_mask_whose_nan_gets_nowhere_is_left_alone(changes: dict[str, str]) -> None:
    found, rules = kept(CLIPPED, **changes)
    assert found[1] == 0
    assert rules == []


# ---------------------------------------------------------------------- digits lost in the program's own code


class Scaled(torch.autograd.Function):
    """Multiplies the gradient by the variance of the input, which is far from 0."""

    low = torch.bfloat16

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * variance(x, Scaled.low)


def variance(x: Tensor, low: torch.dtype) -> Tensor:
    far = (x.detach() + 100).to(low)
    mean = far.mean(-1, keepdim=True)
    return ((far * far).mean(-1, keepdim=True) - mean * mean).to(x.dtype)


def custom(hidden: Tensor) -> Tensor:
    return Scaled.apply(hidden)  # type: ignore[no-any-return, no-untyped-call]


def hooked(hidden: Tensor) -> Tensor:
    hidden.register_hook(lambda gradient: gradient * variance(hidden, Scaled.low))  # type: ignore[no-untyped-call]
    return hidden * 2


class Softmax(torch.autograd.Function):
    """A softmax whose derivative is written out, in the format of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.softmax(-1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return y * (gradient - (gradient * y).sum(-1, keepdim=True))


def softmax(hidden: Tensor) -> Tensor:
    return Softmax.apply(hidden.bfloat16()).float()  # type: ignore[no-any-return, no-untyped-call]


def built_in(hidden: Tensor) -> Tensor:
    return F.layer_norm(F.log_softmax(hidden.bfloat16(), -1), (8,)).float()


def backward_passes(act: Callable[[Tensor], Tensor], passes: int = 3, *, thorough: bool = False) -> Exactness:
    """Train a layer in front of ``act``, the gradient of whose input goes on through a product to it."""
    first, last = layer(8, 8), layer(8, 1)
    optimizer = torch.optim.SGD([*first.parameters(), *last.parameters()], lr=1e-3)
    with shadowed(thorough=thorough) as watch:
        for number in range(passes):
            torch.manual_seed(number)
            loss = last(act(first(torch.randn(16, 8)))).square().mean()
            watch.losses([loss], number, None)
            loss.backward()
            watch.step_begins(optimizer, number)
            optimizer.step()
            optimizer.zero_grad()
    return watch.evidence(place)


@pytest.mark.parametrize("act", [custom, hooked])
def test_a_difference_in_a_backward_of_the_program_reaches_the_gradients(
    act: Callable[[Tensor], Tensor],
) -> None:
    [site] = backward_passes(act).cancellations
    assert (site.operation, site.source_format, site.passes) == ("sub", "bfloat16", 3)
    assert site.place is not None
    assert site.place.function == "variance"
    assert site.error > 0.5
    assert dict(site.reached) == {"gradient": 3}
    assert site.reached_at is None  # the engine has no line


def test_the_same_in_float64_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scaled, "low", torch.float64)
    assert backward_passes(custom).cancellations == ()


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("act", [softmax, built_in])
def test_gradients_in_bfloat16_are_sound(act: Callable[[Tensor], Tensor], thorough: bool) -> None:
    assert backward_passes(act, thorough=thorough).cancellations == ()


def opposed(hidden: Tensor) -> Tensor:
    low = hidden.bfloat16()
    return (low * 100.3 - low * 100).float()


def test_derivatives_of_torch_are_followed_where_that_is_asked_for() -> None:
    def gradients(seen: Exactness) -> list[tuple[str, bool]]:
        sites = [site for site in seen.cancellations if dict(site.reached).get("gradient")]
        return [(site.operation, site.derivative) for site in sites]

    assert gradients(backward_passes(opposed)) == []
    assert ("add", True) in gradients(backward_passes(opposed, thorough=True))


def flushed(hidden: Tensor) -> Tensor:
    low = hidden.half()
    return (low * low).float() * 3e-8  # too little of its gradient for float16


def test_gradients_of_one_line_are_no_sum_formed_on_it() -> None:
    assert backward_passes(flushed, thorough=True).lossy_sums == ()
