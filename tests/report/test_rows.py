from __future__ import annotations

import dataclasses

from precdoctor.evidence import Bench, Evidence
from precdoctor.report import Report
from precdoctor.report.rows import rows, worst_first
from tests.report import builders


def with_bench(evidence: Evidence, bench: Bench) -> Evidence:
    optimizer = dataclasses.replace(evidence.optimizers[0], benches=(bench,))
    return dataclasses.replace(evidence, optimizers=(optimizer,))


def test_rows_keep_the_models_order() -> None:
    report = builders.ill()
    assert [row.parameter for row in rows(report)] == list(report.evidence.parameters)


def test_a_row_knows_which_findings_name_it() -> None:
    row = next(r for r in rows(builders.ill()) if r.parameter.name == "norm.weight")
    assert (row.rules, row.severity, row.ill) == (("PD101",), "error", True)


def test_the_worst_come_first_and_the_unknown_last() -> None:
    unseen = dataclasses.replace(builders.parameter("unseen.weight"), updates=None)
    ordered = worst_first(rows(builders.ill((*builders.model(), unseen))))
    assert ordered[0].severity == "error"
    assert ordered[-1].parameter.name == "unseen.weight"
    assert ordered[-1].edq is None


def test_an_optimizer_that_carries_remainders_is_shown_by_its_net_travel() -> None:
    report = builders.ill()
    parameters = tuple(
        dataclasses.replace(p, updates=p.updates and dataclasses.replace(p.updates, net_edq=0.97))
        for p in report.evidence.parameters
    )
    evidence = dataclasses.replace(report.evidence, parameters=parameters)
    evidence = with_bench(evidence, Bench(group=0, format="bfloat16", edq_small=1.01, edq_large=1.0))
    row = rows(Report(evidence, report.diagnosis))[1]
    assert (row.edq, row.measure, row.edq_low) == (0.97, "net", None)


def test_net_travel_below_half_an_ulp_is_unknown_and_not_frozen() -> None:
    report = builders.ill()
    evidence = with_bench(report.evidence, Bench(group=0, format="bfloat16", edq_small=1.01, edq_large=1.0))
    assert rows(Report(evidence, report.diagnosis))[1].edq is None
