"""The live page in a real browser: what it folds, what it shows, what its buttons do to a real fleet."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from process_fixtures import CARS, WAIT_S, Launch, learnt, wait_for, write_scenario
from watch_fixtures import events

from fleet.run.controls import Controls
from fleet.watch.replay import write_replay
from fleet.watch.server import WatchServer

pytest.importorskip("selenium", reason="selenium is not installed: it is in the dev extra")

from selenium import webdriver

from benchmarks import report_screenshot

missing = report_screenshot.missing_browser()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with report_screenshot.browser() as driver:
        report_screenshot.set_view(driver, 1280, 900)
        yield driver


@pytest.fixture(scope="module")
def replay(driver: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that run, opened from disk."""
    folder = tmp_path_factory.mktemp("replay")
    lines = [json.dumps(event) for event in events()]
    (folder / "log.jsonl").write_text("\n".join([*lines[:9], '{"event": "torn', *lines[9:]]) + "\n")
    path = write_replay(folder)
    assert path is not None
    driver.get(path.as_uri())
    until(driver, "document.getElementById('facts').innerText.includes('120')")
    return path


def until(driver: webdriver.Chrome, condition: str) -> None:
    """Wait until an expression of the page is true."""
    wait_for(lambda: bool(driver.execute_script(f"return Boolean({condition})")), condition, WAIT_S)


def facts(driver: webdriver.Chrome, of: str = "#facts") -> dict[str, str]:
    script = """
        const rows = document.querySelectorAll(`${arguments[0]} div`);
        return [...rows].map((row) => [...row.children].map((cell) => cell.textContent));
    """
    return {name: value for name, value in driver.execute_script(script, of) if name}


def folded(driver: webdriver.Chrome, body: str, told: list[dict[str, Any]]) -> Any:
    """What a script returns that has `events`, and `plain`, which makes a state comparable."""
    plain = """
        const plain = (state) => JSON.stringify(state, (key, value) => {
            if (value instanceof Map) return [...value];
            return ArrayBuffer.isView(value) ? [...value].slice(0, state.ids.length).map(String) : value;
        });
        const events = JSON.parse(arguments[0]);
    """
    return driver.execute_script(plain + body, json.dumps(told))


# The state ----------------------------------------------------------------------------------------------


