from __future__ import annotations

import dataclasses
import io
import sys

import click
import pytest
from click.testing import CliRunner

from precdoctor.report import Report, text
from precdoctor.rules import Subject
from tests.report import builders


def lines(report: Report) -> list[str]:
    return str(report).splitlines()


@pytest.fixture(params=[60, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.mark.usefixtures("width")
def test_the_verdict_is_the_first_line() -> None:
    assert lines(builders.ill())[0].startswith("✗ 13 parameters are frozen")


@pytest.mark.parametrize("build", [builders.ill, builders.healthy, builders.nothing_seen])
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
    assert lines(builders.ill())[-1].startswith("Next: precdoctor explain PD101")
    assert lines(builders.healthy())[-1].startswith("Next: --html report.html")


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
