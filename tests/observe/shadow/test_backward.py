"""A gradient that is not finite though the loss is: where it began, and whether a step was taken with it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from precdoctor.evidence import NonFiniteGradient
from precdoctor.rules import diagnose
from precdoctor.script import scan

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
