"""The shape of a remedy. A remedy is one class in one file; its docstring is its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from precdoctor.rules.wording import several

if TYPE_CHECKING:
    from precdoctor.remedies.intervention import Intervention

FLOAT32_BITS = 32


class DoesNotApply(Exception):
    """The remedy has nothing to act on in this program; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """A remedy as it is to be tried on one program."""

    #: id of the remedy
    remedy: str
    #: what it is to be set to, such as {"factor": 10.0}
    settings: dict[str, float | str] = field(default_factory=dict)
    #: names of the parameters to treat; empty: all
    subjects: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return the remedy's id with its settings: "group-lr x10", "eps 1e-4"."""
        return " ".join([self.remedy, *(_worded(name, value) for name, value in self.settings.items())])

    def number(self, name: str, default: float | None = None) -> float:
        """Return a setting as a number. Raises ValueError where neither it nor a default is there."""
        value = self.settings.get(name, default)
        if value is None:
            raise ValueError(f"{self.remedy} has to be told its {name}")
        return float(value)


class Remedy:
    """One treatment: what it does, what it costs, and how to apply it from outside the program.

    Subclasses import torch inside `apply` only, so that the catalogue can be listed without it.
    """

    #: "stochastic-rounding"; never changes once landed
    id: ClassVar[str]
    #: tensors as large as the parameter that are float32 instead of the weight's format
    widened: ClassVar[int] = 0
    #: further ones that it adds, in float32 and in the weight's format
    masters: ClassVar[int] = 0
    remainders: ClassVar[int] = 0
    #: float32 ones that weights get which had no gradient: gradient and state
    awakened: ClassVar[int] = 0

    @classmethod
    def doses(cls, settings: Mapping[str, float | str]) -> tuple[Mapping[str, float | str], ...]:
        """Return the settings worth trying, given those that a rule has computed."""
        return (settings,)

    @classmethod
    def extra_bytes(cls, format_bits: int, _: Mapping[str, float | str] | None = None) -> float:
        """Return the estimated bytes per treated parameter beyond the untreated run (Adam's two moments)."""
        widened = cls.widened * (FLOAT32_BITS - format_bits)
        new = (cls.masters + cls.awakened) * FLOAT32_BITS
        return (widened + new + cls.remainders * format_bits) / 8

    @classmethod
    def apply(cls, dose: Dose, run: Intervention) -> None:
        """Arrange the treatment of the run that is about to start."""
        raise NotImplementedError


def usual_besides(
    settings: Mapping[str, float | str], name: str, usual: float
) -> tuple[Mapping[str, float | str], ...]:
    """Return the solved setting, and beside it the usual advice where that is another one (by over 25 %)."""
    solved = settings.get(name)
    if solved is None:
        return ({**settings, name: usual},)
    if usual / 1.25 <= float(solved) <= usual * 1.25:
        return (settings,)
    return settings, {**settings, name: usual}


def _worded(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return several(value.split(","), shown=1) if "," in value else value
    text = f"{value:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"x{text}" if name == "factor" else text
