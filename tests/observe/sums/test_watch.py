"""Sums, averages and merges that a run keeps in a low format, against slow twins and known answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precdoctor.doctor import Doctor
from precdoctor.evidence import Accumulation
from precdoctor.formats import BFLOAT16
from tests.reference import accumulations as reference

BF16 = torch.bfloat16


def watched(
    work: Callable[[int], Any], steps: int = 3, model: nn.Module | None = None
) -> tuple[Accumulation, ...]:
    """Return what is seen of ``work(step)``, done after each of some steps of an optimizer."""
    model = model or nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(probe=True) as doctor:
        for step in range(steps):
            loss = model(torch.ones(2, 4, dtype=next(model.parameters()).dtype)).sum().float()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            work(step)
    return doctor.evidence().accumulations


def only(found: tuple[Accumulation, ...], kind: str) -> Accumulation:
    (record,) = [a for a in found if a.kind == kind and a.format != "float32"]
    return record


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("increments", [[2.0] * 300, [1.7] * 300, [0.5, 3.0, 1.25] * 90])
def test_a_sum_agrees_with_the_slow_twin(increments: list[float], in_place: bool) -> None:
    total = torch.zeros((), dtype=BF16)

    def epoch(step: int) -> None:
        nonlocal total
        for increment in increments if step == 0 else []:
            if in_place:
                total += torch.tensor(increment)
            else:
                total = total + torch.tensor(increment, dtype=BF16)

    record = only(watched(epoch), "sum")
    stored, exact, lost = reference.summed(BFLOAT16, increments)
    assert (record.format, float(total)) == ("bfloat16", stored)
    assert record.value == stored
    # which operand is the sum shows when it comes back, so that the first addition may go unseen
    assert record.missing == pytest.approx(exact - stored, rel=1e-4, abs=increments[0] * (not in_place))
    assert record.lost_share == pytest.approx(lost / len(increments), abs=0.01)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_bound_between_additions_hides_no_sum(in_place: bool) -> None:
    price = torch.tensor(2.0, dtype=BF16)

    def epoch(step: int) -> None:
        nonlocal price
        for _ in range(40 if step == 0 else 0):
            if in_place:
                price.add_(0.002).clamp_(min=0)
            else:
                price = (price + 0.002).clamp(min=0.0, max=5.0)

    record = only(watched(epoch), "sum")
    assert (float(price), record.value, record.lost_share) == (2.0, 2.0, 1.0)
    assert record.missing == pytest.approx(0.08, abs=0.004)


def test_a_value_that_is_only_scaled_is_an_average_of_nothing() -> None:
    slow, fast = torch.tensor(2.0, dtype=BF16), torch.tensor(2.0, dtype=BF16)

    def work(_: int) -> None:
        for _ in range(10):
            slow.mul_(0.9985)
        for _ in range(10):
            fast.mul_(0.9)

    lost, kept = (a for a in watched(work) if a.kind == "average")
    assert (float(slow), lost.lost_share, lost.edq) == (2.0, 1.0, 0.0)
    assert lost.decay == pytest.approx(0.9985, rel=1e-4)
    assert kept.edq == pytest.approx(1.0, abs=0.05)
    assert lost.only_scaled
    assert kept.only_scaled


@pytest.mark.parametrize("way", ["mul", "add", "sub", "copy"])
def test_a_weight_that_decays_by_hand_is_only_scaled(way: str) -> None:
    weight = torch.full((64,), 1.5, dtype=BF16)

    def decay(_: int) -> None:
        for _ in range(10):
            if way == "mul":
                weight.mul_(0.999)
            elif way == "add":
                weight.add_(weight, alpha=-0.001)
            elif way == "sub":
                weight.sub_(weight * 0.001)
            else:
                weight.copy_(weight * 0.999)

    record = only(watched(decay), "average")
    assert record.decay == pytest.approx(0.999, rel=1e-4)
    assert record.only_scaled
    assert (record.edq, float(weight[0])) == (0.0, 1.5)


class Plain(nn.Module):
    """A weight in bfloat16 that no optimizer steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((64,), 1.5, dtype=BF16))


