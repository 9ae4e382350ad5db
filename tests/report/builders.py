"""Made-up runs for the renderers: the numbers are plausible, nothing is trained."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable

from precdoctor import formats
from precdoctor.evidence import (
    Bench,
    Binades,
    Cast,
    Evidence,
    Example,
    Gradient,
    Group,
    Histogram,
    Optimizer,
    Parameter,
    Place,
    Run,
    Updates,
    Weight,
    WindowedEdq,
)
from precdoctor.report import Report
from precdoctor.rules.finding import Diagnosis, Finding, Location, Prescription, Subject, VitalSign

SOURCE = """\
def build(arguments: argparse.Namespace) -> MoELanguageModel:
    torch.manual_seed(arguments.seed)
    config = Config(vocab=arguments.vocab, width=arguments.width, layers=arguments.layers)
    model = MoELanguageModel(config)
    if arguments.bf16:
        # halves the memory
        model = model.to(torch.bfloat16)
    return model


def main() -> None:
    arguments = parse()""".splitlines()
FIRST_LINE = 110
CAST = Place(file="train.py", line=116, function="build", code="model = model.to(torch.bfloat16)")
OPTIMIZER = Place(
    file="train.py", line=131, function="main", code="AdamW(rest, lr=args.lr * 0.3, betas=(0.9, 0.95))"
)
DIFF = """\
--- train.py
+++ train.py
@@ -114,5 +114,2 @@
-    if arguments.bf16:
-        # halves the memory
-        model = model.to(torch.bfloat16)
     return model