def test_state_after_any_prefix_does_not_depend_on_how_it_was_come_to(
    driver: webdriver.Chrome, replay: Path
) -> None:
    """What a slider shows, from a copy, is what a live page showed at that moment; copies share nothing."""
    script = """
        const kept = [];
        const live = Fold.empty();
        events.forEach((event, at) => {
            if (at % 60 === 0) kept.push([at, Fold.copy(live), plain(live)]);
            Fold.apply(live, event);
        });
        return kept.every(([at, copy, then]) => {
            if (plain(copy) !== then) return false;
            for (const event of events.slice(at)) Fold.apply(copy, event);
            return plain(copy) === plain(live);
        }) && kept.length;
    """
    assert folded(driver, script, events()) == -(-len(events()) // 60)


def test_state_is_what_the_log_says(driver: webdriver.Chrome, replay: Path) -> None:
    script = """
        const state = Fold.empty();
        for (const event of events) Fold.apply(state, event);
        const of = (name) => Fold.STATES[state.state[state.index.get(name)]];
        const at = state.index.get("car-050");
        const one = Fold.empty();
        return {
            states: ["car-001", "car-003", "car-004", "car-050"].map(of),
            stage: state.stage, round: state.round, curve: state.curve.map((point) => point.stage),
            up: Fold.sum(state, "up"), returns: state.columns.returns[at],
            miou: Fold.miou(state, at), loss: Fold.loss(state, at), stale: Fold.staleness(state, at),
            trip: state.columns.roundTrip[at], again: state.columns.reconnects[at],
            lost: state.columns.losses[at],
            rates: [2, 2.5, 4, 60].map((time) => {
                const sent = {time, uplink_bytes: 100 * time, downlink_bytes: 0};
                Object.assign(sent, {event: "traffic", vehicle: "car-1"});
                return String(Fold.rate(Fold.apply(one, sent), 0));
            }),
            kinds: [...new Set(state.news.map((item) => item.kind))].sort(),
            known: state.index.has("stranger"),
        };
    """
    assert folded(driver, script, events()) == {
        "states": ["waiting", "lost", "failed", "waiting"],
        "stage": 0,
        "round": 2,
        "curve": [0],
        "up": 10 * sum(range(1, 121)),
        "returns": 2,
        "miou": 0.25,
        "loss": 2,
        "stale": 0,
        "trip": 0.05,
        "again": 2,
        "lost": 2,
        "rates": ["NaN", "NaN", "100", "100"],
        "kinds": ["join", "kill", "loss", "reject", "resume"],
        "known": False,
    }


def test_vehicle_that_is_lost_stays_so_until_it_is_heard_again(
    driver: webdriver.Chrome, replay: Path
) -> None:
    """The cloud goes on working for it: none of that is a sign of life."""
    told = {"vehicle": "car-1", "stage": 0, "round": 1, "loss": 1.0, "time": 1.0}
    names = ["joined", "left", "learning", "turn_done", "turn", "dropped", "readmitted", "back", "turn"]
    shown = """
        const state = Fold.empty();
        return events.map((event) => Fold.STATES[Fold.apply(state, event).state[0]]);
    """
    states = folded(driver, shown, [{"event": name, "kind": "train", **told} for name in names])
    assert states == ["joined", *6 * ["lost"], "joined", "learning"]


# What is shown ------------------------------------------------------------------------------------------


def press(driver: webdriver.Chrome, *keys: str) -> None:
    down = "document.getElementById('grid').dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"
    for key in keys:
        driver.execute_script(down, key)


def enter(driver: webdriver.Chrome, field: str, value: object) -> None:
    script = """
        const field = document.getElementById(arguments[0]);
        field.value = arguments[1];
        field.dispatchEvent(new Event("input"));
    """
    driver.execute_script(script, field, value)


def test_keyboard_reaches_every_vehicle(driver: webdriver.Chrome, replay: Path) -> None:
    press(driver, "Home", "ArrowRight", "Enter")
    until(driver, "document.querySelector('#vehicle h3').textContent === 'car-002'")
    assert driver.execute_script("return document.getElementById('chosen').textContent").startswith(
        "car-002: state waiting"
    )
    press(driver, "End")
    until(driver, "document.querySelector('#vehicle h3').textContent === 'car-120'")
    press(driver, "ArrowUp", "ArrowDown", "ArrowRight")
    until(driver, "document.querySelector('#vehicle h3').textContent === 'car-120'")
    press(driver, "Escape")
    until(driver, "document.getElementById('vehicle').hidden")


def test_slider_goes_back_to_any_moment(driver: webdriver.Chrome, replay: Path) -> None:
    enter(driver, "time", 60)
    until(driver, "document.getElementById('legend').textContent.includes('joined 58')")
    assert facts(driver)["vehicles"] == "58"
    enter(driver, "time", 10**6)
    until(driver, "document.getElementById('legend').textContent.includes('lost 1')")
    assert facts(driver)["round"] == "2 of 2"


def test_table_finds_and_orders(driver: webdriver.Chrome, replay: Path) -> None:
    driver.execute_script("document.getElementById('listing').open = true")
    first = "document.querySelector('#table tbody tr')?.firstChild.textContent"
    for field, value, expected in (
        ("order", "mIoU", "car-120"),
        ("find", "car-01", "car-019"),
        ("order", "name", "car-010"),
    ):
        enter(driver, field, value)
        until(driver, f"{first} === '{expected}'")
    rows = driver.execute_script("return document.querySelectorAll('#table tbody tr').length")
    assert rows == 10
    driver.execute_script("document.getElementById('listing').open = false")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_fits_a_phone_and_can_be_read(driver: webdriver.Chrome, replay: Path, dark: bool) -> None:
    """No scrolling to the side; text has the contrast that WCAG asks for (4.5), in both schemes."""
    report_screenshot.set_view(driver, 380, 800, dark=dark)
    try:
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 380
        pairs = driver.execute_script(
            """const style = getComputedStyle(document.documentElement);
               const read = (name) => style.getPropertyValue("--" + name);
               return ["ink", "muted", "accent", "lost"].map((name) => [read(name), read("card")]);"""
        )
        assert [ratio for ratio in (contrast(*pair) for pair in pairs) if ratio < 4.5] == []
    finally:
        report_screenshot.set_view(driver, 1280, 900)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour.strip()[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_hostile_text_stays_text_and_nothing_else_is_fetched(driver: webdriver.Chrome, replay: Path) -> None:
    news = "document.getElementById('news')"
    assert "<b>too large</b>" in driver.execute_script(f"return {news}.textContent")
    assert driver.execute_script(f"return {news}.querySelectorAll('li b b').length") == 0
    assert quiet(driver, replay.as_uri()) == {replay.as_uri()}


def quiet(driver: webdriver.Chrome, page: str) -> set[str]:
    """All that a page has asked for; its console must be silent."""
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent" and message["params"]["documentURL"] == page
    } - {"data:,"}


# Buttons ------------------------------------------------------------------------------------------------


def test_page_of_another_origin_cannot_press_a_button(driver: webdriver.Chrome, tmp_path: Path) -> None:
    """Same host, so that the browser sends the cookie along; only the port differs."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    class Noted(Controls):
        def press(self, action: str, what: str) -> None:
            pressed.append(action)

    pressed: list[str] = []
    with (
        WatchServer(tmp_path, controls=Noted()) as server,
        ThreadingHTTPServer(("127.0.0.1", 0), Other) as other,
    ):
        threading.Thread(target=other.serve_forever, daemon=True).start()
        driver.get(server.address)
        ask = """
            const [address, body, headers, mode, done] = arguments;
            fetch(address + "/press", { method: "POST", body, headers, mode, credentials: "include" })
                .then((answer) => done(answer.status), (error) => done(String(error)));
        """
        address, body = f"http://127.0.0.1:{server.port}", '{"action": "pause"}'
        header = {"X-Blackfleet-Token": server.guard.page_token}
        assert driver.execute_async_script(ask, address, body, header, "same-origin") == 200
        driver.get(f"http://127.0.0.1:{other.server_port}/")
        # Without the header, which would be asked about first, the browser does send it.
        assert driver.execute_async_script(ask, address, body, {}, "no-cors") == 0
        assert "Failed to fetch" in driver.execute_async_script(ask, address, body, header, "cors")
        assert pressed == ["pause"]
        other.shutdown()
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")


def test_page_of_an_observer_has_no_buttons_and_asks_for_no_frames(
    driver: webdriver.Chrome, tmp_path: Path
) -> None:
    """What an observer at a broker writes down is shown as a run is, with what it waits for."""
    told = [*events(), {"event": "present", "vehicle": "car-121", "online": True, "time": 2e9}]
    told += [{"event": "run", "vehicles": 1}, {"event": "waiting", "for": "the broker", "time": 2e9}]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in told))
    with WatchServer(tmp_path, title="demo at mqtt://b:1", has_frames=False) as server:
        driver.get(server.address)
        until(driver, "document.getElementById('status').textContent === 'waiting for the broker'")
        assert (
            driver.execute_script("return document.querySelector('h1').textContent") == "demo at mqtt://b:1"
        )
        press(driver, "End", "Enter")
        until(driver, "document.querySelector('#vehicle h3').textContent === 'car-121'")
        assert facts(driver, "#vehicle dl")["state"] == "joined"
        buttons = "document.querySelectorAll('#operator button, #vehicle button').length"
        assert driver.execute_script(f"return {buttons}") == 0
        page = f"http://127.0.0.1:{server.port}/"
        assert quiet(driver, page) <= {page, f"{page}events"}
    driver.get("about:blank")


def test_vehicle_that_is_killed_by_its_button_comes_back_and_changes_nothing(
    driver: webdriver.Chrome, reference: Launch, frames_root: Path, tmp_path: Path
) -> None:
    patience = {"give_up_s": 2 * WAIT_S}
    launch = Launch(
        tmp_path / "run", write_scenario(tmp_path / "scenario.yaml", frames_root, patience=patience)
    )
    state = "document.querySelector('#vehicle dd').textContent"

    def button(action: str) -> str:
        return f"document.querySelector('#vehicle [data-action={action}]')"

    try:
        launch.start("--broker", "amqtt", "--watch")
        # The whole run takes a second: its last vehicle is halted until the browser has found the button.
        wait_for(lambda: (launch.run_folder / "log.jsonl").exists(), "a log")
        first_test = f'"vehicle": "{CARS[-1]}", "split": "test"'
        wait_for(lambda: first_test in (launch.run_folder / "log.jsonl").read_text(), "its first evaluation")
        os.kill(launch.ids()[f"host-{len(CARS):02d}"], signal.SIGSTOP)
        wait_for(lambda: "token=" in launch.output.read_text(), "an address", WAIT_S)
        [address] = re.findall(r"http://\S+", launch.output.read_text())
        driver.get(address)
        until(driver, "document.getElementById('facts').innerText.includes('blackfed')")
        press(driver, "End", "Enter")
        until(driver, button("kill"))
        wait_for(lambda: facts(driver, "#vehicle dl")["start"] != "–", "its first evaluation, shown")
        driver.execute_script(f"{button('kill')}.click()")
        until(driver, f"{state} === 'lost' && {button('revive')}")
        until(driver, "document.getElementById('loads').innerText.includes('cores')")
        # While it is away nothing goes on: these are not what the run leaves at its end.
        for kind in ("frame", "truth", "prediction?stage=", "errors?stage="):
            until(driver, f"document.querySelector('#vehicle img[src*=\"/{kind}\"]')?.naturalWidth > 0")
        driver.execute_script(f"{button('revive')}.click()")
        until(driver, f"{state} !== 'lost' && {button('kill')}")
        until(driver, "document.getElementById('status').textContent === 'the run is complete'")
        launch.complete()
    finally:
        launch.stop()
    assert learnt(launch.run_folder) == learnt(reference.run_folder)
    result = launch.result()
    until(driver, "document.getElementById('facts').innerText.includes('local')")
    shown = facts(driver)
    assert shown["local mIoU"] == f"{result['mean_local_miou']:.3f}"
    assert shown["OOD mIoU"] == f"{result['mean_ood_miou']:.3f}"
    assert shown["up"] == f"{result['uplink_bytes'] / 1000:.1f} kB"
    assert shown["vehicles"] == str(len(CARS))
    of_vehicle, entry = facts(driver, "#vehicle dl"), result["vehicles"][CARS[-1]]
    assert float(of_vehicle["round trip"].removesuffix(" ms")) >= 0
    assert of_vehicle["local"] == f"{entry['local_miou']:.3f}"
    assert of_vehicle["queries"] == str(entry["queries"])
    assert of_vehicle["up"] == f"{entry['uplink_bytes'] / 1000:.1f} kB"
    assert of_vehicle["came back"] != "0" or "came back" in driver.execute_script(
        "return document.getElementById('news').innerText"
    )
    pictures = "document.querySelectorAll('#vehicle img')"
    assert driver.execute_script(f"return {pictures}.length") >= 2
    page = address.partition("?")[0]
    assert all(url.startswith(page) for url in quiet(driver, page))