def descend(way: str, weight: nn.Parameter) -> None:
    """Take a step by hand; half an ulp of the weight is 2**-8."""
    if way == "autograd.grad":
        (gradient,) = torch.autograd.grad((weight * 2).sum(), weight)
    else:
        (weight * 2).sum().backward()
        assert weight.grad is not None
        gradient = weight.grad
    with torch.no_grad():
        if way == "data":
            weight.data -= 1e-4 * gradient
        elif way == "copy":
            weight.copy_(weight - 1e-4 * gradient)
        elif way == "decay":
            weight.mul_(1 - 1e-4).add_(gradient, alpha=-1e-4)
        else:
            weight.sub_(gradient * 1e-4)
    weight.grad = None


@pytest.mark.parametrize("way", ["data", "copy", "decay", "sub", "autograd.grad"])
def test_a_weight_that_is_stepped_by_hand_is_updated(way: str) -> None:
    plain = Plain()
    with Doctor(plain, probe=True) as doctor:
        for _ in range(10):
            descend(way, plain.weight)
    (record,) = (a for a in doctor.evidence().accumulations if a.kind == "update")
    assert (record.updates, record.lost_share, record.edq, record.trained) == (10, 1.0, 0.0, True)
    assert (record.value, record.names) == (1.5, ("weight",))
    assert record.increment == pytest.approx(-3.5e-4 if way == "decay" else -2e-4, rel=0.02)


@pytest.mark.parametrize("graded", [False, True])
def test_a_weight_that_is_a_new_tensor_after_each_step_is_updated(graded: bool) -> None:
    weight = torch.full((64,), 1.5, dtype=BF16, requires_grad=True)
    with Doctor(probe=True) as doctor:
        for _ in range(10):
            (gradient,) = torch.autograd.grad((weight * 2).sum(), weight)
            with torch.set_grad_enabled(graded):
                weight = (weight - 1e-4 * gradient).detach().requires_grad_()
    (record,) = (a for a in doctor.evidence().accumulations if a.kind == "update")
    assert (record.lost_share, record.edq, record.value) == (1.0, 0.0, 1.5)
    assert record.updates >= 8


@pytest.mark.parametrize("many", [False, True])
def test_a_weight_whose_gradient_a_function_gives_is_updated(many: bool) -> None:
    weights = {"w": torch.full((3, 64), 1.0, dtype=BF16)}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return (weights["w"] * x).float().square().mean()

    gradient = torch.func.grad(loss)
    if many:
        gradient = torch.func.vmap(gradient, in_dims=({"w": 0}, None))

    def update(_: int) -> None:
        nonlocal weights
        gradients = gradient(weights, torch.ones(64, dtype=BF16))
        weights = {name: weight - 1e-3 * gradients[name] for name, weight in weights.items()}

    record = only(watched(update), "update")
    assert (record.lost_share, record.edq) == (1.0, 0.0)
    assert float(weights["w"].min()) == 1.0


def test_what_a_forward_pass_adds_to_a_weight_is_no_update() -> None:
    weight = torch.full((64,), 1.5, dtype=BF16, requires_grad=True)
    with Doctor(probe=True) as doctor:
        for _ in range(10):
            (weight + 1e-4 * torch.randn(64, dtype=BF16)).sum().backward()
    assert not [a for a in doctor.evidence().accumulations if a.kind == "update"]


def test_a_weight_whose_decay_is_lost_beside_other_writes_is_scaled() -> None:
    plain, rows = Plain(), torch.arange(8)
    with Doctor(plain, probe=True) as doctor:
        for _ in range(10):
            (plain.weight * 2).sum().backward()
            with torch.no_grad():
                plain.weight.mul_(1 - 1e-4)
                plain.weight[rows] = torch.rand(8, dtype=BF16)
            plain.weight.grad = None
    (record,) = (a for a in doctor.evidence().accumulations if a.kind == "average")
    assert (record.only_scaled, record.trained, record.edq) == (True, True, 0.0)


def test_a_copy_of_masters_is_no_update() -> None:
    plain = Plain()
    master = plain.weight.detach().float()
    with Doctor(plain, probe=True) as doctor:
        for _ in range(10):
            (gradient,) = torch.autograd.grad((plain.weight * 2).sum(), plain.weight)
            with torch.no_grad():
                master -= 1e-4 * gradient.float()
                plain.weight.copy_(master)
    assert not [a for a in doctor.evidence().accumulations if a.kind == "update"]


