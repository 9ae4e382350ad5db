"""What is seen of quantized weights in real models, against slow twins that know the weight and its Q(w)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from precdoctor.doctor import Doctor
from precdoctor.evidence import Evidence, Quantizer
from precdoctor.rules import diagnose
from tests.reference import quantizers as twin

Use = Callable[[Tensor], Tensor]


def q4(weight: Tensor) -> Tensor:
    codes, scale = twin.per_channel(weight)
    return codes * scale


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return q4(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Layer(nn.Module):
    """A linear layer that uses what a function makes of its weight, and keeps copies of both."""

    def __init__(self, use: Use, size_in: int = 16, size_out: int = 12) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size_out, size_in) / size_in**0.5)
        self.use = use
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        used = self.use(self.weight)
        with torch.no_grad():
            self.seen.append((self.weight.clone(), used.clone()))
        return F.linear(x, used)


def around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), layer, nn.GELU(), nn.Linear(12, 3))


def train(
    model: nn.Module,
    steps: int = 4,
    lr: float = 0.02,
    *,
    batches: int = 1,
    inputs: Callable[[], Tensor] = lambda: torch.randn(32, 8),
) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(batches):
            x = inputs()
            target = x.reshape(len(x), -1)[:, :3].float().square()
            F.mse_loss(model(x).float(), target).backward()
        optimizer.step()


def observed(model: nn.Module, **options: Any) -> Evidence:
    torch.manual_seed(1)
    with Doctor(model, every=1, probe=True) as doctor:
        train(model, **options)
    evidence = doctor.evidence()
    assert not [limit for limit in evidence.run.limits if "failed" in limit]
    return evidence


def watched(use: Use, **options: Any) -> tuple[Quantizer, Layer]:
    """Train around one layer; return what was seen of its weight."""
    torch.manual_seed(0)
    layer = Layer(use)
    (found,) = observed(around(layer), **options).quantizers
    assert (found.parameter, found.numel) == ("2.weight", 192)
    return found, layer


def grave(evidence: Evidence) -> list[str]:
    return [f.rule for f in diagnose(evidence).findings if f.severity != "note"]


# ---------------------------------------------------------------------- straight-through estimators


def fake_channel(weight: Tensor) -> Tensor:
    scale = weight.detach().abs().amax(1) / 7
    zero = torch.zeros(len(weight), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -7, 7)


def fake_tensor(weight: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(weight, float(weight.detach().abs().max() / 7), 0, -7, 7)


def by_blocks(weight: Tensor) -> Tensor:
    codes, scale = twin.per_block(weight)
    return weight + ((codes * scale).view_as(weight) - weight).detach()


def in_chunks(weight: Tensor) -> Tensor:
    return torch.cat([row + (q4(row) - row).detach() for row in weight.split(1)])


def turned(weight: Tensor) -> Tensor:
    other = weight.t().contiguous()
    return (other + (q4(other) - other).detach()).t()


def in_place(weight: Tensor) -> Tensor:
    scale = weight.detach().abs().amax(1, keepdim=True) / 7
    codes = weight.detach().clone().div_(scale).round_().clamp_(-7, 7)
    return weight + (codes.mul_(scale) - weight).detach()


def by_table(weight: Tensor) -> Tensor:
    table = torch.linspace(-1, 1, 16)
    scale = weight.detach().abs().amax(1, keepdim=True)
    codes = (weight.detach() / scale).unsqueeze(-1).sub(table).abs().argmin(-1).to(torch.uint8)
    return weight + (table[codes.long()] * scale - weight).detach()


def by_float8(weight: Tensor) -> Tensor:
    scale = weight.detach().abs().max() / 448
    return weight + ((weight.detach() / scale).to(torch.float8_e4m3fn).float() * scale - weight).detach()


STRAIGHT: dict[str, Use] = {
    "added": lambda w: w + (q4(w) - w).detach(),
    "added to its data": lambda w: w + (q4(w.data) - w.data),
    "taken away": lambda w: w - (w - q4(w)).detach(),
    "detached first": lambda w: q4(w).detach() - w.detach() + w,
    "without gradient": lambda w: w + _quietly(w),
    "custom function": Straight.apply,
    "fake quantize, channel": fake_channel,
    "fake quantize, tensor": fake_tensor,
    "blocks": by_blocks,
    "chunks": in_chunks,
    "transposed": turned,
    "in place": in_place,
    "look-up in a table": by_table,
    "float8": by_float8,
}


def _quietly(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return q4(weight) - weight


@pytest.mark.parametrize("name", STRAIGHT)
def test_measures_what_an_estimator_uses_as_the_twin_does(name: str) -> None:
    found, layer = watched(STRAIGHT[name])
    assert found.kind == "quantizer"
    assert found.route in ("open", "custom function", "scale only")
    assert found.last is not None
    assert found.first is not None
    for seen, (weight, used) in ((found.first, layer.seen[0]), (found.last, layer.seen[found.last.step])):
        assert seen.mean_absolute_error == pytest.approx(twin.mean_absolute_error(weight, used))
        assert seen.sqnr_db == pytest.approx(twin.sqnr_db(weight, used))
        assert seen.flushed_share == pytest.approx(twin.flushed_share(weight, used))
        assert seen.clipped_share == pytest.approx(0, abs=0.02)
        assert seen.reach == pytest.approx(float(used.abs().max() / weight.abs().max()))
    first, last = layer.seen[0], layer.seen[found.last.step]
    assert found.weight_moved == pytest.approx(twin.moved(first[0], last[0], first[0]))
    assert found.used_moved == pytest.approx(twin.moved(first[1], last[1], first[0]))
    assert (found.age_steps, found.stale_share) == (0, None)
    assert found.gradient_density == pytest.approx(1, abs=0.02)
    assert found.gradient_cosine == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", STRAIGHT)
def test_no_rule_objects_to_an_estimator(name: str) -> None:
    torch.manual_seed(0)
    assert grave(observed(around(Layer(STRAIGHT[name])), steps=12)) == []


@pytest.mark.parametrize("name", ["added", "custom function", "blocks", "in place", "transposed"])
def test_codes_and_their_changes_are_those_of_the_twin(name: str) -> None:
    found, layer = watched(STRAIGHT[name], steps=3)
    codes = []
    for weight, _ in layer.seen:
        shaped = weight.t() if name == "transposed" else weight
        codes.append((twin.per_block if name == "blocks" else twin.per_channel)(shaped)[0])
    assert found.levels == max(map(twin.levels, codes))
    expected = (twin.changed_share(codes[0], codes[1]) + twin.changed_share(codes[1], codes[2])) / 2
    assert found.flips_per_step == pytest.approx(expected)
    assert found.changed_share == pytest.approx(twin.changed_share(codes[0], codes[2]))
    assert found.undone_share == pytest.approx(twin.undone_share(*codes))
    assert found.span_steps == 2


def test_a_learned_step_size_passes_gradient() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 16) / 4)
            self.step = nn.Parameter(self.weight.detach().abs().mean() / 2)

        def forward(self, x: Tensor) -> Tensor:
            scaled = (self.weight / self.step).clamp(-8, 7)
            return F.linear(x, (scaled + (scaled.round() - scaled).detach()) * self.step)

    torch.manual_seed(0)
    evidence = observed(around(Learned()), steps=12)
    found = {q.parameter: q for q in evidence.quantizers}["2.weight"]
    assert found.kind == "quantizer"
    assert found.route == "open"
    assert grave(evidence) == []


def test_codes_whose_scale_follows_the_product_are_measured_in_units_of_the_weight() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 16) / 4)

        def forward(self, x: Tensor) -> Tensor:
            codes, scale = twin.per_channel(self.weight.detach())
            codes = self.weight / scale + (codes - self.weight / scale).detach()
            return F.linear(x, codes) * scale.t()

    torch.manual_seed(0)
    layer = Scaled()
    weight = layer.weight.detach().clone()
    (found,) = observed(around(layer)).quantizers
    assert found.first is not None
    exact = twin.sqnr_db(weight, q4(weight))
    assert exact is not None
    assert (
        exact <= (found.first.sqnr_db or 0) < exact + 0.5
    )  # the best scale is a little better than that in use
    assert found.first.clipped_share < 0.05
    assert found.used_moved < 1


# ---------------------------------------------------------------------- ways to lose the gradient


def rounded(weight: Tensor) -> Tensor:
    codes, scale = twin.per_channel(weight / weight.detach().abs().amax(1, keepdim=True))
    return codes * scale.detach()


def quantized_dtype(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scale = float(weight.detach().abs().max() / 127)
        return torch.quantize_per_tensor(weight.detach(), scale, 0, torch.qint8).dequantize()


def through_scale(weight: Tensor) -> Tensor:
    scale = weight.abs().mean()
    return torch.round((weight / scale).detach()).clamp(-1, 1) * scale


def integers(weight: Tensor) -> Tensor:
    codes, scale = twin.per_channel(weight)
    return codes.to(torch.int8).float() * scale


SEVERED: dict[str, tuple[Use, str]] = {
    "data": (lambda w: q4(w.data), "cut"),
    "detached at the end": (lambda w: q4(w).detach(), "cut"),
    "no_grad": (torch.no_grad()(q4), "cut"),
    "copied": (lambda w: q4(w.detach().clone()), "cut"),
    "quantized format": (quantized_dtype, "cut"),
    "rounded": (rounded, "zero derivative"),
    "signs": (torch.sign, "zero derivative"),
    "by the largest": (q4, "scale only"),
    "by the mean": (through_scale, "scale only"),
    "integers": (integers, "scale only"),
}


@pytest.mark.parametrize("name", SEVERED)
def test_tells_how_the_gradient_is_lost(name: str) -> None:
    use, route = SEVERED[name]
    torch.manual_seed(0)
    evidence = observed(around(Layer(use)), steps=12)
    (found,) = evidence.quantizers
    assert (found.kind, found.route) == ("quantizer", route)
    assert grave(evidence) == ["PD601"]
    assert found.place is not None
    assert found.place.file.endswith("test_watch.py")


@pytest.mark.parametrize("name", ["by the largest", "by the mean", "added", "fake quantize, channel"])
def test_density_and_cosine_are_those_of_the_twin(name: str) -> None:
    use = SEVERED[name][0] if name in SEVERED else STRAIGHT[name]
    torch.manual_seed(0)
    model = around(Layer(use))
    again = copy.deepcopy(model)
    (found,) = observed(model, steps=1).quantizers

    torch.manual_seed(1)
    kept: list[Tensor] = []

    def keep(weight: Tensor) -> Tensor:
        kept.append(use(weight))
        kept[0].retain_grad()
        return kept[0]

    again[2].use = keep  # type: ignore[index,union-attr,operator]
    train(again, 1)
    own, arriving = again[2].weight.grad, kept[0].grad  # type: ignore[index]
    assert isinstance(own, Tensor)
    assert isinstance(arriving, Tensor)
    assert found.gradient_density == pytest.approx(twin.density(own))
    assert found.used_density == pytest.approx(twin.density(arriving))
    assert found.gradient_cosine == pytest.approx(twin.cosine(own, arriving))


class Silent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: float | None) -> Tensor:
        ctx.factor = factor
        return q4(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return None if ctx.factor is None else ctx.factor * gradient, None


@pytest.mark.parametrize("factor", [None, 0.0, 1.0])
def test_a_function_of_the_users_own_passes_what_it_returns(factor: float | None) -> None:
    torch.manual_seed(0)
    evidence = observed(around(Layer(lambda w: Silent.apply(w, factor))), steps=12)
    assert evidence.quantizers[0].route == "custom function"
    assert grave(evidence) == ([] if factor else ["PD601"])


def test_a_product_inside_a_function_is_seen() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            used = q4(weight)
            ctx.save_for_backward(used)
            return F.linear(x, used)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
            return gradient @ ctx.saved_tensors[0], None

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 16) / 4)

        def forward(self, x: Tensor) -> Tensor:
            return Product.apply(x, self.weight)

    torch.manual_seed(0)
    assert grave(observed(around(Own()), steps=12)) == ["PD601"]


def test_an_estimator_switched_on_later_is_noticed() -> None:
    layer = Layer(lambda w: q4(w.data))
    steps = 0

    def use(weight: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return q4(weight.data) if steps < 2 else STRAIGHT["added"](weight)

    layer.use = use
    (found,) = observed(around(layer), steps=12).quantizers
    assert found.route == "open"


def test_what_fails_in_a_hook_of_ours_is_no_matter_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precdoctor.observe.quantizers.watch._layout", lambda _: None)
    found, _ = watched(STRAIGHT["added"])
    assert found.route == "open"
    assert found.gradient_cosine is None


# ---------------------------------------------------------------------- copies that are kept


class Cached(nn.Module):
    """Quantizes its weight every so many forward passes."""

    def __init__(self, every: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 16) / 4)
        self.every, self.calls, self.dtype = every, 0, dtype
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.detach()
        if self.calls % self.every == 0:
            self.kept = q4(weight)
        self.calls += 1
        assert self.kept is not None
        return F.linear(x, self.weight + (self.kept - self.weight).detach())


@pytest.mark.parametrize(("every", "found"), [(1, []), (4, []), (10**6, ["PD602"])])
def test_only_a_copy_that_is_never_made_anew_is_stale(every: int, found: list[str]) -> None:
    torch.manual_seed(0)
    assert grave(observed(around(Cached(every)), steps=40)) == found


def test_staleness_is_that_of_the_twin() -> None:
    torch.manual_seed(0)
    layer = Cached(10**6)
    (found,) = observed(around(layer), steps=3).quantizers
    assert layer.kept is not None
    (codes, scale), (old, before) = twin.per_channel(layer.weight.detach()), (layer.kept, None)
    assert before is None
    assert found.age_steps == 2
    assert found.used_moved == pytest.approx(0, abs=1e-6)
    assert found.stale_share is not None
    assert found.stale_share == pytest.approx(twin.changed_share(old, codes * scale), abs=0.1)


def test_a_slow_weight_whose_copy_is_made_anew_now_and_then_is_not_stale() -> None:
    torch.manual_seed(0)
    assert grave(observed(around(Cached(4)), steps=40, lr=1e-6)) == []


# ---------------------------------------------------------------------- forms of training


class Quantized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, STRAIGHT["added"](self.weight), self.bias)


class Severed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, q4(self.weight.data), self.bias)


BOTH = pytest.mark.parametrize(("kind", "expected"), [(Quantized, []), (Severed, ["PD601"])])


@BOTH
def test_gradient_accumulation(kind: type[nn.Module], expected: list[str]) -> None:
    torch.manual_seed(0)
    evidence = observed(around(kind(16, 12)), steps=6, batches=3)
    assert grave(evidence) == expected
    if not expected:
        assert evidence.quantizers[0].gradient_cosine == pytest.approx(1)


@BOTH
def test_bfloat16_autocast(kind: type[nn.Module], expected: list[str]) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = around(kind(16, 12))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    torch.manual_seed(0)
    assert grave(observed(Cast(), steps=12)) == expected


@BOTH
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(kind: type[nn.Module], expected: list[str], reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = around(kind(16, 12))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.inner[0](x)
            for layer in list(self.inner)[1:]:
                hidden = checkpoint(layer, hidden, use_reentrant=reentrant)
            return hidden

    torch.manual_seed(0)
    assert grave(observed(Checkpointed(), steps=12)) == expected


@BOTH
def test_a_module_called_twice(kind: type[nn.Module], expected: list[str]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.last = nn.Linear(8, 16), kind(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(self.layer(self.first(x)).tanh()).tanh())

    torch.manual_seed(0)
    evidence = observed(Twice(), steps=12)
    assert grave(evidence) == expected
    (found,) = evidence.quantizers
    if not expected:
        assert found.gradient_cosine == pytest.approx(1)


@BOTH
def test_a_parametrization(kind: type[nn.Module], expected: list[str]) -> None:
    class Maker(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return STRAIGHT["added"](weight) if kind is Quantized else q4(weight.data)

    torch.manual_seed(0)
    model = around(nn.Linear(16, 12))
    nn.utils.parametrize.register_parametrization(model[2], "weight", Maker(), unsafe=True)  # type: ignore[index,arg-type]
    evidence = observed(model, steps=12)
    assert grave(evidence) == expected
    assert [q.parameter for q in evidence.quantizers] == ["2.parametrizations.weight.original"]


@BOTH
def test_convolutions(kind: type[nn.Module], expected: list[str]) -> None:
    class Convolution(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            used = STRAIGHT["added"](self.weight) if kind is Quantized else q4(self.weight.data)
            return F.conv2d(x, used, self.bias, padding=1)

    torch.manual_seed(0)
    model = nn.Sequential(
        Convolution(1, 6, 3), nn.ReLU(), Convolution(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    evidence = observed(model, steps=12, inputs=lambda: torch.randn(8, 1, 4, 4))
    assert grave(evidence) == expected
    assert [q.parameter for q in evidence.quantizers] == ["0.weight", "2.weight"]


@BOTH
def test_embeddings_and_heads_that_share_their_weight(kind: type[nn.Module], expected: list[str]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.hidden = nn.Embedding(20, 16), nn.Linear(16, 16)

        def forward(self, tokens: Tensor) -> Tensor:
            weight = self.embedding.weight
            used = STRAIGHT["added"](weight) if kind is Quantized else q4(weight.data)
            return F.linear(self.hidden(F.embedding(tokens, used)).tanh(), used)[:, :1]

    torch.manual_seed(0)
    evidence = observed(Tied(), steps=12, inputs=lambda: torch.randint(20, (32,)))
    assert grave(evidence) == expected
    assert [q.parameter for q in evidence.quantizers] == ["embedding.weight"]


def test_a_float16_scaler_does_not_hide_the_direction() -> None:
    torch.manual_seed(0)
    model = around(Quantized(16, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu")
    with Doctor(every=1, probe=True) as doctor:
        for _ in range(6):
            x = torch.randn(32, 8)
            with torch.autocast("cpu", torch.float16):
                loss = F.mse_loss(model(x).float(), x[:, :3])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    (found,) = (q for q in doctor.evidence().quantizers if q.kind == "quantizer")
    assert found.gradient_cosine == pytest.approx(1, abs=0.01)


def test_weights_of_no_module_have_the_optimizers_name() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(16, 8, requires_grad=True), torch.randn(3, 16, requires_grad=True)]
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    with Doctor(every=1, probe=True) as doctor:
        for _ in range(6):
            x = torch.randn(32, 8)
            loss = F.mse_loss(F.linear(F.linear(x, q4(weights[0].detach())).tanh(), weights[1]), x[:, :3])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    evidence = doctor.evidence()
    assert [q.parameter for q in evidence.quantizers] == ["Adam.group0[0]"]
    assert [(f.rule, f.severity) for f in diagnose(evidence).findings] == [("PD601", "error")]


# ---------------------------------------------------------------------- frozen on purpose


class Frozen(nn.Module):
    """Keeps integer codes and scales of a layer's weight as buffers."""

    def __init__(self, layer: nn.Linear, rank: int = 0) -> None:
        super().__init__()
        codes, scale = twin.per_channel(layer.weight.detach())
        self.register_buffer("codes", codes.to(torch.int8))
        self.register_buffer("scale", scale)
        self.adapter = nn.Sequential(nn.Linear(16, rank), nn.Linear(rank, 12)) if rank else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.codes * self.scale)  # type: ignore[operator]
        return out if self.adapter is None else out + self.adapter(x)


