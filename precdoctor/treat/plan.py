"""Which cures are tried: those that findings prescribe and that can be applied from outside the program."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from precdoctor.evidence import Evidence
from precdoctor.remedies import REMEDIES, Dose, Remedy
from precdoctor.rules import Diagnosis, Finding
from precdoctor.rules.reading import FLOAT32_BITS, format_named
from precdoctor.trials import FLOAT32

#: remedies that treat some parameters only, with settings solved for these; all others treat the whole run,
#: so that one trial serves all findings
SPECIFIC = frozenset(("float32-island", "group-lr", "reinit", "eps", "beta2", "block-scale", "keep-float32"))
#: remedies of quantizers: what they do is compared with a run in which no quantizer acts
OF_QUANTIZERS = frozenset(("ste", "refresh-cache", "float32-latent", "block-scale", "keep-float32"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A dose to be tried, and what it is judged by."""

    dose: Dose
    #: unique among the trials of a program
    label: str
    #: ids of the rules whose findings asked for it
    rules: tuple[str, ...]
    #: names of the parameters that were ill
    subjects: tuple[str, ...]


def grave(diagnosis: Diagnosis) -> list[Finding]:
    """Return the findings that ask for treatment."""
    return [finding for finding in diagnosis.findings if finding.severity != "note"]


def patients(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the names of the parameters that findings speak of, each once."""
    names = (s.name for finding in findings for s in finding.subjects if s.kind in ("parameter", "state"))
    return tuple(dict.fromkeys(names))


def by_hand(findings: Iterable[Finding]) -> dict[str, tuple[str, ...]]:
    """Return the prescribed remedies that need an edit, with the rules that ask for them."""
    known, found = {remedy.id for remedy in REMEDIES}, dict[str, tuple[str, ...]]()
    for finding in findings:
        for cure in finding.prescriptions:
            if cure.remedy not in known and finding.rule not in found.get(cure.remedy, ()):
                found[cure.remedy] = (*found.get(cure.remedy, ()), finding.rule)
    return found


def plan(findings: Sequence[Finding], only: Collection[str] = ()) -> list[Planned]:
    """Return the doses to try, in the catalogue's order.

    ``only`` names remedies: those and no others, whether or not a finding asks for them; one that none asks
    for is judged by all that are ill.
    """
    planned: list[Planned] = []
    for remedy in REMEDIES:
        if only and remedy.id not in only:
            continue
        asking = [f for f in findings if any(cure.remedy == remedy.id for cure in f.prescriptions)]
        if not asking and only:
            planned += _doses(remedy, findings, {})
        elif remedy.id in SPECIFIC:
            for finding in asking:
                planned += _doses(remedy, [finding], _settings(remedy, finding))
        elif asking:
            planned += _doses(remedy, asking, _settings(remedy, asking[0]))
    return _labelled(_merged(planned))


def has_low_format(evidence: Evidence, subjects: Collection[str]) -> bool:
    """Tell whether a subject's format (any parameter's, without subjects) is below float32."""
    return any(
        _bits(p.format) < FLOAT32_BITS for p in evidence.parameters if not subjects or p.name in subjects
    )


def reference(evidence: Evidence, findings: Iterable[Finding], subjects: Collection[str]) -> Dose | None:
    """Return the run that all others are compared with; None where it would be the untreated one."""
    asked = {cure.remedy for finding in findings for cure in finding.prescriptions}
    rounds = any(q.kind == "quantizer" or q.rewritten_at is not None for q in evidence.quantizers)
    rounds = rounds or (evidence.backward is not None and bool(evidence.backward.zero_nodes))
    if asked & OF_QUANTIZERS and rounds:
        return Dose(remedy=FLOAT32, settings={"quantizers": "bypassed"})
    return Dose(remedy=FLOAT32) if has_low_format(evidence, subjects) else None


def estimated_bytes(untreated: float, evidence: Evidence, remedy: type[Remedy], dose: Dose) -> float:
    """Return the bytes per parameter to expect, given those of the untreated run."""
    total = sum(p.numel for p in evidence.parameters)
    extra = sum(
        p.numel * remedy.extra_bytes(_bits(p.format), dose.settings)
        for p in evidence.parameters
        if (p.gradient.present == 0 if remedy.awakened else _bits(p.format) < FLOAT32_BITS)
        and p.optimizer is not None
        and (not dose.subjects or p.name in dose.subjects)
    )
    return untreated + extra / total if total else untreated


def _bits(format_name: str) -> int:
    known = format_named(format_name)
    return known.bits if known is not None else FLOAT32_BITS


def _settings(remedy: type[Remedy], finding: Finding) -> Mapping[str, float | str]:
    return next(cure.settings for cure in finding.prescriptions if cure.remedy == remedy.id)


def _doses(
    remedy: type[Remedy], findings: Sequence[Finding], settings: Mapping[str, float | str]
) -> list[Planned]:
    subjects = patients(findings)
    rules = tuple(dict.fromkeys(finding.rule for finding in findings))
    treated = subjects if remedy.id in SPECIFIC else ()
    doses = (Dose(remedy=remedy.id, settings=dict(own), subjects=treated) for own in remedy.doses(settings))
    return [Planned(dose=dose, label=dose.label, rules=rules, subjects=subjects) for dose in doses]


def _merged(planned: Iterable[Planned]) -> list[Planned]:
    """Return the same doses, each once, with the rules of all that asked."""
    merged: list[Planned] = []
    for item in planned:
        known = next((i for i, other in enumerate(merged) if other.dose == item.dose), None)
        if known is None:
            merged.append(item)
            continue
        rules = tuple(dict.fromkeys((*merged[known].rules, *item.rules)))
        merged[known] = Planned(dose=item.dose, label=item.label, rules=rules, subjects=item.subjects)
    return merged


def _labelled(planned: Sequence[Planned]) -> list[Planned]:
    """Return doses with labels that differ: equal ones are told apart by the rule, or by whom they treat."""
    found = list(planned)
    for detail in ("rules", "subjects"):
        labels = [item.label for item in found]
        for index, item in enumerate(found):
            if labels.count(item.label) > 1:
                told_apart = f"{item.label} ({', '.join(getattr(item, detail))})"
                found[index] = replace(item, label=told_apart)
    return found