def test_a_value_that_is_scaled_and_added_to_is_one_update() -> None:
    average = torch.ones(64, dtype=BF16)
    record = only(watched(lambda _: average.mul_(0.9).add_(torch.full((64,), 0.3))), "average")
    assert record.updates == 2  # the probe sleeps after the third step
    assert not record.only_scaled


def test_knows_the_lines_that_made_a_sum_and_add_to_it() -> None:
    class Sums:
        def __init__(self) -> None:
            self.total: Tensor | None = None

        def add(self, step: int) -> None:
            if step == 0:
                self.total = torch.zeros((), dtype=BF16)
            assert self.total is not None
            self.total += 1.5

    record = only(watched(Sums().add), "sum")
    assert record.function == "add"
    assert record.place is not None
    assert record.origin is not None
    assert record.place.code == "self.total += 1.5"
    assert record.origin.code == "self.total = torch.zeros((), dtype=BF16)"


@pytest.mark.parametrize(("increment", "counts"), [(1.0, True), (32.0, True), (1.5, False)])
def test_additions_of_one_whole_number_are_a_counter(increment: float, counts: bool) -> None:
    total = torch.zeros((), dtype=BF16)
    assert only(watched(lambda _: total.add_(increment)), "sum").counts is counts


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_an_average_agrees_with_the_slow_twin(decay: float) -> None:
    torch.manual_seed(0)
    average = torch.linspace(0.1, 2, 64).to(BF16)
    start = average.clone()
    values = [average.float() * (1 + 0.1 * torch.randn(64)) for _ in range(20)]

    def update(step: int) -> None:
        for value in values if step == 0 else []:
            average.mul_(decay).add_(value.to(BF16), alpha=1 - decay)

    record = only(watched(update, steps=1), "average")
    twins = [
        reference.averaged(BFLOAT16, float(start[i]), [float(v[i]) for v in values], decay) for i in range(64)
    ]
    stored, exact = (torch.tensor([t[i] for t in twins], dtype=torch.float64) for i in range(2))
    assert float((average.double() - stored).abs().max()) <= 2**-6  # two ulp: torch rounds once less
    far = float((exact - average.double()).norm() / (exact - start.double()).norm())
    assert record.decay == pytest.approx(decay)
    assert record.distance == pytest.approx(far, rel=0.05)
    assert (record.edq > 0.8) == (decay < 0.99)


STYLES: dict[str, Callable[[Any, Tensor], Any]] = {
    "two operations": lambda box, p: box.s.mul_(0.999).add_(p, alpha=0.001),
    "lerp": lambda box, p: box.s.lerp_(p, 0.001),
    "foreach": lambda box, p: torch._foreach_lerp_([box.s], [p], 0.001),
    "difference": lambda box, p: box.s.sub_(0.001 * (box.s - p)),
    "copied": lambda box, p: box.s.copy_(0.999 * box.s + 0.001 * p),
    "through float32": lambda box, p: box.s.copy_(0.999 * box.s.float() + 0.001 * p.float()),
    "a new tensor": lambda box, p: setattr(box, "s", 0.999 * box.s + 0.001 * p),
    "rounded at last": lambda box, p: setattr(box, "s", (0.999 * box.s.float() + 0.001 * p.float()).to(BF16)),
}


@pytest.mark.parametrize("style", STYLES)
def test_an_average_is_known_in_any_style(style: str) -> None:
    torch.manual_seed(0)

    class Box:
        s = torch.rand(256).add(0.5).to(BF16)

    values = [torch.rand(256).add(0.5).to(BF16) for _ in range(8)]

    def update(step: int) -> None:
        for value in values if step == 0 else []:
            with torch.no_grad():
                STYLES[style](Box, value)

    record = only(watched(update, steps=2), "average")
    assert record.decay == pytest.approx(0.999)
    assert record.edq_high < 0.3
    assert record.lost_share > 0.8


