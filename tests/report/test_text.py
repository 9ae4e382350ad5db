from __future__ import annotations

import dataclasses
import io
import sys

import click
import pytest
from click.testing import CliRunner

from precdoctor.report import Report, text
from precdoctor.rules import Prescription, Subject
from tests.report import builders, tried


def lines(report: Report) -> list[str]:
    return str(report).splitlines()


@pytest.fixture(params=[60, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.mark.usefixtures("width")
def test_the_verdict_is_the_first_line() -> None:
    assert lines(builders.ill())[0].startswith("✗ 13 parameters are frozen")


@pytest.mark.parametrize("build", [builders.ill, builders.healthy, builders.nothing_seen, tried.treated])
def test_no_line_is_wider_than_the_terminal(width: int, build: object) -> None:
    assert callable(build)
    assert max(map(len, lines(build()))) <= width


@pytest.mark.parametrize(("columns", "used"), [("20", 60), ("400", 120)])
def test_the_width_stays_within_60_to_120(monkeypatch: pytest.MonkeyPatch, columns: str, used: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    widest = max(map(len, lines(builders.ill())))
    assert used - 12 < widest <= used


@pytest.mark.usefixtures("width")
def test_the_checklist_shows_ok_ill_and_unknown() -> None:
    shown = str(builders.ill())
    assert "✓ gradients flow" in shown
    assert "✗ updates survive the weight's format" in shown
    assert "? forward values" in shown


@pytest.mark.usefixtures("width")
def test_a_finding_names_rule_subjects_arithmetic_line_and_cures() -> None:
    shown = " ".join(str(builders.ill()).split())
    assert "error PD101 frozen-parameter" in shown
    assert "blocks.0.attention_norm.weight and 12 more" in shown
    assert "intended update 2.9e-4: 2.7 bits short" in shown
    assert "cause: train.py:116 model = model.to(torch.bfloat16)" in shown
    assert "cause, likely: train.py:116" in shown
    assert "cures, not tried yet: 1. autocast: Keep the weights in float32" in shown


@pytest.mark.usefixtures("width")
def test_the_table_has_the_worst_parameters() -> None:
    shown = lines(builders.ill())
    start = shown.index("The worst 10 of 62 parameters")
    assert "norm.weight" in shown[start + 3]
    assert "0.000" in shown[start + 3]


def test_a_run_without_parameters_has_no_table() -> None:
    assert "EDQ" not in str(builders.nothing_seen())


def test_why_the_script_failed_is_said() -> None:
    assert "The script failed: ValueError: no data" in str(builders.nothing_seen())


def test_it_ends_with_the_next_command() -> None:
    assert lines(builders.ill())[-1] == "Next: precdoctor treat train.py --lr 3e-4 (try the cures)"
    assert lines(builders.healthy())[-1].startswith("Next: --html report.html")
    assert lines(tried.treated())[-1] == "Next: precdoctor fix train.py --lr 3e-4 (the cure as a diff)"


def test_a_module_is_tried_again_as_a_module() -> None:
    report = builders.ill()
    evidence = dataclasses.replace(report.evidence, run=builders.run(target="my_package.train"))
    shown = lines(dataclasses.replace(report, evidence=evidence))
    assert shown[-1] == "Next: precdoctor treat -m my_package.train --lr 3e-4 (try the cures)"


def test_the_next_command_explains_where_nothing_can_be_tried_or_nothing_cured() -> None:
    report = tried.treated()
    explain = "Next: precdoctor explain PD101 (what it means, why it hurts)"
    watched = dataclasses.replace(report.evidence, run=builders.run(target="Doctor", argv=()))
    assert lines(dataclasses.replace(report, evidence=watched))[-1] == explain
    hopeless = tuple(trial for trial in report.trials if trial.outcome != "cured")
    assert lines(dataclasses.replace(report, trials=hopeless))[-1] == explain
    assert lines(by_hand())[-1] == explain
    unwritten = dataclasses.replace(report.trials[2], remedy="ste", label="ste", outcome="cured")
    shown = lines(dataclasses.replace(report, trials=(*report.trials[:2], unwritten)))
    assert shown[-1] == "Next: precdoctor explain ste (the cure, by hand)"


def by_hand() -> Report:
    report = builders.ill()
    cure = Prescription(remedy="rebuild-optimizer", rank=1, why="Construct it last.")
    finding = dataclasses.replace(report.findings[0], prescriptions=(cure,))
    return Report(report.evidence, dataclasses.replace(report.diagnosis, findings=(finding,)))


def test_a_cure_that_is_an_edit_is_not_called_untried() -> None:
    shown = str(by_hand())
    assert "  cures, by hand:\n    1. rebuild-optimizer: Construct it last." in shown
    assert "not tried" not in shown


def test_cures_stand_with_their_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = str(tried.treated())
    assert shown[shown.index("  cures,") : shown.index("! warning")].rstrip() == CURES


CURES = """\
  cures, best first:
    1. autocast (cured): Keep the weights in float32 and cast the operations:
       updates then have 16 more bits.
    2. master-weights (cured): Let the optimizer step float32 copies and round
       them into the model: 4 bytes more each.
    3. stochastic-rounding (cured): Round updates up or down by chance, right in
       the mean: no extra memory, some noise.
    4. group-lr x22.6 (helped): The updates would have to be 22.6x larger: not a
       cure by itself.
    5. float32-state (not tried): Keep the moments in float32.
    6. reconnect (by hand): Use the parameter itself.
    7. reinit x0.1 (harmed): The weights would have to be 22.6x smaller, which
       changes the model.
    8. loss-scaling (does not apply): Lift the gradients out of the subnormals."""


def test_the_string_of_a_report_has_no_colour_and_the_rendering_has() -> None:
    report = builders.ill()
    assert "\x1b" not in str(report)
    assert click.unstyle(text.render(report)) == str(report)
    assert "\x1b[31m" in text.render(report)


def test_no_colour_goes_down_a_pipe() -> None:
    @click.command()
    def show() -> None:
        click.echo(text.render(builders.ill()))

    assert "\x1b" not in CliRunner().invoke(show).output


def test_a_name_cannot_steer_the_terminal() -> None:
    report = builders.ill((builders.parameter("evil\x1b[2Jname\n", edq=0.0, headroom=-3, weight=1.0),))
    assert "\x1b" not in str(report)
    assert r"evil\x1b[2Jname\n" in str(report)


def test_a_stream_without_unicode_gets_plain_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    shown = str(builders.ill())
    assert shown.isascii()
    assert "+ gradients flow" in shown
    assert "x updates survive" in shown


def test_a_finding_without_parameters_can_be_shown() -> None:
    report = builders.ill()
    finding = dataclasses.replace(
        report.findings[0],
        subjects=(Subject(kind="optimizer", name="AdamW"),),
        locations=(),
        prescriptions=(),
    )
    shown = str(Report(report.evidence, dataclasses.replace(report.diagnosis, findings=(finding,))))
    assert "AdamW" in shown
    assert "not tried yet" not in shown
