from __future__ import annotations

import dataclasses

from precdoctor.evidence import Evidence, Tensor
from precdoctor.rules import diagnose
from precdoctor.rules.finding import Finding
from precdoctor.rules.unchanged_parameter import MIN_MOVED, UnchangedParameter
from tests.rules.checkpoints import alone, evidence, moved, norm, prognosis, still, stored, travel


def judged(*tensors: Tensor, **changes: object) -> dict[str, Finding]:
    found = UnchangedParameter.criterion(evidence(*tensors, **changes))  # type: ignore[arg-type]
    assert len({f.severity for f in found}) == len(found)
    return {f.severity: f for f in found}


def names(finding: Finding) -> list[str]:
    return [subject.name for subject in finding.subjects]


def trained(tensor: Tensor, **changes: object) -> Tensor:
    return dataclasses.replace(tensor, stepped=True, driven=True, **changes)  # type: ignore[arg-type]


def test_norms_that_rounding_held_are_a_warning() -> None:
    found = judged(moved(), norm("a.norm"), norm("b.norm"))
    assert list(found) == ["warning"]
    assert names(found["warning"]) == ["a.norm", "b.norm"]
    assert found["warning"].measured["exactly_one"] == 2
    assert found["warning"].measured["half_ulp"] == 2.0**-9
    assert "0.00195" in found["warning"].message
    assert found["warning"].prescriptions[0].remedy == "autocast"


def test_it_is_an_error_where_the_optimizer_trains_them_and_would_lose_the_next_update() -> None:
    ill = trained(norm(), prognoses=(prognosis(lost_share=1.0, weight=1.0, update=3e-4),))
    found = judged(moved(), ill)
    assert list(found) == ["error"]
    assert "3e-4" in found["error"].message


def test_an_optimizer_that_may_carry_what_is_lost_makes_it_a_note() -> None:
    carried = trained(norm(), prognoses=(prognosis(lost_share=1.0),), extra_state=("kahan_comp",))
    assert list(judged(moved(), carried)) == ["note"]


def test_an_element_that_moved_over_as_large_a_half_ulp_refutes_rounding() -> None:
    other = moved("gain", travel=travel(half_ulp_passed=2.0**-9))
    assert list(judged(moved(), other, norm())) == ["note"]


def test_a_weight_with_small_elements_was_not_held_by_rounding() -> None:
    assert list(judged(moved("a"), moved("b"), still())) == ["note"]


def test_a_frozen_backbone_under_adapters_is_a_note_and_so_are_its_norms() -> None:
    adapter = moved("lora.a", first=stored(shape=(4, 64)), second=stored(shape=(4, 64)))
    found = judged(adapter, still("base.0"), still("base.1"), norm())
    assert list(found) == ["note"]
    assert set(names(found["note"])) == {"base.0", "base.1", "norm.weight"}


def test_a_frozen_block_is_a_note_and_so_is_its_norm() -> None:
    block = [norm("blocks.0.norm.weight"), still("blocks.0.up.weight")]
    others = [moved(f"blocks.{i}.up.weight") for i in (1, 2)]
    found = judged(*block, *others, norm("blocks.1.norm.weight"))
    assert names(found["warning"]) == ["blocks.1.norm.weight"]
    assert set(names(found["note"])) == {"blocks.0.norm.weight", "blocks.0.up.weight"}


def test_what_the_optimizer_does_not_hold_is_frozen_on_purpose() -> None:
    assert judged(moved(stepped=True), norm(stepped=False), still(stepped=False)) == {}


def test_a_copy_of_a_float32_master_is_healthy() -> None:
    assert judged(moved(), norm(stepped=True, driven=True, has_master=True)) == {}


def test_float32_is_never_blamed_on_rounding() -> None:
    wide = stored(format="float32", shape=(64,), constant=1.0, ones=64)
    assert list(judged(moved(), norm(first=wide, second=wide))) == ["note"]


def test_buffers_masks_and_tables_are_left_out() -> None:
    table, mask = stored(shape=(64,), monotonic=True), stored(is_mask=True)
    assert (
        judged(
            moved(),
            norm("running_mean", kind="buffer"),
            norm("inv_freq", first=table, second=table),
            still("bias", first=mask, second=mask),
            norm("exp_avg", kind="state"),
        )
        == {}
    )


def test_too_few_moved_elements_tell_nothing_about_rounding() -> None:
    few = moved(travel=travel(sampled=MIN_MOVED - 1))
    assert list(judged(few, norm())) == ["note"]


def test_two_identical_files_are_a_note() -> None:
    found = judged(norm(), still())
    assert list(found) == ["note"]
    assert "one checkpoint" in found["note"].message


def test_nothing_is_said_of_weights_that_all_moved() -> None:
    assert judged(moved("a"), moved("b")) == {}


def test_one_file_alone_shows_norms_that_are_still_at_one() -> None:
    known = judged(alone(moved()), alone(trained(norm())), files=1)
    assert list(known) == ["warning"]
    unknown = judged(alone(moved()), alone(norm()), files=1)
    assert list(unknown) == ["note"]
    assert judged(alone(norm()), files=1) == {}  # a fresh model has nothing else


def test_other_evidence_is_no_concern() -> None:
    assert UnchangedParameter.criterion(Evidence(run=evidence().run)) == []


def test_verdicts_of_checkpoints() -> None:
    assert diagnose(evidence(moved(), norm())).verdict == "ill"
    assert diagnose(evidence(moved("a"), moved("b"))).verdict == "healthy"
    assert diagnose(evidence(still())).verdict == "unknown"
    assert diagnose(evidence(alone(moved()), files=1)).verdict == "unknown"
    fine = prognosis(lost_share=0.0, edq=1.0)
    assert diagnose(evidence(alone(trained(moved(), prognoses=(fine,))), files=1)).verdict == "healthy"
