"""The report as JSON, schema precdoctor.report/1 (``report.schema.json`` beside this file)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from precdoctor.evidence import Optimizer
from precdoctor.report import strict
from precdoctor.report.checkpoint_rows import outlooks, tensor_rows
from precdoctor.report.cures import compared_with, cures, tried
from precdoctor.report.quantizer_rows import QuantizerRow, quantizer_rows
from precdoctor.report.report import Report
from precdoctor.report.rows import Row, quantiles, rows
from precdoctor.rules.finding import Finding
from precdoctor.trials import Trial

SCHEMA = "precdoctor.report/1"


def render(report: Report) -> str:
    """Return the report as strict JSON text: what is not a finite number is null."""
    return strict.dumps(document(report))


def document(report: Report) -> dict[str, Any]:
    """Return the report as plain containers."""
    evidence, diagnosis = report.evidence, report.diagnosis
    return {
        "schema": SCHEMA,
        "verdict": diagnosis.verdict,
        "summary": diagnosis.summary,
        "run": dataclasses.asdict(evidence.run),
        "vital_signs": [dataclasses.asdict(sign) for sign in diagnosis.vital_signs],
        "findings": [_finding(finding, report.trials) for finding in diagnosis.findings],
        "parameters": [_parameter(row) for row in rows(report)],
        "optimizers": [_optimizer(optimizer) for optimizer in evidence.optimizers],
        "quantizers": [_quantizer(row) for row in quantizer_rows(report)],
        **({} if evidence.contents is None else {"checkpoints": _checkpoints(report)}),
        "trials": [
            {**_trial(trial), "losses": trial.losses}
            for trial in (*compared_with(report.trials), *tried(report.trials))
        ],
    }


def _finding(finding: Finding, trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "name": finding.name,
        "severity": finding.severity,
        "subjects": [dataclasses.asdict(subject) for subject in finding.subjects],
        "locations": [
            {
                "file": location.place.file,
                "line": location.place.line,
                "role": location.role,
                "certain": location.place.certain,
                "function": location.place.function,
                "code": location.place.code,
            }
            for location in finding.locations
        ],
        "measured": finding.measured,
        "message": finding.message,
        "remedies": [
            {
                "id": cure.prescription.remedy,
                "rank": cure.rank,
                "why": cure.prescription.why,
                "diff": cure.prescription.diff,
                "settings": cure.prescription.settings,
                "status": cure.status,
                "trial": cure.trial and _trial(cure.trial),
            }
            for cure in cures(finding, trials)
        ],
    }


def _trial(trial: Trial) -> dict[str, Any]:
    """Return a trial without its losses, which stand once, under "trials"."""
    fields = dataclasses.asdict(trial)
    del fields["losses"]
    return fields


def _parameter(row: Row) -> dict[str, Any]:
    parameter = row.parameter
    updates, gradient = parameter.updates, parameter.gradient
    fields: dict[str, Any] = {
        "name": parameter.name,
        "format": parameter.format,
        "shape": parameter.shape,
        "numel": parameter.numel,
        "watched": parameter.watched,
        "trainable": parameter.trainable,
        "edq": row.edq,
        "edq_low": row.edq_low,
        "edq_high": row.edq_high,
        "edq_measure": row.measure,
        "lost_share": row.lost_share,
        "headroom_bits": dict(zip(("p5", "p50", "p95"), row.headroom_bits, strict=True)),
        "rules": row.rules,
        "optimizer": parameter.optimizer,
        "group": parameter.group,
        "gradient": {"format": gradient.format, "present": gradient.present, "absent": gradient.absent},
    }
    if gradient.binades is not None:
        binades = quantiles(gradient.binades.exponents)
        fields["gradient"]["binade"] = dict(zip(("p5", "p50", "p95"), binades, strict=True))
    if parameter.weight is not None:
        fields["weight"] = dataclasses.asdict(parameter.weight)
    if updates is not None:
        fields["updates"] = {
            "replay": updates.replay,
            "why_not": updates.why_not,
            "intended": updates.intended,
            "never_moved_share": updates.never_moved_share,
            "edq": [dataclasses.asdict(window) for window in updates.edq],
            "net_edq": updates.net_edq,
            "ups_intended": updates.ups_intended,
            "downs_intended": updates.downs_intended,
            "ups_applied": updates.ups_applied,
            "downs_applied": updates.downs_applied,
            "example": updates.example and dataclasses.asdict(updates.example),
            "decay": updates.decay and dataclasses.asdict(updates.decay),
        }
    return fields


def _quantizer(row: QuantizerRow) -> dict[str, Any]:
    fields = dataclasses.asdict(row.quantizer)
    return {"gradient": row.gradient, "rules": row.rules, **fields}


def _checkpoints(report: Report) -> dict[str, Any]:
    contents = report.evidence.contents
    assert contents is not None
    fields = dataclasses.asdict(contents)
    rows = {row.tensor.name: row for row in tensor_rows(report)}
    for tensor, seen in zip(fields["tensors"], contents.tensors, strict=True):
        tensor["rules"] = rows[seen.name].rules
        if seen.travel is not None:
            tensor["travel"]["identical_share"] = seen.travel.identical_share
            bits = quantiles(seen.travel.headroom_bits)
            tensor["travel"]["headroom_bits"] = dict(zip(("p5", "p50", "p95"), bits, strict=True))
        for told, prognosis in zip(tensor["prognoses"], seen.prognoses, strict=True):
            bits = quantiles(prognosis.headroom_bits)
            told["headroom_bits"] = dict(zip(("p5", "p50", "p95"), bits, strict=True))
    fields["next_update"] = [
        {
            "format": outlook.format,
            "stored": outlook.stored,
            "intended": outlook.intended,
            "lost_share": outlook.lost_share,
            "unchanged_share": outlook.unchanged_share,
            "edq": outlook.edq,
            "headroom_bits": dict(zip(("p5", "p50", "p95"), quantiles(outlook.headroom_bits), strict=True)),
        }
        for outlook in outlooks(contents)
    ]
    return fields


def _optimizer(optimizer: Optimizer) -> dict[str, Any]:
    groups = [
        {
            "lr_first": group.lr_first,
            "lr_last": group.lr_last,
            "weight_decay": group.weight_decay,
            "betas": group.betas,
            "eps": group.eps,
            "tensors": group.tensors,
        }
        for group in optimizer.groups
    ]
    return {
        "type": optimizer.type,
        "steps": optimizer.steps,
        "observed": optimizer.observed,
        "groups": groups,
    }