def test_a_copy_that_still_requires_grad_is_an_average() -> None:
    model = nn.Linear(4, 4)
    average = copy.deepcopy(model).half()

    def update(_: int) -> None:
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.data = 0.999 * mine.data + 0.001 * theirs.data.half()

    kinds = {a.kind for a in watched(update, 3, model)}
    assert kinds == {"average"}


def test_an_average_is_followed_while_the_probe_sleeps() -> None:
    torch.manual_seed(0)
    model, steps = nn.Linear(4, 4), 60
    stored = [p.detach().to(BF16) for p in model.parameters()]
    exact = [s.double() for s in stored]
    start = [e.clone() for e in exact]

    @torch.no_grad()
    def update(_: int) -> None:
        for s, e, p in zip(stored, exact, model.parameters(), strict=True):
            s.mul_(0.99).add_(p.to(BF16), alpha=0.01)
            e.mul_(0.99).add_(p.double(), alpha=0.01)

    record = only(watched(update, steps, model), "average")
    far = sum(float((s.double() - e).square().sum()) for s, e in zip(stored, exact, strict=True))
    way = sum(float((e - b).square().sum()) for e, b in zip(exact, start, strict=True))
    assert record.distance == pytest.approx((far / way) ** 0.5, abs=0.1)


def test_what_compensated_averages_lose_is_not_counted_as_lost() -> None:
    model = nn.Linear(4, 4)
    stored = [p.detach().to(BF16) for p in model.parameters()]
    carried = [torch.zeros_like(s) for s in stored]

    @torch.no_grad()
    def update(_: int) -> None:
        for s, c, p in zip(stored, carried, model.parameters(), strict=True):
            increment = (p - s.float() - c.float()) * 0.001 + c.float()
            new = (s.float() + increment).to(BF16)
            c.copy_((increment - (new.float() - s.float())).to(BF16))
            s.copy_(new)

    averages = [a for a in watched(update, 12, model) if a.kind == "average"]
    assert averages
    assert all(a.compensated for a in averages)