@@ -150,1 +147,2 @@
-        loss = model(tokens, labels)
+        with torch.autocast("cpu", dtype=torch.bfloat16):
+            loss = model(tokens, labels)"""


@functools.cache
def bell(mean: float, spread: float, total: int, seed: int = 0) -> Histogram:
    """Return a histogram of headroom bits: a normal sample in half-bit bins."""
    low, width, counts = -24.0, 0.5, [0.0] * 96
    draw = random.Random(seed)
    sample = 400
    for _ in range(sample):
        index = int((draw.gauss(mean, spread) - low) / width)
        counts[min(max(index, 0), len(counts) - 1)] += total / sample
    return Histogram(low=low, width=width, counts=tuple(counts))


def parameter(
    name: str,
    *,
    fmt: str = "bfloat16",
    shape: tuple[int, ...] = (64,),
    edq: float = 1.0,
    headroom: float = 6.0,
    weight: float = 0.02,
    stretches: int = 10,
    seed: int = 0,
) -> Parameter:
    """Return a parameter whose updates have that EDQ and median headroom."""
    draw = random.Random(seed)
    numel = 1
    for size in shape:
        numel *= size
    watched = min(numel, 1024)
    histogram = bell(headroom, 1.2, watched * 50, seed % 16)
    known = formats.by_name(fmt)
    stored = formats.round_to(known, weight)
    down = draw.random() < 0.5
    intended = (-1 if down else 1) * formats.half_ulp(known, stored, -1 if down else 1) * 2**headroom
    applied = formats.round_to(known, stored + intended) - stored
    spread = 0.0 if edq == 0 else 0.02
    return Parameter(
        name=name,
        format=fmt,
        shape=shape,
        watched=watched,
        module="RMSNorm" if len(shape) == 1 else "Linear",
        optimizer=0,
        group=0,
        cast=None if fmt == "float32" else Cast(before="float32", after=fmt, how="module.to", place=CAST),
        weight=Weight(
            abs_median=abs(stored),
            abs_min=abs(stored) / 2,
            abs_max=abs(stored) * 2,
            mean_first=stored,
            mean_last=stored,
            moved_share=edq,
            power_of_two_share=1.0 if stored == 1 else 0.01,
        ),
        gradient=Gradient(
            format=fmt,
            present=50,
            binades=Binades(exponents=Histogram(low=-20, width=1, counts=(1, 4, 9, 20, 9, 4, 1))),
        ),
        updates=Updates(
            replay="elementwise",
            intended=watched * 50,
            lost_share=1.0 if edq == 0 else histogram.share_below(0.0),
            relative_rms=abs(intended / stored),
            never_moved_share=1.0 if edq == 0 else 0.0,
            edq=tuple(
                WindowedEdq(window=window, edq=edq, low=edq - spread, high=edq + spread)
                for window in (1, 4, 16, 0)
            ),
            headroom_bits=histogram,
            headroom_energy=histogram,
            ups_intended=watched * 25,
            downs_intended=watched * 25,
            example=Example(index=3, weight=stored, intended=intended, applied=applied),
            timeline=tuple(max(0.0, edq + draw.gauss(0, 0.03) * (edq > 0)) for _ in range(stretches)),
        ),
    )


def model(layers: int = 6, stretches: int = 10) -> tuple[Parameter, ...]:
    """Return a small bf16 language model: norms frozen at 1.0, matrices fine, a router in float32."""
    made = [parameter("embedding.weight", shape=(4096, 256), edq=0.96, headroom=0.4, stretches=stretches)]
    for layer in range(layers):
        block = f"blocks.{layer}"

        def of(name: str, block: str = block, **more: object) -> Parameter:
            return parameter(f"{block}.{name}", stretches=stretches, seed=len(made), **more)  # type: ignore[arg-type]

        made.append(of("attention_norm.weight", shape=(256,), edq=0.0, headroom=-3.0, weight=1.0))
        made.extend(
            of(f"attention.{kind}.weight", shape=(256, 256), edq=0.99, headroom=2.6) for kind in "qkvo"
        )
        made.append(of("feed_forward_norm.weight", shape=(256,), edq=0.0, headroom=-3.4, weight=1.0))
        made.append(of("router.weight", shape=(8, 256), fmt="float32", headroom=13.0))
        made.append(of("experts.up", shape=(8, 256, 512), edq=0.98, headroom=2.2))
        made.append(of("experts.down", shape=(8, 512, 256), edq=0.98, headroom=2.2))
        made.append(of("output.bias", shape=(256,), edq=0.61, headroom=-0.6))
    made.append(
        parameter("norm.weight", shape=(256,), edq=0.0, headroom=-2.8, weight=1.0, stretches=stretches)
    )
    return tuple(made)


def frozen(names: Iterable[str]) -> Finding:
    """Return the finding of the BF16 scenario: norms that can't move in bfloat16."""
    return Finding(
        rule="PD101",
        name="frozen-parameter",
        severity="error",
        subjects=tuple(Subject(kind="parameter", name=name) for name in names),
        message=(
            "13 parameters in bfloat16 are frozen: |w| = 1, half-ULP 0.00195 down / 0.00391 up, intended "
            "update 2.9e-4: 2.7 bits short; 100 % of 166,400 observed updates lost."
        ),
        locations=(Location(place=CAST, role="cause"), Location(place=OPTIMIZER, role="site")),
        measured={
            "edq": 0.0,
            "lost_share": 1.0,
            "headroom_bits_p50": -2.7,
            "weight": 1.0,
            "intended_update": 2.9e-4,
            "decay": float("nan"),
        },
        prescriptions=(
            Prescription(
                remedy="autocast",
                rank=1,
                diff=DIFF,
                why="Keep the weights in float32 and cast the operations: updates then have 16 more bits.",
            ),
            Prescription(
                remedy="master-weights",
                rank=2,
                why="Let the optimizer step float32 copies and round them into the model: 4 bytes more each.",
            ),
            Prescription(
                remedy="stochastic-rounding",
                rank=3,
                why="Round updates up or down by chance, right in the mean: no extra memory, some noise.",
            ),
        ),
    )


def swallowed(names: Iterable[str]) -> Finding:
    """Return a warning whose line is only likely."""
    return Finding(
        rule="PD102",
        name="swallowed-update",
        severity="warning",
        subjects=tuple(Subject(kind="parameter", name=name) for name in names),
        message="39 % of the descent is lost to rounding (EDQ 0.61, 95 % interval 0.59 to 0.63).",
        locations=(
            Location(
                place=Place(
                    file="train.py", line=116, code="model = model.to(torch.bfloat16)", certain=False
                ),
                role="cause",
            ),
        ),
        measured={"edq": 0.61, "intended_update": 4e-5},
        prescriptions=(
            Prescription(
                remedy="kahan",
                rank=1,
                why="Carry what rounding lost to the next step: 2 bytes per parameter.",
            ),
        ),
    )


SIGNS = (
    VitalSign(name="gradients flow", status="ok", text="62 of 62 trainable parameters get a gradient"),
    VitalSign(
        name="the optimizer steps", status="ok", text="50 steps of AdamW, holding the model's parameters"
    ),
    VitalSign(name="learning rate", status="ok", text="3e-4 at every step"),
    VitalSign(
        name="updates survive the weight's format",
        status="ill",
        text="13 parameters are frozen in bfloat16, 6 lose a part of their descent",
    ),
    VitalSign(
        name="optimizer state survives its format", status="ok", text="second moments fall as they should"
    ),
    VitalSign(
        name="forward values",
        status="unknown",
        text="the operation probe was off; run without --no-probe to see them",
    ),
)


