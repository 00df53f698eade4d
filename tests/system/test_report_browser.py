"""The report in a real browser: nothing fails, everything shows, it fits a phone, and nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from report_fixtures import ALGORITHMS, VEHICLES, build_comparison

from fleet.report.page import write_report

pytest.importorskip("selenium", reason="selenium is not installed: it is in the dev extra")

from selenium import webdriver
from selenium.webdriver.common.by import By

from benchmarks import report_screenshot

missing = report_screenshot.missing_browser()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_comparison(tmp_path_factory.mktemp("browser") / "compare")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def driver(comparison: Path) -> Iterator[webdriver.Chrome]:
    with report_screenshot.browser() as driver:
        report_screenshot.set_view(driver, 1280, 900)
        driver.get((comparison / "report.html").as_uri())
        yield driver


def test_console_is_silent_and_nothing_is_fetched(driver: webdriver.Chrome, comparison: Path) -> None:
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    page = (comparison / "report.html").as_uri()
    requested = {
        message["params"]["request"]["url"]
        for message in messages
        # The browser's own start page asks for things too.
        if message["method"] == "Network.requestWillBeSent" and message["params"]["documentURL"] == page
    }
    # Pictures count as requests too, but for data that the page itself holds.
    assert {url for url in requested if not url.startswith("data:")} == {page}


def test_every_picture_is_drawn(driver: webdriver.Chrome) -> None:
    widths = driver.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) > len(VEHICLES) * (2 + len(ALGORITHMS))
    assert all(width > 0 for width in widths)
    assert driver.execute_script("return [...document.images].every(image => image.alt.length > 5)")


def test_charts_are_drawn(driver: webdriver.Chrome) -> None:
    charts = driver.find_elements(By.CSS_SELECTOR, "svg[role=img][aria-label]")
    # Scores and traffic, six curves, a confusion matrix for each algorithm.
    assert len(charts) == 2 + 6 + len(ALGORITHMS)
    for chart in charts:
        assert chart.size["width"] > 200 and chart.size["height"] > 60
        assert chart.find_elements(By.TAG_NAME, "path")


def test_tables_hold_the_numbers(driver: webdriver.Chrome, comparison: Path) -> None:
    summary = json.loads((comparison / "compare.json").read_text())["summary"]
    rows = driver.find_elements(By.CSS_SELECTOR, "#results table:first-of-type tbody tr")[: len(ALGORITHMS)]
    shown = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]
    assert shown == [
        [
            entry["algorithm"],
            f"{entry['local_miou_mean']:.3f} ± {entry['local_miou_std']:.3f}",
            f"{entry['ood_miou_mean']:.3f} ± {entry['ood_miou_std']:.3f}",
            "0.010",
            "120.0 kB",
            "1.4 kB",
            "50.0",
            "180",
            "1,440",
            "25",
            "1:16",
        ]
        for entry in summary
    ]
    empty = "return [...document.querySelectorAll('td, th')].filter(cell => !cell.textContent.trim()).length"
    assert driver.execute_script(empty) == 0


@pytest.mark.parametrize("width", [380, 390, 768, 1280])
def test_page_has_no_horizontal_scroll(driver: webdriver.Chrome, width: int) -> None:
    report_screenshot.set_view(driver, width, 844)
    try:
        driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert driver.execute_script("return window.innerWidth") == width
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        driver.execute_script("window.scrollTo(500, 0)")
        assert driver.execute_script("return window.scrollX") == 0
    finally:
        report_screenshot.set_view(driver, 1280, 900)


def test_screenshot_is_a_small_jpeg(
    driver: webdriver.Chrome, comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report.jpg"
    arguments = ["report_screenshot", str(comparison / "report.html"), str(output), "--height", "1000"]
    monkeypatch.setattr("sys.argv", arguments)
    assert report_screenshot.main() == 0
    assert output.stat().st_size < report_screenshot.MAX_BYTES
    assert cv2.imread(str(output)).shape == (1000, 1280, 3)
