"""What a comparison says, in sentences. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from precdoctor.comparison.result import Difference, FormatResult
from precdoctor.comparison.statistics import FEWEST
from precdoctor.report import words
from precdoctor.rules.wording import number, several

#: a difference of less than this share of the loss keeps no model from learning. Own choice: a training that
#: fails for its precision loses tens of percent, or everything
SMALL = 0.01

#: agrees: not told apart, and any difference is small; small: told apart, by little; differs: told apart, and
#: it may be more than little; broken: the loss is not finite; open: too few samples to say
Status = Literal["agrees", "small", "differs", "broken", "open"]


def status(result: FormatResult, exact: float) -> Status:
    """Return what a format turned out to be; ``exact`` is the loss in float32."""
    difference = result.difference
    if not math.isfinite(result.loss):
        return "broken"
    if difference is None or all(d == 0 for d in (difference.mean, difference.error)):
        return "agrees"
    is_little = _reach(difference) <= SMALL * abs(exact)
    if difference.is_significant:
        return "small" if is_little else "differs"
    return "agrees" if is_little else "open"


def sentences(formats: Sequence[FormatResult], unit: str = "sample") -> tuple[str, ...]:
    """Return one sentence for each format that needs one, and last what follows for training."""
    reference, others = formats[0], formats[1:]
    computed = [result for result in others if result.kind == "computed"]
    rounded = [result for result in others if result.kind == "weights"]
    said = [_sentence(result, reference) for result in rounded]
    said += [
        _sentence(result, reference) for result in computed if status(result, reference.loss) != "agrees"
    ]
    if not others:
        return (
            f"Only float32 was evaluated: name another format with --formats. Loss {reference.loss:.4g}.",
        )
    return (*said, _conclusion(computed or rounded, reference, unit))


def _sentence(result: FormatResult, reference: FormatResult) -> str:
    difference, name = result.difference, label(result)
    assert difference is not None
    found = status(result, reference.loss)
    if found == "broken":
        lost = sum(not math.isfinite(loss) for loss in result.losses)
        told = f"{name}: the loss is not finite in {lost} of {len(result.losses)}"
        return f"{told}{_where(result)}.{_kept(result)}"
    losses = _losses([result, reference])
    if found == "agrees":
        return f"{name} and float32 agree within noise ({losses})."
    if found == "open":
        return f"{name} and float32 are not told apart ({losses}), by so few or so different samples."
    way = "above" if difference.mean > 0 else "below"
    size = words.difference(abs(difference.mean), difference.error).lstrip("+")
    share = _percent(abs(difference.mean), reference.loss)
    told = f"{name} is {size} {way} float32 ({losses}), {share} of the loss"
    if found == "small":
        return f"{told}: beyond noise, and little."
    return f"{told}{_where(result)}.{_kept(result)}"


def _where(result: FormatResult) -> str:
    """Return where it begins."""
    layer = result.departs
    if layer is None:
        return "; no layer departs further than rounding explains" if result.layers else ""
    name = words.printable(layer.name)
    if layer.overflows:
        return (
            f"; {name} is the first whose output is not finite (in float32 it reaches {number(layer.amax)})"
        )
    return (
        f"; {name} is the first that departs further than rounding explains "
        f"(SQNR {layer.sqnr_db:.0f} dB, by rounding alone {layer.expected_db:.0f} dB)"
    )


def _kept(result: FormatResult) -> str:
    """Return what keeping layers in float32 does."""
    found = result.sensitivity
    if found is None:
        return ""
    if found.together is None:
        tried = words.count(len(found.alone))
        return f" None of the {tried} layers tried in float32 alone changes that."
    names = several([words.printable(name) for name in found.together.names])
    after, before = found.together.difference, found.before
    return f" With {names} kept in float32, {_signed(after)} is left of {_signed(before)}."


def _conclusion(results: Sequence[FormatResult], reference: FormatResult, unit: str) -> str:
    by: dict[Status, list[FormatResult]] = {}
    for result in results:
        by.setdefault(status(result, reference.loss), []).append(result)
    fine = [*by.get("agrees", []), *by.get("small", [])]
    pair = f"({_losses([*by.get('agrees', fine), reference])})"
    if worst := [*by.get("broken", []), *by.get("differs", [])]:
        verb = "make" if len(fine) > 1 else "makes"
        alike = f" {_listed(fine)} {verb} no difference that matters." if fine else ""
        return (
            f"Inference precision matters: in {_listed(worst)} this is not the model that it is in "
            f"float32, so look there before you blame the training.{alike}"
        )
    if unclear := by.get("open"):
        count = len(reference.losses)
        reach = max(_reach(r.difference) for r in unclear if r.difference is not None)
        if math.isfinite(reach):
            why = f"a difference of up to {_percent(reach, reference.loss)} of the loss is possible"
        else:
            why = f"at least {FEWEST} are needed"
        plural = f"{count} {unit}{'' if count == 1 else 'es' if unit == 'batch' else 's'}"
        return f"{plural} can't tell {_listed(unclear)} from float32: {why}. Give more, with --samples."
    if agree := by.get("agrees"):
        return (
            f"{_listed([*agree, reference])} agree within noise {pair}: if training fails, it is not "
            "inference precision."
        )
    most = max(abs(r.difference.mean) for r in fine if r.difference is not None)
    differ = "differ" if len(fine) > 1 else "differs"
    return (
        f"{_listed(fine)} {differ} from float32 beyond noise, but by {_percent(most, reference.loss)} of the "
        f"loss {pair}: if training fails, it is not inference precision."
    )


def label(result: FormatResult) -> str:
    """Return the format's name; of a format of weights, with what was done."""
    return f"{result.name} (weights only, simulated)" if result.kind == "weights" else result.name


def decimals(results: Sequence[FormatResult]) -> int:
    """Return how many decimals losses need, so that their differences can be seen."""
    sizes = [
        size
        for result in results
        if result.difference is not None
        for size in (abs(result.difference.mean), result.difference.error)
        if math.isfinite(size) and size > 0
    ]
    finest = min(sizes, default=1e-3)
    return min(max(math.ceil(-math.log10(finest)), 3), 7)


def _losses(results: Sequence[FormatResult]) -> str:
    digits = decimals(results)
    return " / ".join(f"{result.loss:.{digits}f}" for result in results)


def _listed(results: Sequence[FormatResult]) -> str:
    names = [result.name for result in results]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _signed(difference: Difference) -> str:
    return words.difference(difference.mean, difference.error)


def _reach(difference: Difference) -> float:
    return max(abs(difference.low), abs(difference.high))


def _percent(size: float, of: float) -> str:
    if not of:
        return number(size)
    percent = 100 * size / abs(of)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
