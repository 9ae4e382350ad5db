"""The page as a reader meets it: in headless Chromium, from a file, without a network."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import precdoctor
from precdoctor.report import Report
from tests.report import builders, tried

NAME = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver here")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--window-size=1200,1000",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    nasty = builders.parameter(NAME, edq=0.0, headroom=-3.0, weight=1.0)
    ill = builders.ill()
    long = f"13 parameters are frozen (caused at /opt/{'a_folder_with_a_long_name/' * 6}train.py:51)."
    reports: dict[str, Report] = {
        "long path": dataclasses.replace(ill, diagnosis=dataclasses.replace(ill.diagnosis, summary=long)),
        "ill": builders.ill((nasty, *builders.model())),
        "many": builders.many(5000, 20),
        "healthy": builders.healthy(),
        "treated": tried.treated(),
        "checkpoints": compared(folder),
    }
    addresses = {}
    for name, report in reports.items():
        path: Path = folder / f"{name}.html"
        report.to_html(path)
        addresses[name] = path.as_uri()
    return addresses


def compared(folder: Path) -> Report:
    """Return the report on two checkpoints of a model of which one norm in ten never moved."""
    weights = {f"layers.{i}.weight": torch.randn(8, 8 + i) for i in range(12)}
    norms = {f"layers.{i}.norm.weight": torch.ones(8, dtype=torch.bfloat16) for i in range(12)}
    torch.save({**weights, **norms}, folder / "before.pt")
    moved = {name: weight * (1 + 2.0**-20 * i) for i, (name, weight) in enumerate(weights.items(), 1)}
    torch.save({**moved, **norms}, folder / "after.pt")
    return precdoctor.diff(folder / "before.pt", folder / "after.pt")


def rows(browser: Any) -> list[str]:
    return list(
        browser.execute_script(
            "return [...document.querySelectorAll('tbody tr th')].map(th => th.textContent)"
        )
    )


def search(browser: Any, text: str) -> None:
    field = browser.find_element("id", "search")
    field.clear()
    field.send_keys(text)


def requested(browser: Any) -> list[str]:
    import json

    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.parametrize("name", ["ill", "many", "healthy", "treated", "checkpoints"])
def test_the_page_loads_without_errors_and_without_a_network(
    browser: Any, pages: dict[str, str], name: str
) -> None:
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(pages[name])
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    urls = [url for url in requested(browser) if not url.startswith("data:")]
    assert urls == [pages[name]]
    assert browser.find_element("tag name", "h1").text


def test_a_script_for_a_name_is_text_and_does_not_run(browser: Any, pages: dict[str, str]) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    browser.get(pages["ill"])
    search(browser, "alert")
    assert rows(browser) == [NAME]
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    assert NAME in browser.find_element("css selector", ".subjects").text


def test_the_number_line_is_there_with_its_labels(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["ill"])
    figure = browser.find_element("css selector", "article.finding figure svg[role=img]")
    assert figure.size["width"] > 400
    labels = [
        text.get_attribute("textContent").strip() for text in figure.find_elements("css selector", "text")
    ]
    assert {"1.0", "0.99609", "1.0078", "−0.00195", "+0.00391"} <= set(labels)


def test_search_narrows_the_table(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["many"])
    search(browser, "layers.499. norm")
    assert rows(browser) == ["model.layers.499.mlp.experts.0.projection.norm.weight"]
    assert "1 of 1 shown" in browser.find_element("id", "shown").text
    search(browser, "no such name")
    assert rows(browser) == []


def test_only_the_ill_can_be_shown_and_more_of_them_on_demand(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["many"])
    browser.find_element("id", "ill-only").click()
    assert "50 of 500 shown" in browser.find_element("id", "shown").text
    browser.find_element("id", "more").click()
    assert all(name.endswith("norm.weight") for name in rows(browser))
    assert len(rows(browser)) == 450


def test_a_header_sorts_and_says_so(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["many"])
    header = browser.find_element("css selector", "th[data-key=name]")
    assert header.get_attribute("aria-sort") is None
    header.find_element("tag name", "button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert rows(browser)[0] == "model.layers.0.mlp.experts.0.projection.norm.weight"
    header.find_element("tag name", "button").send_keys("\n")  # the keyboard does it too
    assert header.get_attribute("aria-sort") == "descending"
    assert rows(browser)[0] == "model.layers.499.mlp.experts.9.projection.weight"
    other = browser.find_element("css selector", "th[data-key=edq]")
    other.find_element("tag name", "button").click()
    assert header.get_attribute("aria-sort") is None
    assert other.get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("name", ["ill", "treated"])
def test_it_fits_a_telephone(browser: Any, pages: dict[str, str], name: str) -> None:
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(pages[name])
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_table_of_cures_needs_no_scrolling_at_any_width(browser: Any, pages: dict[str, str]) -> None:
    overflow = (
        "const s = document.querySelector('.trials').parentElement; return s.scrollWidth - s.clientWidth"
    )
    try:
        for width in (390, 1000):
            metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get(pages["treated"])
            assert browser.execute_script(overflow) <= 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_outcomes_can_be_read_in_light_and_in_dark(browser: Any, pages: dict[str, str]) -> None:
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(pages["treated"])
        colours = browser.execute_script(
            "const rgb = (text) => text.match(/\\d+/g).slice(0, 3);"
            "const paper = rgb(getComputedStyle(document.body).backgroundColor);"
            "const told = [...document.querySelectorAll('td.outcome'),"
            "  ...document.querySelectorAll('section[aria-labelledby=cures] svg text')];"
            "return told.map((e) => [rgb(getComputedStyle(e)[e.tagName === 'TD' ? 'color' : 'fill']), paper])"
        )
        assert len(colours) > 30
        assert min(contrast(text, paper) for text, paper in colours) >= 4.5
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_long_path_stays_inside_the_heading(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["long path"])
    inside = "const h = document.querySelector('h1'); return h.scrollWidth <= h.clientWidth"
    assert browser.execute_script(inside)


def test_light_and_dark_differ_and_both_can_be_read(browser: Any, pages: dict[str, str]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(pages["ill"])
        colours[scheme] = browser.execute_script(
            "const rgb = (text) => text.match(/\\d+/g).slice(0, 3);"
            "const label = document.querySelector('article svg text');"
            "return [rgb(getComputedStyle(document.body).backgroundColor), rgb(getComputedStyle(label).fill)]"
        )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours["light"][0] != colours["dark"][0]
    for background, text in colours.values():
        assert contrast(text, background) >= 4.5  # WCAG 2.2, 1.4.3


def contrast(one: list[str], other: list[str]) -> float:
    def luminance(channels: list[str]) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (int(x) / 255 for x in channels)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_without_script_the_worst_are_there(browser: Any, pages: dict[str, str]) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(pages["many"])
        assert len(browser.find_elements("css selector", "tbody tr")) == 40
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_summary_of_a_healthy_run_is_its_heading(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["healthy"])
    assert browser.find_element("tag name", "h1").text == builders.healthy().diagnosis.summary
    assert browser.find_elements("id", "findings") == []


def tensors(browser: Any) -> list[list[str]]:
    return list(
        browser.execute_script(
            "return [...document.querySelectorAll('#tensor-table tbody tr')].filter(tr => !tr.hidden)"
            ".map(tr => [...tr.cells].map(cell => cell.textContent.trim()))"
        )
    )


def test_tensors_of_checkpoints_are_searched(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["checkpoints"])
    assert len(tensors(browser)) == 24
    field, shown = browser.find_element("id", "tensor-search"), browser.find_element("id", "tensor-shown")
    field.send_keys("layers.3. bfloat16")
    assert [row[0] for row in tensors(browser)] == ["layers.3.norm.weight"]
    assert shown.text == "1 of 24 shown"
    field.clear()
    field.send_keys(" ")
    browser.find_element("id", "tensor-ill-only").click()
    assert {row[1] for row in tensors(browser)} == {"bfloat16"}
    assert "PD701" in tensors(browser)[0][-1]


def test_tensors_of_checkpoints_are_sorted_as_numbers(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["checkpoints"])
    headers = browser.find_elements("css selector", "#tensor-table thead th")
    column = next(i for i, header in enumerate(headers) if header.text.startswith("elements"))
    button = headers[column].find_element("tag name", "button")
    button.click()
    sizes = [int(row[column].replace(",", "")) for row in tensors(browser)]
    assert sizes == sorted(sizes)
    assert headers[column].get_attribute("aria-sort") == "ascending"
    button.click()
    assert [int(row[column].replace(",", "")) for row in tensors(browser)] == sorted(sizes, reverse=True)