def run(**more: object) -> Run:
    """Return the facts of a short scan."""
    facts: dict[str, object] = {
        "target": "train.py", "argv": ("--lr", "3e-4"), "steps": 50, "observed": 14, "ended": "stopped",
        "torch": "2.13.0", "python": "3.12.3", "device": "cpu", "started": "2026-11-20T09:30:00+01:00",
        "seconds": 21.4, "observing_seconds": 0.31,
        "limits": ("Large tensors are watched at 1,024 elements each; shares are +-2 % or better.",),
    }  # fmt: skip
    return Run(**{**facts, **more})  # type: ignore[arg-type]


def evidence(parameters: tuple[Parameter, ...], stretches: int = 10) -> Evidence:
    """Return evidence of a run with these parameters."""
    group = Group(
        lr_first=3e-4, lr_last=3e-4, lr_max=3e-4, betas=(0.9, 0.95), eps=1e-8, tensors=len(parameters)
    )
    draw = random.Random(1)
    return Evidence(
        run=run(),
        parameters=parameters,
        optimizers=(
            Optimizer(
                type="torch.optim.adamw.AdamW",
                steps=50,
                observed=14,
                groups=(group,),
                place=OPTIMIZER,
                benches=(Bench(group=0, format="bfloat16", edq_small=0.0, edq_large=1.0),),
            ),
        ),
        losses=tuple((step, 8.3 * 0.985**step + draw.gauss(0, 0.05)) for step in range(50)),
        timeline=tuple(5 * (stretch + 1) for stretch in range(stretches)),
        excerpts=(("train.py", FIRST_LINE, tuple(SOURCE)),),
    )


def ill(parameters: tuple[Parameter, ...] | None = None, stretches: int = 10) -> Report:
    """Return the report of a run whose norms are frozen."""
    seen = model(stretches=stretches) if parameters is None else parameters
    still = [p.name for p in seen if p.updates is not None and p.updates.edq[0].edq == 0]
    lossy = [p.name for p in seen if p.updates is not None and 0 < p.updates.edq[0].edq < 0.9]
    findings = (frozen(still), *((swallowed(lossy),) if lossy else ()))
    summary = f"{len(still)} parameters are frozen: their updates are too small for bfloat16."
    diagnosis = Diagnosis(verdict="ill", summary=summary, vital_signs=SIGNS, findings=findings)
    return Report(evidence(seen, stretches), diagnosis)


def healthy() -> Report:
    """Return the report of a float32 run without a finding."""
    seen = tuple(
        parameter(f"layers.{i}.weight", fmt="float32", shape=(64, 64), headroom=12.0) for i in range(4)
    )
    signs = tuple(VitalSign(name=sign.name, status="ok", text="as it should be") for sign in SIGNS)
    summary = "Healthy: every parameter moves as the optimizer means it to."
    diagnosis = Diagnosis(verdict="healthy", summary=summary, vital_signs=signs, findings=())
    return Report(evidence(seen), diagnosis)


def nothing_seen() -> Report:
    """Return the report of a script that never stepped an optimizer."""
    signs = tuple(VitalSign(name=s.name, status="unknown", text="no optimizer stepped") for s in SIGNS)
    summary = "Unknown: no optimizer made a step, so no update was seen."
    diagnosis = Diagnosis(verdict="unknown", summary=summary, vital_signs=signs, findings=())
    seen = run(steps=0, observed=0, ended="failed", exit_code=1, error="ValueError: no data", limits=())
    return Report(Evidence(run=seen), diagnosis)


def many(parameters: int = 5000, stretches: int = 100) -> Report:
    """Return the report of a large model: one parameter in ten is a frozen norm."""
    made = []
    for index in range(parameters):
        name = f"model.layers.{index // 10}.mlp.experts.{index % 10}.projection"
        norm = index % 10 == 0
        made.append(
            parameter(
                f"{name}.norm.weight" if norm else f"{name}.weight",
                shape=(4096,) if norm else (4096, 1024),
                edq=0.0 if norm else 0.97,
                headroom=-3.0 if norm else 3.0,
                weight=1.0 if norm else 0.02,
                stretches=stretches,
                seed=index,
            )
        )
    return ill(tuple(made), stretches)
