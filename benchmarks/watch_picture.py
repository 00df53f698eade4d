"""A picture of the live page: `python -m benchmarks.watch_picture ADDRESS OUT.jpg --vehicle car-01`.

ADDRESS is what `blackfleet launch --watch` or `blackfleet watch` has printed, or the path of a replay. Needs
selenium (the `dev` extra), chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks import report_screenshot

_PATIENCE_S = 30.0
_CHOOSE = """
    const [vehicle, colour] = arguments;
    const press = (key) => document.getElementById("grid").dispatchEvent(new KeyboardEvent("keydown", {key}));
    if (colour) {
        document.getElementById("colour").value = colour;
        document.getElementById("colour").dispatchEvent(new Event("change"));
    }
    const chosen = document.querySelector("#vehicle h3").textContent;
    if (!vehicle || chosen === vehicle) return true;
    press(chosen ? "ArrowRight" : "Home");
    press("Enter");
    return false;
"""
_SHOWN = """
    const shown = [...document.querySelectorAll("#vehicle img")];
    return shown.length > 0 && shown.every((img) => img.complete) && !document.getElementById("load").hidden;
"""


def main() -> None:
    """Open the page, choose, take the picture, write it as a JPEG."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch_picture", description=__doc__)
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("output", type=Path, metavar="OUT.jpg")
    parser.add_argument("--vehicle", default="", help="to open")
    parser.add_argument("--colour", default="", help="by what the vehicles are coloured")
    parser.add_argument("--width", type=int, default=1280, help="of the view, in CSS pixels")
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true", help="as a browser in dark mode shows it")
    arguments = parser.parse_args()
    address = arguments.address if "://" in arguments.address else Path(arguments.address).resolve().as_uri()
    with report_screenshot.browser() as driver:
        report_screenshot.set_view(driver, arguments.width, arguments.height, dark=arguments.dark)
        driver.get(address)
        deadline = time.monotonic() + _PATIENCE_S
        while not driver.execute_script(_CHOOSE, arguments.vehicle, arguments.colour):
            if time.monotonic() > deadline:
                parser.error(f"the page has no vehicle {arguments.vehicle}")
            time.sleep(0.5)
        while arguments.vehicle and not driver.execute_script(_SHOWN) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)
        driver.execute_script("scrollTo(0, 0)")
        png = driver.get_screenshot_as_png()
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    arguments.output.write_bytes(report_screenshot.jpeg(picture))


if __name__ == "__main__":
    main()