def test_a_sum_that_stands_still_while_the_probe_sleeps_is_missed_by_its_additions() -> None:
    total = torch.zeros((), dtype=BF16)
    record = only(watched(lambda _: total.add_(torch.tensor(8.0)), 400), "sum")
    assert record.value == float(total) == 2048
    assert record.missing == pytest.approx(400 * 8 - 2048, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_sum_to_which_now_and_then_nothing_is_added_misses_nothing(dtype: torch.dtype) -> None:
    hits = torch.zeros((), dtype=dtype)
    found = watched(lambda step: hits.add_(torch.tensor(float(step < 6))), 12)
    assert [(a.missing, a.standing) for a in found if a.format == str(dtype).removeprefix("torch.")] == [
        (0, 0)
    ]


@pytest.mark.parametrize("steps", [4, 40])
def test_a_sum_that_is_reset_misses_nothing(steps: int) -> None:
    total = torch.zeros((), dtype=BF16)

    def add(step: int) -> None:
        total.add_(1)
        if step % 2:
            total.zero_()

    assert only(watched(add, steps), "sum").missing == 0


@pytest.mark.parametrize("name", ["index_add_", "index_put_"])
def test_additions_by_index_are_seen(name: str) -> None:
    counts, where, ones = torch.zeros(4, dtype=torch.float16), torch.tensor([0, 1, 1]), torch.ones(3).half()

    def add(_: int) -> None:
        for _ in range(1500):
            if name == "index_put_":
                counts.index_put_((where,), ones, accumulate=True)
            else:
                counts.index_add_(0, where, ones)

    record = only(watched(add, 1), "sum")
    assert record.value == 2048
    assert record.missing == pytest.approx(3000 - 2048)


@pytest.mark.parametrize("passes", [4, 600])
def test_gradients_summed_in_their_format_are_compared_with_the_exact_sum(passes: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4).to(BF16)
    master = [p.detach().float() for p in model.parameters()]
    optimizer = torch.optim.SGD(master, lr=0.1)
    twin = copy.deepcopy(model)
    exact = [torch.zeros_like(p, dtype=torch.float64) for p in twin.parameters()]
    with Doctor(probe=True) as doctor:
        for _ in range(passes):
            x = torch.rand(2, 8).to(BF16)
            model(x).float().square().sum().backward()
            twin(x).float().square().sum().backward()
            for total, p in zip(exact, twin.parameters(), strict=True):
                assert p.grad is not None
                total += p.grad
                p.grad = None
        errors = []
        for total, m, p in zip(exact, master, model.parameters(), strict=True):
            assert p.grad is not None
            errors.append(float((p.grad.double() - total).norm() / total.norm()))
            m.grad = p.grad.float()
        optimizer.step()
    record = only(doctor.evidence().accumulations, "gradient")
    assert record.passes == passes
    assert record.tensors == 2
    assert min(errors) * 0.99 <= record.error <= max(errors) * 1.01
    assert (record.error > 0.1) == (passes > 4)


def test_gradients_that_a_hook_sums_are_compared_with_the_exact_sum() -> None:
    model = nn.Linear(8, 1, bias=False)
    weight = model.weight
    sums, exact = torch.zeros_like(weight, dtype=BF16), torch.zeros_like(weight, dtype=torch.float64)

    def add(parameter: Tensor) -> None:
        nonlocal exact
        assert parameter.grad is not None
        sums.add_(parameter.grad.to(BF16))
        exact = exact + parameter.grad.to(BF16)
        parameter.grad = None

    weight.register_post_accumulate_grad_hook(add)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(probe=True) as doctor:
        for _ in range(600):
            model(1 + 0.1 * torch.rand(2, 8)).sum().backward()
        weight.grad = sums.float()
        optimizer.step()
    record = only(doctor.evidence().accumulations, "gradient")
    assert (record.passes, record.tensors) == (600, 1)
    assert record.error == pytest.approx(float((sums - exact).norm() / exact.norm()), rel=0.01)
    assert record.error > 0.1


@pytest.mark.parametrize("out_of_place", [False, True])
def test_a_merge_into_a_low_base_is_seen(out_of_place: bool) -> None:
    class Adapted(nn.Module):
        base: Tensor

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.register_buffer("base", torch.ones(4, 4, dtype=BF16))
            self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.base.to(x.dtype) + x @ (self.b @ self.a)

        @torch.no_grad()
        def merge(self, _: int) -> None:
            change = (1e-4 * self.b @ self.a).to(BF16)
            if out_of_place:
                self.base = (self.base.float() + change.float()).to(BF16)
            else:
                self.base += change

    model = Adapted()
    record = only(watched(model.merge, 3, model), "merge")
    assert record.names == ("base",)
    assert record.function == "merge"
    assert record.edq_high < 0.1
    assert record.lost_share > 0.9


def test_an_evaluation_in_a_low_format_merges_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).to(BF16)

    @torch.no_grad()
    def evaluate(_: int) -> None:
        x = torch.rand(4, 4).to(BF16)
        for _ in range(5):
            x = x + 1e-4 * model(x)
            x += model[0].bias

    found = watched(evaluate, 3, copy.deepcopy(model))
    assert not [a for a in found if a.kind == "merge"]
    assert all(abs(a.missing) <= 0.01 * a.spread for a in found)


def test_a_running_statistic_is_followed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.001)).to(BF16)

    def forward(_: int) -> None:
        for _ in range(20):
            model(torch.randn(16, 4).to(BF16))

    record = next(a for a in watched(forward, 1, model) if "1.running_var" in a.names)
    assert record.kind == "average"
    assert record.decay == pytest.approx(0.999)
    assert record.lost_share > 0.9


def test_float32_sums_and_averages_are_not_followed_but_scalars() -> None:
    average, total = torch.rand(8), torch.zeros(())

    def work(_: int) -> None:
        average.mul_(0.999).add_(0.001)
        total.add_(1.5)

    assert [(a.kind, a.format, a.missing) for a in watched(work)] == [("sum", "float32", 0.0)]


class Statistics(nn.Module):
    """Running means of normally distributed data, beside the exact ones."""

    def __init__(self, momentum: float, level: Tensor, width: Tensor) -> None:
        super().__init__()
        self.momentum, self.level, self.width = momentum, level, width
        self.register_buffer("mean", torch.zeros(len(level), dtype=BF16))
        self.exact = torch.zeros(len(level), dtype=torch.float64)

    def update(self, _: int) -> None:
        batch = (self.level + self.width * torch.randn(64, len(self.level))).mean(0)
        self.mean.add_(self.momentum * (batch - self.mean).to(BF16))
        self.exact += self.momentum * (batch.double() - self.exact)


