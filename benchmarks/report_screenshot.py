"""A picture of a report from a real browser: `python -m benchmarks.report_screenshot REPORT_HTML OUT.jpg`.

Needs selenium (the `dev` extra), chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

MAX_BYTES = 300_000
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def missing_browser() -> str | None:
    """What isn't installed, None if everything is."""
    if not any(map(shutil.which, _BROWSERS)):
        return "chromium is not installed"
    return None if shutil.which("chromedriver") else "chromium-driver is not installed"


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A headless chromium with a fresh profile that logs its console and its network requests.

    Raises:
        OSError: chromium or its driver is not installed.
    """
    missing = missing_browser()
    if missing:
        raise OSError(f"{missing}: on Debian, apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = next(filter(None, map(shutil.which, _BROWSERS)))
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def set_view(driver: webdriver.Chrome, width: int, height: int, *, dark: bool = False) -> None:
    """Give the page a view of so many CSS pixels, as a phone of that width would, in light or dark."""
    metrics: Mapping[str, object] = {
        "width": width,
        "height": height,
        "deviceScaleFactor": 1,
        "mobile": width < 600,
    }
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(metrics))
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """The BGR picture as a JPEG under `MAX_BYTES`: of lower quality, then also smaller, until it is."""
    while True:
        for quality in (90, 80, 70):
            _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
            if data.size < MAX_BYTES:
                return data.tobytes()
        picture = cv2.resize(picture, None, fx=0.85, fy=0.85, interpolation=cv2.INTER_AREA)


def main() -> int:
    """Open the report, take the picture, write it as a JPEG."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report_screenshot", description=__doc__)
    parser.add_argument("report", type=Path, metavar="REPORT_HTML")
    parser.add_argument("output", type=Path, metavar="OUT.jpg")
    parser.add_argument("--width", type=int, default=1280, help="of the view, in CSS pixels")
    parser.add_argument("--height", type=int, help="of the picture (default: the whole page)")
    parser.add_argument("--top", type=int, default=0, help="where the picture begins, pixels from the top")
    parser.add_argument("--dark", action="store_true", help="as a browser in dark mode shows it")
    arguments = parser.parse_args()
    if not arguments.report.is_file():
        print(f"no file {arguments.report}; write it with `blackfleet report`", file=sys.stderr)
        return 2
    try:
        with browser() as driver:
            set_view(driver, arguments.width, 900, dark=arguments.dark)
            driver.get(arguments.report.resolve().as_uri())
            page_height = int(driver.execute_script("return document.documentElement.scrollHeight"))
            height = min(arguments.height or page_height, max(1, page_height - arguments.top))
            # A view as tall as the page: nothing is cut off and nothing sticks to its top.
            set_view(driver, arguments.width, page_height, dark=arguments.dark)
            png = driver.get_screenshot_as_png()
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    picture = picture[arguments.top : arguments.top + height]
    data = jpeg(picture)
    arguments.output.write_bytes(data)
    print(f"{arguments.output}: {len(data)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
