from __future__ import annotations

from typing import Any

from precdoctor.evidence import Evidence, Place, Product, Region
from precdoctor.rules.inactive_autocast import InactiveAutocast
from tests.rules.build import evidence, parameter

OPENED = Place(file="train.py", line=38)


def product(format: str = "float32", device: str = "cpu", count: int = 45) -> Product:
    return Product(device=device, format=format, count=count, trained=count)


def region(*products: Product, **changes: Any) -> Region:
    values: dict[str, Any] = {
        "device": "cpu",
        "format": "bfloat16",
        "requested": True,
        "enabled": True,
        "place": OPENED,
        "entered_at": OPENED,
        "entered": 60,
        "seen": 5,
        "products": products,
    }
    return Region(**{**values, **changes})


def run(*regions: Region, outside: tuple[Product, ...] = ()) -> Evidence:
    return evidence(parameter(), regions=regions, products_outside=outside)


def test_a_region_for_a_device_that_is_not_there_changes_nothing() -> None:
    (finding,) = InactiveAutocast.criterion(run(region(product(), device="cuda", enabled=False)))
    assert finding.severity == "warning"
    assert finding.locations[0].place == OPENED
    assert (
        "the region is for cuda, and what runs in it is on cpu, and torch has disabled it" in finding.message
    )
    assert 'torch.autocast("cpu", ...)' in finding.prescriptions[0].why


def test_a_region_for_another_device_than_the_tensors_changes_nothing() -> None:
    (finding,) = InactiveAutocast.criterion(run(region(product(device="cuda"))))
    assert "the region is for cpu, and what runs in it is on cuda" in finding.message


def test_a_region_that_casts_is_healthy() -> None:
    assert not InactiveAutocast.criterion(run(region(product("bfloat16"), product("float32"))))


def test_a_region_that_nobody_asked_for_is_healthy() -> None:
    assert not InactiveAutocast.criterion(run(region(product(), requested=False, enabled=False)))


def test_a_region_that_was_asked_for_in_float32_does_what_was_asked() -> None:
    """`torch.autocast(device, dtype=torch.float32)`, which torch disables, is how programs switch it off."""
    assert not InactiveAutocast.criterion(run(region(product(), format="float32", enabled=False)))


def test_a_region_around_the_loss_alone_changes_nothing() -> None:
    (finding,) = InactiveAutocast.criterion(run(region(), outside=(product(),)))
    assert "no matrix product of a forward pass runs inside it" in finding.message


def test_a_region_that_was_entered_only_while_nobody_looked_is_not_judged() -> None:
    assert not InactiveAutocast.criterion(run(region(seen=0), outside=(product(),)))


def test_products_of_data_outside_are_no_reason() -> None:
    data = Product(device="cpu", format="float32", count=50, trained=0)
    assert not InactiveAutocast.criterion(run(region(), outside=(data,)))


def test_a_region_of_no_effect_beside_one_that_has_is_healthy() -> None:
    assert not InactiveAutocast.criterion(run(region(), region(product("bfloat16")), outside=(product(),)))


def test_a_region_that_was_made_and_never_entered_changes_nothing() -> None:
    (finding,) = InactiveAutocast.criterion(run(region(entered=0, seen=0), outside=(product(),)))
    assert "it was made and never entered" in finding.message


def test_a_region_whose_layers_run_in_other_threads_changes_nothing() -> None:
    called = Place(file="train.py", line=12)
    (finding,) = InactiveAutocast.criterion(run(region(layers_elsewhere=24, elsewhere=called)))
    assert "it holds for the thread that opens it, and the model runs in others" in finding.message
    assert [x.place for x in finding.locations] == [OPENED, called]


def test_a_region_with_products_of_its_own_is_not_judged_by_other_threads() -> None:
    assert not InactiveAutocast.criterion(run(region(product("bfloat16"), layers_elsewhere=24)))
    assert not InactiveAutocast.criterion(run(region(seen=0, layers_elsewhere=24)))