@pytest.mark.parametrize("momentum", [0.01, 0.1])
def test_statistics_of_data_are_followed_while_the_probe_sleeps(momentum: float) -> None:
    torch.manual_seed(0)
    level = torch.tensor([12.0, -30.0, 3.0, 0.5, 100.0, -7.0])
    model = Statistics(momentum, level, level.abs() / 20)
    record = only(watched(model.update, 400), "average")
    # the probe has seen 10 to 20 of 400 batches
    true = float((model.mean.double() - model.exact).norm() / model.exact.norm())
    assert record.distance == pytest.approx(true, abs=0.02)
    assert record.floor is not None
    assert record.distance is not None
    assert (record.distance > max(3 * record.floor, 0.1)) == (momentum == 0.01)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_noise_is_no_way_to_go(seed: int) -> None:
    torch.manual_seed(seed)
    model = Statistics(0.01, torch.zeros(16), torch.ones(16))
    record = only(watched(model.update, 200), "average")
    assert record.floor is not None
    assert record.distance is not None
    assert record.distance < 3 * record.floor


def test_statistics_of_a_norm_are_followed_while_the_probe_sleeps() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, momentum=0.01).to(BF16)
    exact = torch.zeros(8, dtype=torch.float64)

    def work(_: int) -> None:
        x = (50 + torch.randn(64, 8)).to(BF16)
        norm(x)
        exact.add_(0.01 * (x.double().mean(0) - exact))

    records = [a for a in watched(work, 300) if a.kind == "average"]
    assert norm.running_mean is not None
    true = float((norm.running_mean.double() - exact).norm() / exact.norm())
    assert true > 0.1
    distances = [a.distance for a in records if a.distance is not None]
    assert max(distances) == pytest.approx(true, abs=0.03)


def test_a_sum_is_followed_through_the_rest_of_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precdoctor.observe.probe.probe._MOST_OPERATIONS", 200)
    counts, index, others = torch.zeros(4, dtype=BF16), torch.tensor([1, 1, 2]), torch.zeros(2)

    def evaluation(step: int) -> None:
        for _ in range(300 if step == 0 else 0):
            others.exp().sum()
            counts.index_add_(0, index, torch.ones(3, dtype=BF16))

    record = only(watched(evaluation), "sum")
    assert (record.updates, record.value) == (300, float(counts.max())) == (300, 256)
    assert record.missing == 600 - 256


def test_a_sum_that_begins_anew_does_so_in_the_rest_of_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precdoctor.observe.probe.probe._MOST_OPERATIONS", 50)
    total = torch.zeros((), dtype=BF16)

    def epochs(step: int) -> None:
        for _ in range(10):
            total.zero_()
            for _ in range(100):
                total.add_(1)

    record = only(watched(epochs, steps=1), "sum")
    assert (float(total), record.updates, record.missing) == (100, 1000, 0)


@pytest.mark.parametrize("way", ["addcmul", "lerp", "new"])
def test_tells_averages_of_squared_gradients_from_those_of_gradients(way: str) -> None:
    model = nn.Linear(4, 4)
    first, second = (torch.zeros(4, 4, dtype=BF16) for _ in range(2))

    @torch.no_grad()
    def work(step: int) -> None:
        nonlocal second
        gradient = model.weight.grad
        assert gradient is not None
        gradient.mul_(1 - 2 * (step % 2))  # of either sign
        first.mul_(0.9).add_(gradient, alpha=0.1)
        if way == "addcmul":
            second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        elif way == "lerp":
            second.lerp_(gradient.pow(2).bfloat16(), 0.01)
        else:
            second = 0.99 * second + 0.01 * gradient.bfloat16().square()

    averages = [a for a in watched(work, 8, model) if a.kind == "average"]
    assert sorted((a.decay, a.squares) for a in averages) == [
        (pytest.approx(0.9, abs=0.001), False),
        (pytest.approx(0.99, abs=0.001), True),
    ]
