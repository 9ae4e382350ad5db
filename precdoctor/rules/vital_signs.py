"""The checklist: eight signs, each ok, ill, or unknown with the reason. Not seen is not healthy."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median
from typing import Literal

from precdoctor.evidence import Evidence
from precdoctor.rules.descent import MIN_RELATIVE_RMS, quality
from precdoctor.rules.finding import Finding, VitalSign
from precdoctor.rules.gradients import without_gradient
from precdoctor.rules.reading import Stepped, gets_gradient, stepped
from precdoctor.rules.wording import count, number, several, short_type

#: update over weight (rms per step, median over the parameters) beyond which a step replaces the weights
#: instead of changing them
MAX_RELATIVE_RMS = 1.0
#: share of the trained elements whose updates have to be known
MIN_KNOWN_SHARE = 0.1
#: loss scale below which scaling no longer scales up: torch's GradScaler starts at 65,536
MIN_LOSS_SCALE = 1.0

#: the sign without which no run is called healthy
SURVIVAL = "updates survive the weight's format"
_NO_STEP = "no optimizer step was seen"


def vital_signs(evidence: Evidence, findings: Sequence[Finding]) -> tuple[VitalSign, ...]:
    """Return the eight signs in their fixed order; errors and warnings among ``findings`` make them ill."""
    grave = [f for f in findings if f.severity != "note"]
    return (
        _gradients(evidence, grave),
        _optimizers(evidence, grave),
        _learning_rate(evidence),
        _updates(evidence, grave),
        _states(evidence, grave),
        _forward(evidence, grave),
        _loss_scaling(evidence, grave),
        _quantizers(evidence, grave),
    )


def was_stepped(evidence: Evidence) -> bool:
    """Tell whether optimizer steps were observed."""
    return any(o.observed > 0 for o in evidence.optimizers)


def gradients_flowed(evidence: Evidence) -> bool:
    """Tell whether a gradient other than zero was seen at an optimizer step."""
    return any(gets_gradient(p) for p in evidence.parameters)


def _gradients(evidence: Evidence, grave: Sequence[Finding]) -> VitalSign:
    name = "gradients flow"
    ill = _named(grave, ("PD201", "PD202", "PD203", "PD204", "PD205", "PD601"))
    if ill:
        return _ill(name, ill)
    trained = [p for p in evidence.parameters if p.trainable and p.optimizer is not None]
    flowing = [p for p in trained if gets_gradient(p)]
    if not was_stepped(evidence):
        return _unknown(name, _NO_STEP)
    if not flowing:
        return _unknown(name, "no gradient other than zero was seen")
    text = f"{len(flowing):,} of {count(len(trained), 'parameter')} in optimizers got gradients"
    idle = without_gradient(evidence)
    if idle:
        text += f"; {several([p.name for p in idle])} never did (unused)"
    return _ok(name, text)


def _optimizers(evidence: Evidence, grave: Sequence[Finding]) -> VitalSign:
    name = "the optimizer steps and holds the model's parameters"
    ill = _named(grave, ("PD406", "PD407"))
    if ill:
        return _ill(name, ill)
    if not was_stepped(evidence):
        return _unknown(name, _NO_STEP)
    kinds = [
        f"{short_type(o.type)} made {count(o.steps, 'step')} ({o.observed:,} observed)"
        for o in evidence.optimizers
    ]
    left_out = [
        p for p in evidence.parameters if p.trainable and p.optimizer is None and not p.copy_of_master
    ]
    text = several(kinds)
    if left_out:
        text += f"; {several([p.name for p in left_out])} in none"
    return _ok(name, text)


def _learning_rate(evidence: Evidence) -> VitalSign:
    name = "the learning rate is in range"
    if not was_stepped(evidence):
        return _unknown(name, _NO_STEP)
    groups = [g for o in evidence.optimizers if o.observed for g in o.groups]
    rates = [g.lr_max for g in groups if g.lr_max is not None]
    if rates and any(not math.isfinite(r) or r < 0 for r in rates):
        return _ill(
            name, f"a learning rate of {number(next(r for r in rates if not math.isfinite(r) or r < 0))}"
        )
    if rates and max(rates) == 0:
        return _ill(name, "it was 0 at every observed step")
    # parameters that start at zero have no relative update
    items = stepped(evidence)
    known = [
        i
        for i in items
        if i.updates.intended and math.isfinite(i.updates.relative_rms) and i.updates.relative_rms > 0
    ]
    if not known:
        return _unknown(name, "the intended updates are not known")
    if _elements(known) < MIN_KNOWN_SHARE * _elements(items):
        return _unknown(
            name, f"the intended updates are known of {len(known)} of {len(items)} parameters only"
        )
    middle = median(i.updates.relative_rms for i in known)
    text = f"the median parameter is meant to change by {number(middle)} of itself per step"
    if rates:
        low, high = number(min(rates)), number(max(rates))
        text += f", lr {high}" if low == high else f", lr {low} .. {high}"
    if middle < MIN_RELATIVE_RMS:
        return _ill(name, f"{text}: less than 1 % in 10,000 steps")
    if middle > MAX_RELATIVE_RMS:
        return _ill(name, f"{text}: a step replaces the weights")
    return _ok(name, text)


def _elements(items: Sequence[Stepped]) -> int:
    return sum(math.prod(i.parameter.shape) for i in items)


def _updates(evidence: Evidence, grave: Sequence[Finding]) -> VitalSign:
    name = SURVIVAL
    ill = _named(grave, ("PD101", "PD102", "PD103", "PD104", "PD105", "PD106"))
    if ill:
        return _ill(name, ill)
    if not was_stepped(evidence):
        return _unknown(name, _NO_STEP)
    items = stepped(evidence)
    low = [i for i in items if i.is_low]
    wide = len(items) - len(low)
    if not low:
        if not items:
            return _unknown(name, "no update was observed")
        return _ok(name, f"all {count(wide, 'trained parameter')} in float32 or wider")
    rated = [(i, q) for i in low if (q := quality(i, evidence.run)) is not None]
    carried = [i for i in low if i.preserves]
    if rated:
        lowest, worst = min(rated, key=lambda pair: pair[1].edq)
        text = f"EDQ {number(worst.edq)} at the worst ({lowest.parameter.name}, {lowest.format.name})"
    elif carried:
        kind = short_type(carried[0].optimizer.type)
        text = f"{kind} brings updates below half an ulp through, as its bench test shows"
    else:
        return _unknown(
            name,
            f"updates in {low[0].format.name} were not replayed: {low[0].updates.why_not or 'none intended'}",
        )
    if wide:
        text += f"; {count(wide, 'parameter')} in float32 or wider"
    return _ok(name, text)


def _states(evidence: Evidence, grave: Sequence[Finding]) -> VitalSign:
    name = "optimizer state survives its format"
    ill = _named(grave, ("PD301", "PD302", "PD303", "PD304", "PD305"))
    if ill:
        return _ill(name, ill)
    if not was_stepped(evidence):
        return _unknown(name, _NO_STEP)
    if not evidence.states:
        low = any(i.is_low and i.updates.replay == "none" for i in stepped(evidence))
        if low:
            return _unknown(name, "the optimizer could not be replayed")
        return _ok(name, "no state tensor below float32 was seen")
    kept = min(evidence.states, key=lambda s: s.edq)
    return _ok(
        name,
        f"{count(len(evidence.states), 'tensor')} below float32; EDQ {number(kept.edq)} at the worst "
        f"({kept.key} of {kept.parameter})",
    )


def _forward(evidence: Evidence, grave: Sequence[Finding]) -> VitalSign:
    name = "forward values stay finite and exact"
    rules = ("PD501", "PD502", "PD503", "PD504", "PD505", "PD506", "PD507", "PD508", "PD509")
    named = _named(grave, ("PD401", "PD408", *rules))
    if named:
        return _ill(name, named)
    ill = [p for p in evidence.parameters if p.weight is not None and p.weight.non_finite]
    if ill:
        return _ill(name, f"weights are inf or NaN: {several([p.name for p in ill])}")
    if evidence.losses and not math.isfinite(evidence.losses[-1][1]):
        step = next(step for step, loss in evidence.losses if not math.isfinite(loss))
        return _ill(
            name, f"the loss is {evidence.losses[-1][1]}, not finite since step {step:,} at the latest"
        )
    seen = "; weights and loss are finite" if evidence.losses else ""
    exactness = evidence.exactness
    if exactness is None or not exactness.operations:
        return _unknown(name, f"values inside the model were not looked at{seen}")
    passes = count(exactness.passes, "forward pass").replace("passs", "passes")
    return _ok(name, f"{count(exactness.operations, 'operation')} of {passes} beside float64{seen}")


def _loss_scaling(evidence: Evidence, grave: Sequence[Finding]) -> VitalSign:
    name = "loss scaling is alive"
    ill = _named(grave, ("PD402", "PD403", "PD404"))
    if ill:
        return _ill(name, ill)
    enabled = [s for s in evidence.scalers if s.enabled]
    if not evidence.scalers and not was_stepped(evidence):
        return _unknown(name, _NO_STEP)
    if not evidence.scalers:
        return _ok(name, "not used")
    if not enabled:
        return _ok(name, "not used (the scaler is disabled)")
    scale = min(s.scale for s in enabled)
    if not scale >= MIN_LOSS_SCALE:
        return _ill(name, f"the scale has fallen to {number(scale)}")
    return _ok(name, f"the scale is {scale:,.0f} at the end")


def _quantizers(evidence: Evidence, grave: Sequence[Finding]) -> VitalSign:
    name = "quantizers pass gradients"
    ill = _named(grave, ("PD601", "PD602", "PD603", "PD604"))
    if ill:
        return _ill(name, ill)
    backward = evidence.backward
    if backward is None:
        return _unknown(name, "no backward pass was seen")
    blocked = [f for f in grave if f.rule == "PD202" and "zero_nodes" in f.measured]
    if blocked:
        return _ill(name, blocked[0].message)
    if _named(grave, ("PD201", "PD202")):
        return _unknown(name, "gradients are missing, and no quantizer of a weight was seen")
    weights = [q for q in evidence.quantizers if q.kind == "quantizer" and q.route == "open"]
    if weights:
        noise = [q.last.sqnr_db for q in weights if q.last is not None and q.last.sqnr_db is not None]
        text = f"{count(len(weights), 'quantized weight')} with a way back"
        return _ok(name, f"{text}, {number(min(noise))} dB at the worst" if noise else text)
    if backward.zero_nodes:
        return _ok(name, f"{several(backward.zero_nodes)} in the graph of the loss, with a way around")
    return _ok(name, "none that blocks a gradient: no rounding in the graph of the loss")


def _named(grave: Sequence[Finding], rules: Collection[str]) -> str:
    """Return what the findings of these rules say in short; empty when there are none."""
    found = [f for f in grave if f.rule in rules]
    parts = [f"{f.rule} {f.name}: {several([s.name for s in f.subjects])}" for f in found]
    return "; ".join(dict.fromkeys(parts))


def _ok(name: str, text: str) -> VitalSign:
    return _sign(name, "ok", text)


def _ill(name: str, text: str) -> VitalSign:
    return _sign(name, "ill", text)


def _unknown(name: str, text: str) -> VitalSign:
    return _sign(name, "unknown", text)


def _sign(name: str, status: Literal["ok", "ill", "unknown"], text: str) -> VitalSign:
    return VitalSign(name=name, status=status, text=text)
