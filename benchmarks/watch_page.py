"""What the live page takes: to show a large fleet, and from the run that it shows.

`python -m benchmarks.watch_page` has 1,000 and 10,000 vehicles tell of themselves in a log (synthetic
events) and opens the page in a headless chromium: the time until the whole log is folded and painted, what a
paint takes while 1,000 more events arrive each second, the frames per second that the tab keeps, its memory.

`--run` launches a real fleet with `--watch` and changes every few seconds between nobody looking, a reader
that takes the events in and paints nothing, and a browser on the same machine that has a vehicle open, with
its pictures. What is printed is the ratio of the times of the stages, vehicle by vehicle, to those with
nobody looking, within this one run; and the processor time of the launcher, which serves the page, and of the
browser, each second.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver

from benchmarks import report_screenshot
from cloud_server.storage.recorders import append_event
from fleet.watch.server import WatchServer

_PAINTED = "return performance.getEntriesByName('painted')[0]?.detail"
_FRAMES = """
    const done = arguments[1];
    let frames = 0;
    const began = performance.now();
    const count = () => {
        frames += 1;
        const spent = performance.now() - began;
        if (spent < 1000 * arguments[0]) requestAnimationFrame(count);
        else done((1000 * frames) / spent);
    };
    requestAnimationFrame(count);
"""
_OPEN_A_VEHICLE = """
    for (const key of ["Home", "Enter"]) {
        document.getElementById("grid").dispatchEvent(new KeyboardEvent("keydown", {key}));
    }
"""
_PATIENCE_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
_SCENARIO = """
algorithm: blackfed-v2
vehicles: 4
rounds: 100000
image_size: 64x48
encoder: {name: stride8-c4}
dataset: {frames_per_sequence: 7}
first_order: {epochs: 3, batch_size: 4}
zeroth_order: {batches: 2, batch_size: 3}
spsa: {queries: 1}
"""
"""Of the run: stages so short that each look sees many."""
_LOOKS = ("nobody", "reader", "browser")


def main() -> None:
    """Run the benchmark and print its tables and JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch_page", description=__doc__)
    parser.add_argument("--vehicles", type=int, action="append", help="default: 1000 and 10000")
    parser.add_argument("--rounds", type=int, default=4, help="that the synthetic vehicles have behind them")
    parser.add_argument("--seconds", type=float, default=10.0, help="of updates, and of each look at a run")
    parser.add_argument("--run", action="store_true", help="what the page costs a run, instead")
    parser.add_argument("--looks", type=int, default=24, help="at the run, which ends after them")
    options = parser.parse_args()
    missing = report_screenshot.missing_browser()
    if missing:
        parser.error(missing)
    with tempfile.TemporaryDirectory(prefix="blackfleet-bench-") as folder:
        if options.run:
            print(json.dumps(cost_of_looking(Path(folder), options.looks, options.seconds)))
            return
        for vehicles in options.vehicles or (1_000, 10_000):
            run_folder = Path(folder) / str(vehicles)
            run_folder.mkdir()
            print(json.dumps(large_fleet(run_folder, vehicles, options.rounds, options.seconds)))


# A large fleet ------------------------------------------------------------------------------------------


