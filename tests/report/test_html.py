from __future__ import annotations

import dataclasses
import html.parser
import itertools
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from precdoctor.evidence import Run
from precdoctor.report import Report
from tests.report import builders, tried

NASTY = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</script></svg></style><b>bold",
    "$\\frac{1}{2}$ & $x_",
    "{{ 7 * 7 }} \x1b[31m \x00 ü 名前",
)


class Page(html.parser.HTMLParser):
    """The elements of a page, and what a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


@pytest.fixture(scope="module")
def ill_page() -> str:
    return builders.ill().to_html()


def test_the_page_fetches_nothing(ill_page: str) -> None:
    page = Page(ill_page)
    assert page.fetched == []
    assert "@import" not in ill_page
    assert re.findall(r"url\((?!#)", ill_page) == []


def test_ids_are_unique_though_there_are_many_figures(ill_page: str) -> None:
    page = Page(ill_page)
    assert page.tags.count("svg") == 5
    assert len(page.ids) == len(set(page.ids))


def test_a_page_with_trials_is_whole_too() -> None:
    text = tried.treated().to_html()
    page = Page(text)
    assert page.tags.count("svg") == 7
    assert len(page.ids) == len(set(page.ids))
    assert (page.fetched, page.handlers) == ([], [])
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(page.ids)
    assert all(after - before <= 1 for before, after in itertools.pairwise(page.headings))
    for figure in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", figure)) == set()


def test_cures_come_with_their_verdict_table_figures_and_reasons() -> None:
    body = tried.treated().to_html().partition("<main>")[2]
    order = [
        "> cured</span>",
        "not tried</span>",
        "by hand</span>",
        'id="cures"',
        "autocast cures it: EDQ 0.000 -&gt; 0.998",
        "<caption",
        "-0.312 ± 0.004",
        "EDQ of the cures when tried",
        "Loss of the cures when tried",
        "running means over 3 recorded values are shown",
        "28 ups against 129 downs",
        "expected &lt;script&gt;",
        "Headroom of the updates",
    ]
    found = [body.index(text) for text in order]
    assert found == sorted(found)
    assert "not tried yet" not in body.partition('id="finding-2"')[0]


def test_an_error_of_a_trial_is_text() -> None:
    text, plain = tried.treated().to_html(), builders.ill().to_html()
    assert Page(text).tags.count("script") == Page(plain).tags.count("script")


def test_without_trials_there_is_no_section_of_cures(ill_page: str) -> None:
    assert 'id="cures"' not in ill_page


def test_trials_without_losses_or_edq_have_a_table_and_no_figures() -> None:
    bare = [dataclasses.replace(t, losses=(), edq=None) for t in tried.trials()]
    text = dataclasses.replace(tried.treated(), trials=tuple(bare)).to_html()
    assert 'id="cures"' in text
    assert "when tried</title>" not in text


def test_a_loss_that_ran_away_or_broke_is_marked_in_its_panel() -> None:
    away = tried.trial("group-lr x99", "harmed", floor=500.0, rate=0.3, noise=0.0)
    text = dataclasses.replace(tried.treated(), trials=(*tried.trials(), away)).to_html()
    assert re.search(r">↑ up to 500</text>", text)
    assert ">not finite</text>" in text


def test_long_runs_of_many_cures_stay_small() -> None:
    trials = tuple(
        tried.trial(f"group-lr x{index}", "no effect", steps=20_000, edq=0.1) for index in range(20)
    )
    report = dataclasses.replace(tried.treated(), trials=(*tried.trials()[:2], *trials))
    assert len(report.to_html().encode()) < 700_000


def test_every_reference_inside_a_figure_is_met(ill_page: str) -> None:
    ids = set(Page(ill_page).ids)
    assert set(re.findall(r"url\(#([^)]+)\)", ill_page)) <= ids
    assert set(re.findall(r'href="#([^"]+)"', ill_page)) <= ids


def test_figures_follow_the_theme(ill_page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", ill_page, re.DOTALL)
    for figure in figures:
        assert "<style" not in figure  # it would speak for the whole page
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", figure)) == set()


def test_headings_do_not_skip_a_level(ill_page: str) -> None:
    headings = Page(ill_page).headings
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def test_the_content_stands_in_the_order_of_the_design(ill_page: str) -> None:
    order = [
        "13 parameters are frozen",
        'id="vital-signs"',
        "frozen-parameter",
        "half-ULP",
        "Number line of bfloat16",
        "train.py:116",
        "not tried yet",
        "Headroom of the updates",
        "EDQ of the parameters",
        "<table",
        "Started",
    ]
    body = ill_page[ill_page.index("<main>") :]
    found = [body.index(text) for text in order]
    assert found == sorted(found)


def test_the_line_to_blame_is_marked(ill_page: str) -> None:
    marked = re.findall(r"<mark>(.*?)</mark>", ill_page, re.DOTALL)
    assert "<b>116</b>         model = model.to(torch.bfloat16)" in marked[0]


def test_the_number_line_says_its_arithmetic(ill_page: str) -> None:
    assert "a decrease must exceed 0.00195 and an increase 0.00391" in ill_page
    assert "every result in the shaded gap is stored as 1.0" in ill_page


def test_a_finding_without_update_arithmetic_has_no_number_line() -> None:
    report = builders.ill()
    finding = dataclasses.replace(report.findings[0], measured={})
    page = Report(report.evidence, dataclasses.replace(report.diagnosis, findings=(finding,))).to_html()
    assert "Number line of" not in page


@pytest.mark.parametrize("build", [builders.healthy, builders.nothing_seen])
def test_a_page_with_little_to_say_is_whole(build: object) -> None:
    assert callable(build)
    text = build().to_html()
    assert text.rstrip().endswith("</html>")
    assert build().diagnosis.summary in text


def nasty() -> Report:
    parameters = tuple(
        dataclasses.replace(builders.parameter(name, edq=0.0, headroom=-3.0, weight=1.0), module=name)
        for name in NASTY
    )
    report = builders.ill(parameters)
    place = dataclasses.replace(builders.CAST, file=NASTY[2], function=NASTY[0], code=NASTY[1])
    finding = dataclasses.replace(
        report.findings[0],
        message=NASTY[1],
        locations=(dataclasses.replace(report.findings[0].locations[0], place=place),),
    )
    run: Run = builders.run(target=NASTY[0], argv=NASTY, error=NASTY[1], limits=NASTY)
    return Report(
        dataclasses.replace(report.evidence, run=run),
        dataclasses.replace(report.diagnosis, findings=(finding,), summary=NASTY[0]),
    )


def test_names_are_text_wherever_they_stand() -> None:
    text = nasty().to_html()
    page, plain = Page(text), Page(builders.ill(builders.model()[:5]).to_html())
    assert page.handlers == []
    assert page.fetched == []
    assert {"img", "b"} & set(page.tags) <= {"b"}
    assert page.tags.count("script") == plain.tags.count("script") == 2
    assert "\x00" not in text
    assert "\x1b" not in text
    assert "{{ 7 * 7 }}" in text  # not computed


def test_mathematics_in_a_name_is_not_typeset() -> None:
    assert "$\\frac{1}{2}$ &amp; $x_" in nasty().to_html()


def test_a_loss_that_is_not_finite_is_marked_and_not_dropped() -> None:
    report = builders.ill()
    losses = (*report.evidence.losses, (50, math.nan), (51, math.inf))
    evidence = dataclasses.replace(report.evidence, losses=losses)
    text = Report(evidence, report.diagnosis).to_html()
    assert "2 are not finite, the first at step 50" in text
    assert ">not finite</text>" in text


def test_a_format_that_is_not_in_the_catalogue_is_shown_without_a_number_line() -> None:
    parameters = tuple(dataclasses.replace(p, format="float8_e3m4") for p in builders.model())
    assert "Number line of" not in builders.ill(parameters).to_html()


def test_a_path_gets_the_same_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert builders.nothing_seen().to_html(path) == path.read_text(encoding="utf-8")


def test_five_thousand_parameters_stay_small() -> None:
    report = builders.many(5000, 100)
    start = time.perf_counter()
    text = report.to_html()
    assert len(text.encode()) < 2_000_000
    assert time.perf_counter() - start < 30  # 3 s when nothing else runs


def test_text_and_json_need_no_matplotlib_and_no_jinja() -> None:
    code = (
        "import sys; from tests.report import builders\n"
        "report = builders.ill(); str(report); report.to_json()\n"
        "assert not {'matplotlib', 'jinja2', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
