"""When will updates be lost? The forecast of PD105 from a run's first steps, beside what is seen later.

A small bfloat16 model is watched from its first step. After 50, 100 and 200 steps the evidence so far is
asked for the forecast; then training goes on to the schedule's end. Meanwhile every update of every element
is computed anew in float64, by formula and without the Doctor, and compared with what was stored.
"""

from __future__ import annotations

import math
import platform
import statistics
from dataclasses import dataclass

import click
import torch
from tabulate import tabulate
from torch import Tensor, nn

from precdoctor.doctor import Doctor
from precdoctor.rules.approaching_freeze import FREEZING_EDQ, HEALTHY_EDQ, forecast
from precdoctor.rules.descent import quality
from precdoctor.rules.reading import stepped
from trainings import TRAININGS, Training

#: steps after which the forecast is asked
ASKED = (50, 100, 200)
#: steps over which the EDQ that was seen is smoothed
SMOOTH = 25


def flat(tensors: list[Tensor]) -> Tensor:
    """Return all elements in float64."""
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])


class Meter:
    """Compares intended with applied updates at every step, in float64 and by the optimizers' formulas."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, (group,) = optimizer, optimizer.param_groups
        self.parameters: list[nn.Parameter] = group["params"]
        sizes = torch.tensor([p.numel() for p in self.parameters])
        self.owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        #: per step: <applied, intended> and <intended, intended> of each parameter
        self.products: list[Tensor] = []

    def step(self) -> None:
        """Take the optimizer's step and note what it meant and what arrived."""
        before, intended = flat(self.parameters), self.intended()
        self.optimizer.step()
        applied = flat(self.parameters) - before
        zeros = torch.zeros(2, len(self.parameters), dtype=torch.float64)
        self.products.append(
            zeros.index_add_(1, self.owner, torch.stack([applied * intended, intended.square()]))
        )

    def intended(self) -> Tensor:
        """Return the update that the step is about to make, in exact arithmetic."""
        group = self.optimizer.param_groups[0]
        weights, gradients = flat(self.parameters), flat([p.grad for p in self.parameters])
        if isinstance(self.optimizer, torch.optim.AdamW):
            (beta1, beta2), count = group["betas"], len(self.products) + 1
            mean = beta1 * self._state("exp_avg") + (1 - beta1) * gradients
            square = beta2 * self._state("exp_avg_sq") + (1 - beta2) * gradients.square()
            mean, square = mean / (1 - beta1**count), square / (1 - beta2**count)
            return -group["lr"] * (mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * weights)
        # momentum starts as the first gradient, which is what the formula gives from zero (no dampening)
        gradients = gradients + group["weight_decay"] * weights
        return -group["lr"] * (group["momentum"] * self._state("momentum_buffer") + gradients)

    def _state(self, key: str) -> Tensor:
        states = [self.optimizer.state[p].get(key) for p in self.parameters]
        return flat(
            [torch.zeros_like(p) if s is None else s for p, s in zip(self.parameters, states, strict=True)]
        )

    def edq(self) -> Tensor:
        """Return the EDQ smoothed over `SMOOTH` steps; shape (steps - SMOOTH + 1, parameters)."""
        sums = torch.stack(self.products).unfold(0, SMOOTH, 1).sum(-1)
        return torch.nan_to_num(sums[:, 0] / sums[:, 1], nan=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One forecast of one parameter beside what was seen."""

    training: str
    seed: int
    asked: int
    parameter: str
    #: it was losing much already when asked, and will: PD101 and PD102 speak of it, not the forecast
    is_ill: bool
    #: step from which more than half of the descent was forecast to be lost, and was; None: never
    forecast: int | None
    seen: int | None
    #: steps of the run
    steps: int

    @property
    def error(self) -> int | None:
        """Return by how many steps the forecast came too late (negative: too early)."""
        return None if self.forecast is None or self.seen is None else self.forecast - self.seen


def lasting(edq: Tensor) -> int | None:
    """Return the step from which smoothed EDQ stays under one half; None when it is not so at the end."""
    above = torch.nonzero(edq >= FREEZING_EDQ).reshape(-1)
    last = int(above[-1]) if len(above) else -1
    if last == len(edq) - 1:
        return None
    # the smoothed value belongs to the middle of its steps
    return last + 1 + SMOOTH // 2


def run(training: Training, seed: int) -> list[Comparison]:
    """Train to the end; return every forecast beside what was seen."""
    model, optimizer, loss_of = training.start(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, training.rate)
    meter = Meter(optimizer)
    asked: dict[int, dict[str, tuple[bool, int | None]]] = {}
    losses = []
    # without a limit on its time, or which steps it observes would depend on the machine
    with Doctor(model, optimizer, budget=1.0) as doctor:
        for step in range(training.steps):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            meter.step()
            schedule.step()
            losses.append(loss.item())
            if step + 1 in ASKED:
                asked[step + 1] = ask(doctor)
            if step + 1 == max(ASKED):
                doctor.detach()
    first, last = statistics.mean(losses[:5]), statistics.mean(losses[-50:])
    print(f"{training.name}, seed {seed}: {training.steps} steps, loss {first:.2f} -> {last:.2f}", flush=True)
    edq, names = meter.edq(), [name for name, _ in model.named_parameters()]
    return [
        Comparison(
            training=training.name,
            seed=seed,
            asked=when,
            parameter=name,
            is_ill=is_ill,
            forecast=step,
            seen=lasting(edq[:, names.index(name)]),
            steps=training.steps,
        )
        for when, answers in asked.items()
        for name, (is_ill, step) in answers.items()
    ]


def ask(doctor: Doctor) -> dict[str, tuple[bool, int | None]]:
    """Return by parameter whether it is ill now, and the step from which it is forecast to be."""
    evidence, found = doctor.evidence(), {}
    for item in stepped(evidence):
        state, ahead = quality(item, evidence.run), forecast(item, evidence)
        is_ill = ahead is None and (state is None or state.low < HEALTHY_EDQ)
        found[item.parameter.name] = is_ill, ahead.step if ahead else None
    return found


def by_parameter(found: list[Comparison]) -> str:
    """Return a table of one run's parameters: the forecasts, and what was seen."""
    rows: dict[str, list[str]] = {}
    for one in found:
        row = rows.setdefault(one.parameter, [one.parameter])
        row.append("ill" if one.is_ill else "never" if one.forecast is None else str(one.forecast))
    for one in found:
        if one.asked == ASKED[-1]:
            rows[one.parameter].append("never" if one.seen is None else str(one.seen))
    headers = ["parameter", *(f"after {asked}" for asked in ASKED), "seen"]
    return tabulate(list(rows.values()), headers, tablefmt="github", disable_numparse=True)


def summary(found: list[Comparison]) -> list[str]:
    """Return the row of one training and one number of steps watched."""
    judged = [one for one in found if not one.is_ill]
    errors = [one.error for one in judged if one.error is not None]
    sizes = sorted(abs(error) for error in errors)
    steps = found[0].steps

    def shown(error: float) -> str:
        return f"{error:.0f} ({error / steps:.0%})"

    tail = sizes[min(math.ceil(0.9 * len(sizes)), len(sizes)) - 1] if sizes else math.nan
    return [
        found[0].training,
        str(found[0].asked),
        str(len(found) - len(judged)),
        str(len(errors)),
        f"{statistics.median(errors):+.0f}" if errors else "",
        shown(statistics.median(sizes)) if sizes else "",
        shown(tail) if sizes else "",
        str(sum(one.forecast is not None and one.seen is None for one in judged)),
        str(sum(one.forecast is None and one.seen is not None for one in judged)),
        str(sum(one.forecast is None and one.seen is None for one in judged)),
    ]


@click.command()
@click.option("--training", "names", type=click.Choice(list(TRAININGS)), multiple=True, help="Default: all.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True)
def main(names: tuple[str, ...], seeds: int) -> None:
    """Forecast, train on, compare; print a table per run and one of the errors."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}")
    rows = []
    for name in names or TRAININGS:
        found = []
        for seed in range(seeds):
            one = run(TRAININGS[name], seed)
            print(f"\n{by_parameter(one)}\n", flush=True)
            found += one
        rows += [summary([one for one in found if one.asked == asked]) for asked in ASKED]
    headers = [
        "training",
        "watched",
        "ill",
        "compared",
        "bias",
        "median error",
        "90 %",
        "false",
        "missed",
        "neither",
    ]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