def frozen(origin: str, rank: int) -> list[str]:
    torch.manual_seed(0)
    with Doctor(every=1, probe=True) as doctor:
        model = around(nn.Linear(16, 12))
        if origin == "trained":
            train(model, 3)
        elif origin == "loaded":
            model.load_state_dict(
                {k: torch.linspace(-1, 1, v.numel()).view_as(v) for k, v in model.state_dict().items()}
            )
        model[2] = Frozen(model[2], rank)  # type: ignore[index,arg-type,operator]
        train(model, 12)
    return [rule for rule in grave(doctor.evidence()) if rule.startswith("PD6")]


@pytest.mark.parametrize(
    ("origin", "rank", "found"),
    [("drawn", 0, ["PD601"]), ("drawn", 4, []), ("trained", 0, []), ("loaded", 0, [])],
)
def test_a_quantized_buffer_is_frozen_on_purpose_unless_it_was_just_drawn(
    origin: str, rank: int, found: list[str]
) -> None:
    assert frozen(origin, rank) == found


def test_copies_for_inference_are_not_what_training_uses() -> None:
    torch.manual_seed(0)
    model = around(nn.Linear(16, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(every=1, probe=True) as doctor:
        for step in range(12):
            x = torch.randn(32, 8)
            F.mse_loss(model(x), x[:, :3]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 4 == 0:
                quantized = copy.deepcopy(model)
                for parameter in quantized.parameters():
                    parameter.data = q4(parameter.data.reshape(1, -1)).view_as(parameter)
            quantized(torch.randn(4, 8))  # a rollout, whose result is data
            with torch.no_grad():
                F.linear(torch.randn(4, 16), q4(model[2].weight))  # type: ignore[arg-type]
    assert grave(doctor.evidence()) == []


def test_masks_and_dropped_weights_are_no_quantizers() -> None:
    def pruned(weight: Tensor) -> Tensor:
        return weight * (weight.detach().abs() > 0.1).float()

    def dropped(weight: Tensor) -> Tensor:
        return weight * torch.floor(0.8 + torch.rand_like(weight))

    for use in (pruned, dropped, lambda w: w * torch.bernoulli(torch.full_like(w, 0.7))):
        torch.manual_seed(0)
        assert grave(observed(around(Layer(use)), steps=12)) == []


@pytest.mark.parametrize("levels", [1, 2])
def test_signs_and_ternary_weights_have_no_range_to_leave(levels: int) -> None:
    def coarse(weight: Tensor) -> Tensor:
        scale = weight.detach().abs().mean(1, keepdim=True)
        codes = weight.sign() if levels == 1 else (weight / scale).round().clamp(-1, 1)
        return weight + (codes * scale - weight).detach()

    found, _ = watched(coarse, steps=12)
    assert found.last is not None
    assert found.last.clipped_share == 0


@pytest.mark.parametrize("together", [True, False])
def test_casts_used_on_after_a_swap_of_weights_are_seen(together: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    other = [p.detach().clone() + 0.1 for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer, probe=True) as doctor:
        for _ in range(4):
            x = torch.randn(32, 8)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).float().square().mean()
                if not together:
                    torch.clear_autocast_cache()
                kept = [p.detach().clone() for p in model.parameters()]
                for p, w in zip(model.parameters(), other, strict=True):
                    p.data.copy_(w)
                reference = model(x).float().mean().detach()
                for p, w in zip(model.parameters(), kept, strict=True):
                    p.data.copy_(w)
            optimizer.zero_grad()
            (loss + reference).backward()
            optimizer.step()
    evidence = doctor.evidence()
    outdated = {q.parameter: q.outdated_steps for q in evidence.quantizers if q.outdated_steps}
    if together:
        assert outdated["0.weight"] >= 2
        assert grave(evidence) == ["PD408"]
    else:
        assert not outdated
        assert grave(evidence) == []
