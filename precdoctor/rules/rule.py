"""The shape of a rule. A rule is one class in one file; its docstring is its page."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.rules.finding import Finding


class Rule:
    """One illness: how it is recognised in evidence."""

    #: "PD101"; never changes once landed
    id: ClassVar[str]
    #: "frozen-parameter": the illness; reads well after "allow"
    name: ClassVar[str]
    #: file in ``sample_models/rules/`` that has the illness, and with ``--healthy`` has not
    example: ClassVar[str]

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return the findings that the evidence supports; a pure function."""
        raise NotImplementedError
