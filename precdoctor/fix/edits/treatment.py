"""What an edit is to cure: the findings that ask for it, their parameters, and its dose."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from precdoctor.evidence import Evidence, Optimizer, Parameter
from precdoctor.rules import Finding, Prescription

_Value = TypeVar("_Value")
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """One remedy for the findings that prescribe it."""

    #: id of the remedy
    remedy: str
    findings: tuple[Finding, ...]
    #: what it is to be set to, such as {"factor": 10.0}
    settings: dict[str, float | str]
    evidence: Evidence

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the ill parameters; a state has its parameter's name."""
        kinds = ("parameter", "state")
        return frozenset(s.name for finding in self.findings for s in finding.subjects if s.kind in kinds)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return what was seen of the ill parameters."""
        names = self.names
        return tuple(p for p in self.evidence.parameters if p.name in names)

    @property
    def optimizers(self) -> tuple[tuple[int, Optimizer], ...]:
        """Return the optimizers that step ill parameters, with their numbers."""
        numbers = sorted({p.optimizer for p in self.parameters if p.optimizer is not None})
        optimizers = self.evidence.optimizers
        return tuple((number, optimizers[number]) for number in numbers if number < len(optimizers))

    def groups(self, optimizer: int) -> tuple[int, ...]:
        """Return the numbers of an optimizer's groups that hold ill parameters."""
        found = {p.group for p in self.parameters if p.optimizer == optimizer and p.group is not None}
        return tuple(sorted(found))

    @classmethod
    def of(cls, findings: Iterable[tuple[Finding, Prescription]], evidence: Evidence) -> Treatment:
        """Return the treatment that prescriptions of one remedy make; the strongest dose counts."""
        pairs = list(findings)
        settings: dict[str, float | str] = {}
        for _, prescription in pairs:
            for name, value in prescription.settings.items():
                known = settings.get(name)
                if isinstance(known, float) and isinstance(value, float):
                    # a factor above 1 (and an eps) is stronger when larger, one below when smaller
                    smaller = name == "beta2" or (name == "factor" and value < 1)
                    value = min(known, value) if smaller else max(known, value)
                settings[name] = value
        return cls(
            remedy=pairs[0][1].remedy,
            findings=tuple(finding for finding, _ in pairs),
            settings=settings,
            evidence=evidence,
        )


def distinct(pairs: Iterable[tuple[_Value, _Key]]) -> list[tuple[_Value, _Key]]:
    """Return the pairs with the first of each key."""
    found: dict[_Key, _Value] = {}
    for value, key in pairs:
        found.setdefault(key, value)
    return [(value, key) for key, value in found.items()]
