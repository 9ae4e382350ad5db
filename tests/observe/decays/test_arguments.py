"""Numbers that a call is given are read from its line and frame, and nothing of the program is run for it."""

from __future__ import annotations

import gc
import math
import sys
import weakref
from types import SimpleNamespace

from precdoctor.observe.decays.arguments import first_number

GAMMA = 0.75


class Settings:
    __slots__ = ("gamma",)

    def __init__(self) -> None:
        self.gamma = 0.75


class Computed:
    now: Computed

    @property
    def gamma(self) -> float:
        return 0.75


Computed.now = Computed()


def tensor(data: object, dtype: object = None) -> float | None:
    """Stand for a function of torch: tell what it was called with by its caller's frame."""
    return first_number(sys._getframe(1))


def test_reads_constants_variables_attributes_items_and_arithmetic() -> None:
    gamma, settings = 0.75, Settings()
    args = SimpleNamespace(rl={"gamma": [0.5, 0.75]})
    found = [
        tensor(0.75),
        tensor([0.75]),
        tensor(gamma),
        tensor(data=GAMMA),
        tensor(settings.gamma, dtype=float),
        tensor(args.rl["gamma"][1]),
        tensor(1 - 1 / 4),
        tensor(math.sqrt(0.5625)),
        tensor(float(gamma)),
        (lambda: tensor(gamma))(),
    ]
    assert found == [0.75] * len(found)


def test_of_two_calls_on_one_line_each_gets_its_own() -> None:
    if sys.version_info >= (3, 11):
        assert (tensor(0.5), tensor(0.25)) == (0.5, 0.25)


def test_leaves_alone_what_it_would_have_to_run() -> None:
    given = {0: 0.5}
    assert tensor(max(0.5, 0.25)) is None
    assert tensor([0.5, 0.25]) is None
    assert tensor("0.5") is None
    assert tensor(*[0.5]) is None
    assert tensor(given.get(0)) is None
    assert tensor(Settings().gamma) is None
    assert tensor(Computed.now.gamma) is None
    assert first_number(sys._getframe(0)) is None


class Kept:
    """An object that tells when it goes."""


def test_what_a_function_lets_go_of_goes() -> None:
    number, kept = 0.5, Kept()
    mine = weakref.ref(kept)
    assert tensor(number) == 0.5
    del kept
    gc.collect()
    assert mine() is None
