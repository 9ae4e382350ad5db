"""Quantizers of libraries: of torch itself, of torchao and of bitsandbytes, where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from precdoctor.doctor import Doctor
from precdoctor.evidence import Evidence
from precdoctor.rules import diagnose

pytestmark = pytest.mark.filterwarnings("ignore")


def needs(library: str) -> pytest.MarkDecorator:
    """Skip a test where a library is not installed; looked up, not imported: that takes seconds."""
    absent = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(absent, reason=f"{library} is not installed")


def observed(model: nn.Module, optimizer: Any = torch.optim.AdamW, steps: int = 12) -> Evidence:
    torch.manual_seed(1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with Doctor(model, every=1, probe=True) as doctor:
        stepper = optimizer(parameters, lr=2e-3)
        for _ in range(steps):
            x = torch.randn(32, 16)
            loss = F.mse_loss(model(x).float(), x[:, :4])
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    evidence = doctor.evidence()
    assert not [text for text in evidence.run.limits if "failed" in text]
    assert torch._C._len_torch_dispatch_stack() == 0
    return evidence


def grave(evidence: Evidence) -> list[str]:
    return [f.rule for f in diagnose(evidence).findings if f.severity != "note"]


def stack(middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), middle or nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )


class Adapted(nn.Module):
    """A layer with an adapter beside it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


# ---------------------------------------------------------------------- torch


def test_quantization_aware_training_of_torch() -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(quantization.QuantStub(), *stack(), quantization.DeQuantStub()).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    quantization.prepare_qat(model, inplace=True)
    evidence = observed(model)
    assert {q.parameter for q in evidence.quantizers} == {"1.weight", "3.weight", "5.weight"}
    assert {q.route for q in evidence.quantizers} <= {"open", "custom function"}
    assert grave(evidence) == []


def test_fused_convolutions_of_torch() -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(32, 4)).train()
    mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
    assert grave(observed(fx.prepare_qat_fx(net, mapping, (torch.randn(2, 16),)))) == []


# ---------------------------------------------------------------------- torchao


@needs("torchao")
def test_fake_quantizers_of_torchao() -> None:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    model = stack()
    data = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weight = IntxFakeQuantizeConfig(torch.int4, group_size=16)
    quantize_(model, QATConfig(activation_config=data, weight_config=weight, step="prepare"))
    evidence = observed(model)
    assert {q.parameter for q in evidence.quantizers} == {"0.weight", "2.weight", "4.weight"}
    assert all(q.last is not None and 15 < (q.last.sqnr_db or 0) < 30 for q in evidence.quantizers)
    assert grave(evidence) == []


@needs("torchao")
@pytest.mark.parametrize("name", ["int8_weight_only_quantized_training", "int8_mixed_precision_training"])
def test_quantized_training_of_torchao(name: str) -> None:
    training = pytest.importorskip("torchao.prototype.quantized_training")
    from torchao.optim import _AdamW
    from torchao.quantization import quantize_

    model = stack()
    quantize_(model, getattr(training, name)())
    evidence = observed(model, _AdamW if "weight_only" in name else torch.optim.AdamW, steps=4)
    assert grave(evidence) == []


@needs("torchao")
def test_ternary_training_of_torchao() -> None:
    training = pytest.importorskip("torchao.prototype.quantized_training")
    from torchao.quantization import quantize_

    model = stack()
    quantize_(model[2], training.bitnet_training())
    assert grave(observed(model)) == []


# ---------------------------------------------------------------------- bitsandbytes


def four_bits(used: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    import bitsandbytes.functional as bitsandbytes

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64) / 8)

        def forward(self, x: Tensor) -> Tensor:
            codes, state = bitsandbytes.quantize_4bit(self.weight.data, quant_type="fp4")
            return F.linear(x, used(self.weight, bitsandbytes.dequantize_4bit(codes, state)))

    return Layer()


@needs("bitsandbytes")
@pytest.mark.parametrize(
    ("used", "found"),
    [(lambda w, q: q, ["PD601"]), (lambda w, q: w + (q - w).detach(), [])],
    ids=["severed", "straight-through"],
)
def test_functions_of_bitsandbytes(used: Callable[[Tensor, Tensor], Tensor], found: list[str]) -> None:
    torch.manual_seed(0)
    evidence = observed(stack(four_bits(used)))
    (quantizer,) = evidence.quantizers
    assert quantizer.last is not None
    assert quantizer.last.sqnr_db == pytest.approx(18.3, abs=0.5)  # of normal weights
    assert grave(evidence) == found


@needs("bitsandbytes")
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_over_frozen_layers_of_bitsandbytes(bits: int) -> None:
    import bitsandbytes

    class Eight(bitsandbytes.nn.Linear8bitLt):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.bfloat16()).to(x.dtype)

    four = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
    base = four if bits == 4 else Eight(64, 64, has_fp16_weights=False)
    model = stack(Adapted(base)).to("cpu")
    assert grave(observed(model)) == []
