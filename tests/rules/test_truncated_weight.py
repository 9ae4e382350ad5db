"""PD106 finds weights that are rounded in place after the step, and only those."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from precdoctor.evidence import Accumulation, Cast, Evidence, Parameter, Place, Quantizer, WindowedEdq
from precdoctor.rules.truncated_weight import TruncatedWeight
from tests.rules import build

STORE = Place(file="layers.py", line=40)


def written(name: str = "weight", **changes: Any) -> Quantizer:
    values = {"kind": "plain", "numel": 64, "format": "float32", "route": "open", "rewritten_at": STORE}
    return Quantizer(parameter=name, **{**values, **changes})


def trained(
    name: str = "weight", edq: float = 0.02, high: float | None = None, share: float = 0.9
) -> Parameter:
    left = WindowedEdq(window=1, edq=edq, low=edq - 0.02, high=edq + 0.02 if high is None else high)
    updates = build.updates(rewritten=left, rewritten_share=share)
    return build.parameter(name, format="float32", updates=updates)


def run(*parameters: Parameter, quantizers: tuple[Quantizer, ...] = (written(),)) -> Evidence:
    return build.evidence(*parameters, quantizers=quantizers)


@pytest.mark.parametrize(
    ("edq", "high", "severity"),
    [(0.006, None, "error"), (0.66, 0.69, "error"), (0.66, 0.71, "warning"), (0.85, 0.89, "warning")],
)
def test_what_is_left_decides_how_grave_it_is(edq: float, high: float | None, severity: str) -> None:
    (finding,) = TruncatedWeight.criterion(run(trained(edq=edq, high=high)))

    assert (finding.rule, finding.severity) == ("PD106", severity)
    assert [place.place for place in finding.locations if place.role == "cause"] == [STORE]
    assert finding.measured["edq"] == edq


@pytest.mark.parametrize(
    "evidence",
    [
        run(trained(edq=0.85, high=0.91)),
        run(trained(share=0.04)),
        run(trained(), quantizers=()),  # written over by something else: a projection, an average
        run(trained(), quantizers=(written(rewritten_at=None),)),
        run(build.parameter(updates=build.updates())),
    ],
    ids=["most is left", "hardly written over", "not by its own rounding", "not written over", "unknown"],
)
def test_is_silent_where_updates_are_kept_or_written_over_on_purpose(evidence: Evidence) -> None:
    assert TruncatedWeight.criterion(evidence) == []


@pytest.mark.parametrize(
    ("before", "narrowed", "severities"),
    [("bfloat16", 1.0, ["error"]), ("float16", 1.0, ["error"]), ("float64", 1.0, []), ("bfloat16", 0.9, [])],
)
def test_a_module_that_is_cast_to_16_bits_and_back(
    before: str, narrowed: float, severities: list[str]
) -> None:
    back = Cast(before=before, after="float32", how="module.float", place=STORE)
    weight = trained(share=0.25)
    assert weight.updates is not None
    updates = dataclasses.replace(weight.updates, narrowed_share=narrowed)
    found = TruncatedWeight.criterion(
        run(dataclasses.replace(weight, cast=back, updates=updates), quantizers=())
    )
    assert [f.severity for f in found] == severities
    for finding in found:
        assert [place.place for place in finding.locations if place.role == "cause"] == [STORE]


def test_stochastic_rounding_is_judged_by_its_bias_not_by_its_noise() -> None:
    stochastic = (written(rewritten_at_random=True),)

    assert TruncatedWeight.criterion(run(trained(edq=0.6), quantizers=stochastic)) == []
    (finding,) = TruncatedWeight.criterion(run(trained(edq=0.1), quantizers=stochastic))
    assert finding.severity == "error"


def test_weights_written_by_one_line_are_one_finding() -> None:
    names = ("a.weight", "b.weight", "c.weight", "d.weight")
    evidence = run(*map(trained, names), quantizers=tuple(map(written, names)))

    (finding,) = TruncatedWeight.criterion(evidence)

    assert tuple(s.name for s in finding.subjects) == names
    assert "4 weights" in finding.message


@pytest.mark.parametrize(("high", "severity"), [(0.69, "error"), (0.75, "warning"), (0.95, None)])
def test_what_is_left_of_a_merge_is_judged_by_the_same_limits(high: float, severity: str | None) -> None:
    made, added = Place(file="lora.py", line=10), Place(file="lora.py", line=19, function="merge")
    merged = Accumulation(
        kind="merge",
        format="bfloat16",
        place=added,
        function="merge",
        origin=made,
        names=("fc1.weight",),
        updates=10,
        edq=high - 0.01,
        edq_high=high,
        lost_share=0.6,
    )
    found = TruncatedWeight.criterion(build.evidence(accumulations=(merged,)))

    assert [f.severity for f in found] == [severity][: severity is not None]
    for finding in found:
        assert [(p.place, p.role) for p in finding.locations] == [(made, "cause"), (added, "site")]
        assert [s.name for s in finding.subjects] == ["fc1.weight", "merge"]