def synthetic(vehicles: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The events of such a run, as a cloud would log them."""
    names = [f"car-{number:05}" for number in range(1, vehicles + 1)]
    yield {"event": "processes", "processes": {"broker": [], "cloud": [], "host-01": names}}
    for name in names:
        yield {"event": "joined", "vehicle": name, "encoder": "stride8-c8", "frames": {"train": 3}}
    run = {"algorithm": "blackfleet", "stages": 2 * rounds, "first": 0, "rounds": 2 * rounds}
    yield {"event": "run", **run, "vehicles": names}
    for number in range(1, rounds + 1):
        yield from synthetic_round(names, number)


def synthetic_round(names: list[str], number: int) -> Iterator[dict[str, Any]]:
    """One round of it."""
    about = {"stage": number, "round": number}
    for place, name in enumerate(names):
        yield {"event": "turn", **about, "kind": "train", "vehicle": name}
        sent = {"queries": 4 * number, "uplink_bytes": 1000 * number + place, "downlink_bytes": 90 * number}
        yield {"event": "turn_done", **about, "kind": "train", "vehicle": name, "loss": 2 / number, **sent}
        miou = 0.1 + 0.4 * place / len(names)
        yield {"event": "validation", **about, "vehicle": name, "miou": miou, "best": miou}
    spent = {"uplink_bytes": 10_000 * number, "downlink_bytes": 900 * number, "wall_s": 9.0 * number}
    yield {"event": "curve", **about, "loss": 2 / number, "val_miou": 0.1 * number, **spent}
    yield {"event": "committed", **about, "kind": "train"}


def large_fleet(run_folder: Path, vehicles: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Milliseconds, frames per second and bytes of a page that shows so many vehicles."""
    events = list(synthetic(vehicles, rounds))
    lines = "".join(json.dumps({**event, "time": 1e9 + at / 1000}) + "\n" for at, event in enumerate(events))
    (run_folder / "log.jsonl").write_text(lines)
    with WatchServer(run_folder) as server, report_screenshot.browser() as driver:
        report_screenshot.set_view(driver, 1280, 900)
        driver.set_script_timeout(_PATIENCE_S)
        began = time.monotonic()
        driver.get(server.address)
        loaded = _wait_painted(driver, len(events))
        loaded_s = time.monotonic() - began
        first_paint = driver.execute_script(
            "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        )
        stop = threading.Event()
        names = [event["vehicle"] for event in events if event["event"] == "joined"]
        telling = threading.Thread(target=_tell, args=(run_folder, names, rounds + 1, stop))
        telling.start()
        paints, until = [], time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                paints.append(driver.execute_script(_PAINTED)["ms"])
                time.sleep(0.2)
            frames = driver.execute_async_script(_FRAMES, seconds / 2)
        finally:
            stop.set()
            telling.join()
        driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        return {
            "vehicles": vehicles,
            "events": len(events),
            "log_mb": round(len(lines) / 1e6, 1),
            "first_paint_ms": round(first_paint or 0),
            "whole_log_shown_ms": round(1000 * loaded_s),
            "paint_of_it_ms": round(loaded["ms"], 1),
            "paint_ms_median": round(statistics.median(paints), 1),
            "paint_ms_most": round(max(paints), 1),
            "frames_per_s": round(frames, 1),
            "heap_mb": round(driver.execute_script("return performance.memory.usedJSHeapSize") / 1e6, 1),
            "tab_mb": round(max(_resident(process) for process in _renderers(driver)) / 1e6),
        }


def _wait_painted(driver: webdriver.Chrome, events: int) -> dict[str, Any]:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        painted = driver.execute_script(_PAINTED)
        if painted and painted["events"] >= events:
            return dict(painted)
        if time.monotonic() > deadline:
            sys.exit(f"the page has not shown {events} events within {_PATIENCE_S:g} s")
        time.sleep(0.02)


def _tell(run_folder: Path, names: list[str], first_round: int, stop: threading.Event) -> None:
    """1,000 events a second, in bursts as they come from a cloud."""
    number = first_round
    while True:
        for place, event in enumerate(synthetic_round(names, number)):
            name = event.pop("event")
            append_event(run_folder, name, event)
            if place % 100 == 99 and stop.wait(0.1):
                return
        number += 1


def _renderers(driver: webdriver.Chrome) -> list[int]:
    return [
        process for process in _below(driver.service.process.pid) if b"--type=renderer" in _command(process)
    ]


def _below(process: int) -> list[int]:
    """This process and those that it has started."""
    try:
        text = " ".join(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children"))
    except OSError:
        return []
    return [process, *(one for child in text.split() for one in _below(int(child)))]


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _resident(process: int) -> int:
    """Bytes."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# The cost to a run --------------------------------------------------------------------------------------


def cost_of_looking(folder: Path, looks: int, seconds: float) -> dict[str, Any]:
    """Ratios of stage times to those with nobody looking, and processor seconds each second."""
    run_folder, output = folder / "run", folder / "output"
    (folder / "scenario.yaml").write_text(_SCENARIO)
    command = ["-m", "fleet.cli", "launch", "--scenario", str(folder / "scenario.yaml")]
    command += ["--watch", "--run-dir", str(run_folder)]
    with output.open("wb") as said:
        launcher = subprocess.Popen([sys.executable, *command], stdout=said, stderr=subprocess.STDOUT)
    try:
        address = _address(launcher, output)
        with report_screenshot.browser() as driver:
            slices = list(itertools.islice(_looks(launcher, driver, run_folder, address, seconds), looks))
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.wait()
    return summarise(slices, _stages(run_folder))


def _address(launcher: subprocess.Popen[bytes], output: Path) -> str:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and launcher.poll() is None:
        found = re.search(r"http://\S+", output.read_text(errors="replace"))
        if found:
            return found[0]
        time.sleep(0.1)
    sys.exit(f"the run did not start: {output.read_text(errors='replace')}")


def _looks(
    launcher: subprocess.Popen[bytes],
    driver: webdriver.Chrome,
    run_folder: Path,
    address: str,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Time slices of each kind of look, in turn, from the first curve to the end of the run."""
    while launcher.poll() is None and len(_stages(run_folder)) < 5:
        time.sleep(0.2)
    at = 0
    while launcher.poll() is None:
        look = _LOOKS[at % len(_LOOKS)]
        with contextlib.ExitStack() as stack:
            if look == "browser":
                driver.get(address)
                time.sleep(0.5)
                driver.execute_script(_OPEN_A_VEHICLE)
                stack.callback(driver.get, "about:blank")
            elif look == "reader":
                stack.enter_context(_reader(address))
            # What was logged before has been taken in, and opening the vehicle is past.
            time.sleep(4.0 if look == "browser" else 1.0)
            began, spent = time.time(), _spent(launcher, driver)
            time.sleep(seconds)
            launcher_s, browser_s = (
                now - then for now, then in zip(_spent(launcher, driver), spent, strict=True)
            )
            yield {
                "look": look,
                "from": began,
                "to": time.time(),
                "launcher_s": launcher_s,
                "browser_s": browser_s,
            }
        at += 1


@contextlib.contextmanager
def _reader(address: str) -> Iterator[None]:
    """Takes events in as a browser would, and does nothing with them."""
    host, _, path = address.removeprefix("http://").partition("/")
    entry = http.client.HTTPConnection(host)
    entry.request("GET", f"/{path}")
    cookie = (entry.getresponse().getheader("Set-Cookie") or "").partition(";")[0]
    connection = http.client.HTTPConnection(host)
    connection.request("GET", "/events", headers={"Cookie": cookie})
    answer = connection.getresponse()

    def read() -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            while answer.read1(65536):
                pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        answer.close()
        connection.close()


def _spent(launcher: subprocess.Popen[bytes], driver: webdriver.Chrome) -> tuple[float, float]:
    """Processor seconds of the launcher itself, and of the browser's processes."""
    return _processor_s(launcher.pid), sum(map(_processor_s, _below(driver.service.process.pid)))


def _processor_s(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _stages(run_folder: Path) -> list[tuple[str, float, float]]:
    """(vehicle, when its stage began, when it was committed) of each stage of learning."""
    stages, began, vehicle = [], 0.0, ""
    with contextlib.suppress(OSError):
        for line in (run_folder / "log.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "turn":
                vehicle, began = event["vehicle"], event["time"]
            elif event["event"] == "committed" and event["kind"] == "train":
                stages.append((vehicle, began, event["time"]))
    return stages


def summarise(slices: list[dict[str, Any]], stages: list[tuple[str, float, float]]) -> dict[str, Any]:
    """Of each kind of look; a stage counts where it lies within a slice as a whole."""
    took: dict[str, dict[str, list[float]]] = {look: defaultdict(list) for look in _LOOKS}
    for part in slices:
        for vehicle, began, ended in stages:
            if part["from"] <= began and ended <= part["to"]:
                took[part["look"]][vehicle].append(ended - began)
    report: dict[str, Any] = {}
    for look in _LOOKS:
        shared = took[look].keys() & took["nobody"].keys()
        ratios = [statistics.median(took[look][v]) / statistics.median(took["nobody"][v]) for v in shared]
        whole_s = sum(part["to"] - part["from"] for part in slices if part["look"] == look) or float("nan")
        report[look] = {
            "stages": sum(map(len, took[look].values())),
            "ratio": round(statistics.mean(ratios), 4) if ratios else None,
            **{
                key: round(sum(part[key] for part in slices if part["look"] == look) / whole_s, 4)
                for key in ("launcher_s", "browser_s")
            },
        }
    return report


if __name__ == "__main__":
    main()
