from __future__ import annotations

from typing import Any

from precdoctor.evidence import Evidence, Forward, Place, Quantizer, Region
from precdoctor.rules.stale_autocast_cache import StaleAutocastCache
from precdoctor.rules.stale_quantized_weight import StaleQuantizedWeight
from tests.rules.build import evidence, parameter

OPENED, MADE, USED = (Place(file="train.py", line=n) for n in (25, 21, 12))


def cast(**changes: Any) -> Quantizer:
    values: dict[str, Any] = {
        "parameter": "net.0.weight",
        "kind": "cast",
        "numel": 768,
        "format": "bfloat16",
        "route": "open",
        "used_at": USED,
        "seen": 19,
        "age_steps": 70,
        "stale_share": 0.99,
        "weight_moved": 0.26,
        "used_moved": 0.0,
    }
    return Quantizer(**{**values, **changes})


def region(steps: int, **changes: Any) -> Region:
    values: dict[str, Any] = {"place": MADE, "entered_at": OPENED, "entered": 1, "enabled": True}
    values |= {"device": "cpu", "format": "bfloat16", "requested": True, "steps_inside": steps}
    return Region(**{**values, **changes})


def run(quantizer: Quantizer, *regions: Region, forward: str = "") -> Evidence:
    forwards = (Forward(place=USED, autocast=forward),) if forward else ()
    weight = parameter("net.0.weight", format="float32")
    return evidence(weight, quantizers=(quantizer,), regions=regions, forwards=forwards)


def test_the_region_around_the_steps_is_the_cause() -> None:
    (finding,) = StaleAutocastCache.criterion(run(cast(), region(150)))
    assert finding.severity == "error"
    assert [(x.place, x.role) for x in finding.locations][:2] == [(OPENED, "cause"), (MADE, "site")]
    assert "up to 70 steps old" in finding.message
    assert finding.prescriptions[0].remedy == "refresh-cache"


def test_an_outer_region_that_is_disabled_keeps_the_casts_of_those_inside() -> None:
    inner, outer = region(0, entered=150), region(150, enabled=False, entered_at=MADE)
    (finding,) = StaleAutocastCache.criterion(run(cast(), inner, outer))
    assert finding.locations[0].place == MADE


def test_autocast_switched_on_without_a_region_is_found_at_the_use() -> None:
    (finding,) = StaleAutocastCache.criterion(run(cast(), forward="bfloat16"))
    assert finding.locations[0].place == USED
    assert finding.message.startswith("Autocast stays on")


def test_a_region_for_each_epoch_keeps_casts_for_an_epoch() -> None:
    assert StaleAutocastCache.criterion(run(cast(used_moved=0.2), region(10, entered=15)))


def test_a_cast_that_follows_its_weight_is_healthy() -> None:
    assert not StaleAutocastCache.criterion(run(cast(used_moved=0.2), region(1)))
    assert not StaleAutocastCache.criterion(run(cast(age_steps=0), region(0)))


def test_what_the_program_keeps_itself_is_another_illness() -> None:
    for own in (cast(kind="quantizer"), cast(format="float16")):
        assert not StaleAutocastCache.criterion(run(own, region(150)))
        assert StaleQuantizedWeight.criterion(run(own, region(150)))
    assert not StaleQuantizedWeight.criterion(run(cast(), region(150)))


def test_weights_swapped_in_inside_a_region_are_not_used() -> None:
    swapped = cast(age_steps=0, stale_share=None, outdated_steps=5, outdated_share=0.9, outdated_at=USED)
    (finding,) = StaleAutocastCache.criterion(run(swapped, region(0, entered=150)))
    assert [(x.place, x.role) for x in finding.locations] == [(OPENED, "cause"), (USED, "site")]
    assert "in 5 of 19 steps seen" in finding.message


def test_a_weight_written_once_or_without_a_cache_is_another_matter() -> None:
    once = cast(age_steps=0, stale_share=None, outdated_steps=1, outdated_share=0.9)
    assert not StaleAutocastCache.criterion(run(once, region(0)))
    often = cast(age_steps=0, stale_share=None, outdated_steps=5, outdated_share=0.9)
    assert not StaleAutocastCache.criterion(run(often, region(0, cached=False)))
    barely = cast(age_steps=0, stale_share=None, outdated_steps=5, outdated_share=0.01)
    assert not StaleAutocastCache.criterion(run(barely, region(0)))
