"""Under the operation probe all kinds of models train bit for bit as without, and nothing is left behind."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import optimizer as torch_optimizer
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from precdoctor.doctor import Doctor
from tests.test_harmless import identical

WIDTH = 16


class Transformer(nn.Module):
    """Attention with dropout and a tied head, in parts that may be checkpointed."""

    def __init__(
        self, norm: Callable[[int], nn.Module] = nn.LayerNorm, reentrant: bool | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norms = nn.ModuleList([norm(WIDTH), norm(WIDTH)])
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, WIDTH))
        self.reentrant = reentrant

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        p = 0.1 if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return x + self.out(attended.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norms[1](x))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding((x[:, 0].abs() * 5).long().clamp(0, 19))
        for part in (self.attend, self.feed):
            if self.reentrant is None:
                hidden = part(hidden)
            else:
                hidden = checkpoint(part, hidden, use_reentrant=self.reentrant)
        return F.linear(hidden, self.embedding.weight).mean((1, 2))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Dropout1d(0.2), nn.Flatten()
        )
        self.head = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)).squeeze(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, WIDTH, num_layers=2, dropout=0.1, batch_first=True)
        self.gru, self.head = nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x)
        return self.head(self.gru(hidden[:, -1])).squeeze(1)


def quantize(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 7
    return (weight / scale).round().clamp_(-7, 7) * scale


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return quantize(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Quantized(nn.Module):
    """A custom function, a severed weight, a learned step, a kept copy, random rounding and int8 data."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(24, 24) / 5 for _ in range(5))
        self.step = nn.Parameter(torch.tensor(0.1))
        self.kept: Tensor | None = None
        self.head = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = self.weights
        if self.kept is None:
            self.kept = quantize(d.detach())
        scaled = (c / self.step).clamp(-7, 7)
        at_random = torch.floor(e.detach() / 0.05 + torch.rand_like(e)) * 0.05
        used = [
            Straight.apply(a),
            quantize(b.data),
            (scaled + (scaled.round() - scaled).detach()) * self.step,
            d + (self.kept - d).detach(),
            e + (at_random - e).detach(),
        ]
        hidden = x.flatten(1)
        for weight in used:
            hidden = torch.tanh(F.linear(hidden, weight))
            scale = hidden.detach().abs().amax(1, keepdim=True) / 127
            codes = (hidden / scale).round().clamp(-127, 127).to(torch.int8)
            hidden = hidden + (codes * scale - hidden).detach()
        return self.head(hidden).squeeze(1)


class PerSample(nn.Module):
    """The gradients of single samples, by `torch.func`, weigh the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
            logits = torch.func.functional_call(self.head, parameters, (sample[None],))
            return F.cross_entropy(logits, torch.ones(1, dtype=torch.long))

        parameters = {name: p.detach() for name, p in self.head.named_parameters()}
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x.flatten(1))
        return self.head(x.flatten(1))[:, 0] / (1 + each["weight"].flatten(1).norm(dim=1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "transformer": Transformer,
    "transformer, RMSNorm": lambda: Transformer(nn.RMSNorm),
    "checkpointed": lambda: Transformer(reentrant=False),
    "checkpointed, reentrant": lambda: Transformer(reentrant=True),
    "convolution": Convolution,
    "recurrent": Recurrent,
    "quantized": Quantized,
    "per sample": PerSample,
}


def can_run(model: nn.Module, dtype: torch.dtype) -> None:
    """Skip where torch itself cannot: not every processor has LSTMs in bfloat16."""
    state = torch.get_rng_state()
    try:
        with torch.autocast("cpu", dtype):
            copy.deepcopy(model)(torch.randn(4, 3, 8))
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    torch.set_rng_state(state)


def trained(
    make: Callable[[], nn.Module], *, watch: bool, dtype: torch.dtype | None = None, workers: int = 0
) -> list[Any]:
    """Train for 12 steps and return everything that could differ."""
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=2.0**18)
    loader = DataLoader(TensorDataset(torch.randn(96, 3, 8)), 16, shuffle=True, num_workers=workers)
    losses = []
    if dtype is not None:
        can_run(model, dtype)
    with Doctor(model, every=1, probe=True) if watch else contextlib.nullcontext() as doctor:
        for (x,) in itertools.chain(loader, loader):
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = F.mse_loss(model(x).float(), x.mean((1, 2)))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
    if doctor is not None:
        evidence = doctor.evidence()
        assert evidence.probed
        assert not [text for text in evidence.run.limits if "failed" in text]
    generators = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    states = model.state_dict(), optimizer.state_dict()["state"], scaler.state_dict()
    return [losses, *copy.deepcopy(states), *generators]


def check(make: Callable[[], nn.Module], **options: Any) -> None:
    watched, plain = (trained(make, watch=watch, **options) for watch in (True, False))
    parts = ("losses", "weights", "optimizer", "scaler", "random numbers of torch", "of Python", "of numpy")
    for part, a, b in zip(parts, plain, watched, strict=True):
        assert identical(a, b), f"{part} differ"
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not torch_optimizer._global_optimizer_pre_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    for function in (torch.compile, torch.inference_mode.__enter__, torch.autograd._engine_run_backward):
        assert "precdoctor" not in function.__code__.co_filename


@pytest.mark.parametrize("name", MODELS)
def test_float32(name: str) -> None:
    check(MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast(name: str) -> None:
    check(MODELS[name], dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["transformer", "checkpointed", "convolution", "quantized"])
def test_float16_autocast_and_a_scaler(name: str) -> None:
    check(MODELS[name], dtype=torch.float16)


def test_workers_that_load_data() -> None:
    check(MODELS["quantized"], workers=2)


def test_no_hook_stays_on_a_weight() -> None:
    model = Quantized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, every=1, probe=True):
        for _ in range(4):
            model(torch.randn(4, 3, 8)).square().mean().backward()
            optimizer.step()
    assert not [p for p in model.parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]


def test_what_the_forward_pass_keeps_may_be_copied() -> None:
    model = Quantized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, every=1, probe=True):
        model(torch.randn(4, 3, 8)).square().mean().backward()
        optimizer.step()
        again = copy.deepcopy(model)
    assert identical(again.state_dict(), model.state_dict())
