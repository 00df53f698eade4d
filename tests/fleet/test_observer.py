"""An observer at the broker: what it makes of what the cloud tells, and what it says that it waits for."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from process_fixtures import Refuse

from cloud_server.events import Events
from cloud_server.run.public_events import PublicEvents
from cloud_server.storage.recorders import RunLog
from fleet.errors import OperatorError
from fleet.watch import command
from fleet.watch.command import fleet_at
from fleet.watch.observer import Observer
from protocol.messages import Happened, Past, Status
from protocol.session import topics
from protocol.session.link import CloudLink
from protocol.session.memory import MemoryBus
from protocol.session.observing import ObserverLink

FLEET = "demo"
CARS = ("car-1", "car-2", "car-3")
Told = list[dict[str, Any]]


class Looking:
    """An observer on the bus, driven by hand."""

    def __init__(self, bus: MemoryBus, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        folder.mkdir()
        self.said: list[str] = []
        self.transport = bus.client("observer")
        self._log = folder / "log.jsonl"
        self._link = ObserverLink(self.transport, FLEET)
        self._link.open(1)
        self.observer = Observer(self._link, folder, said=self.said.append, clock=clock)

    def hear(self) -> None:
        while (received := self._link.receive(0)) is not None:
            if hasattr(received, "message"):
                self.observer.hear(received)

    def told(self) -> Told:
        """What its log has of the run."""
        self.hear()
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [event for event in map(json.loads, lines) if "number" in event]


def kind_of(event: dict[str, Any]) -> tuple[Any, ...]:
    return (event["event"], event.get("vehicle"), event["stage"] if event["event"] == "curve" else None)


@pytest.mark.parametrize("seed", range(4))
def test_observer_has_each_line_once_in_order_and_the_latest_of_each_kind(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes late, a third of what is told gets lost, and the cloud starts again in the middle."""
    clock = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1e9 + next(clock) / 100)
    draw, bus = random.Random(seed), MemoryBus()
    link = CloudLink(bus.client("cloud"), FLEET, payload_limit_bytes=1024)
    link.open(1)
    looking: Looking | None = None
    number = 0

    def life(session: str, resumes: bool) -> PublicEvents:
        """What one process of the cloud tells."""
        nonlocal looking, number
        public = PublicEvents(link, session, vehicles=3, every_s=1, may_tell=lambda: True)
        if resumes:
            public.remember(tmp_path)
        with RunLog(tmp_path) as log:
            events = Events(log, public)
            for _ in range(draw.randrange(40, 80)):
                if looking is None and draw.random() < 0.05:
                    looking = Looking(bus, tmp_path / "observer")
                number += 1
                name = draw.choice(["turn", "validation", "curve", "committed"])
                of = {"vehicle": draw.choice(CARS)} if name in ("turn", "validation") else {}
                events.event(name, number=number, stage=number, text=draw.randbytes(30).hex(), **of)
                if draw.random() < 0.4:
                    public.tell_pending()
                if draw.random() < 0.1:
                    public.tell_past()
                if looking is not None:
                    looking.hear()
            return public

    bus.set_faults(drop=lambda topic, _: topic.endswith("/events") and draw.random() < 0.3)
    life("a" * 16, resumes=False)
    public = life("b" * 16, resumes=True)
    looking = looking or Looking(bus, tmp_path / "observer")
    bus.set_faults()
    public.tell_past()

    happened = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    told = looking.told()
    numbers = [event["number"] for event in told]
    assert numbers == sorted(set(numbers))
    latest = {kind_of(event): event["number"] for event in happened}
    assert {kind_of(event): event["number"] for event in told} == latest
    assert looking.transport.traffic.sent_packets == 0


def test_what_is_no_event_changes_nothing(tmp_path: Path) -> None:
    bus = MemoryBus()
    looking = Looking(bus, tmp_path / "observer")
    speaker = bus.client("anyone")
    speaker.connect(1)
    whole = {"vehicle": "cloud", "session": "c" * 16, "plain_bytes": 3, "lines": b"\x4b\x4c\x4a\x06\x00"}
    past = {**whole, "upto": 1, "part": 0, "parts": 1}
    for message in (
        Happened(**{**whole, "first": 0}),  # its line is no JSON
        Happened(**{**whole, "first": 0, "plain_bytes": 2}),
        Happened(**{**whole, "first": 0, "lines": b"\xff"}),
        Past(**past, numbers=()),
        Past(**{**past, "part": 3}, numbers=(0,)),
    ):
        payload = b"\x00" + msgspec.msgpack.encode(message)
        speaker.publish(topics.topic(topics.EVENTS, FLEET, "cloud"), payload, qos=0)
    speaker.publish(topics.topic(topics.EVENTS, FLEET, "cloud"), b"\x01 part", qos=0)
    assert looking.told() == []


def test_observer_says_what_it_waits_for(tmp_path: Path) -> None:
    bus, now = MemoryBus(), [0.0]
    looking = Looking(bus, tmp_path / "observer", clock=lambda: now[0])
    speaker = bus.client("anyone")
    speaker.connect(1)

    def announce(vehicle: str, online: bool) -> None:
        status = Status(vehicle=vehicle, session="d" * 16, online=online, beat=0)
        name = topics.topic(topics.STATUS, FLEET, vehicle)
        speaker.publish(name, b"\x00" + msgspec.msgpack.encode(status), retain=True)

    def wait(seconds: float) -> list[str]:
        looking.hear()
        looking.observer.look()
        now[0] += seconds
        looking.observer.look()
        said, looking.said[:] = list(looking.said), []
        return said

    assert wait(2) == [] and looking.observer.heard_of == 0
    assert wait(2) == ["waiting for the cloud of fleet 'demo', which is not there"]
    announce("car-1", True)
    announce("car-2", False)  # of long ago
    assert wait(60) == [] and looking.observer.heard_of == 1
    announce("cloud", True)
    assert wait(10) == ["waiting for the cloud to tell what has happened so far"]
    assert wait(10) == []
    assert wait(10) == []
    [silent] = wait(10)
    assert "the cloud, which tells nothing on blackfleet/v1/demo/cloud/events" in silent
    announce("cloud", False)
    assert "which is not there" in wait(10)[0]
    lines = [json.loads(line) for line in (tmp_path / "observer" / "log.jsonl").read_text().splitlines()]
    present = [(event["vehicle"], event["online"]) for event in lines if event["event"] == "present"]
    assert present == [("car-1", True)]


# Where to look ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "fleet", "expected"),
    [
        ("mqtt://host:1884/demo", None, ("mqtt://host:1884", "demo")),
        ("mqtts://u:p%2F@host/demo?ca=a/b.crt", None, ("mqtts://u:p%2F@host?ca=a/b.crt", "demo")),
        ("mqtt://host", "demo", ("mqtt://host", "demo")),
        ("ws://host/demo", None, ("ws://host", "demo")),
        ("wss://host/path/mqtt/demo", None, ("wss://host/path/mqtt", "demo")),
        ("ws://host/mqtt", "demo", ("ws://host/mqtt", "demo")),
    ],
)
def test_fleet_is_the_last_level_of_the_url(url: str, fleet: str | None, expected: tuple[str, str]) -> None:
    assert fleet_at(url, fleet) == expected


@pytest.mark.parametrize(
    "url", ["mqtt://host", "mqtt://host/", "mqtt://host/demo/", "mqtt://host/a/b", "ws://h"]
)
def test_url_without_a_fleet_is_refused(url: str) -> None:
    with pytest.raises(OperatorError, match=r"End the broker's URL with its name: mqtt://"):
        fleet_at(url, None)


def test_mistakes_are_named_in_one_line(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "_CONNECT_S", 0.3)
    monkeypatch.delenv("BLACKFLEET_BROKER", raising=False)
    assert "nothing to watch; name a run's folder, or a fleet" in refuse("watch")
    assert "holds no run" in refuse("watch", tmp_path)
    assert "--fleet is for a broker's URL" in refuse("watch", tmp_path, "--fleet", "demo")
    assert "must start with mqtt://" in refuse("watch", "http://127.0.0.1/demo")
    assert "fleet id must be" in refuse("watch", "mqtt://127.0.0.1/my.fleet")
    assert "--fleet is 'b', but the URL ends with '/a'" in refuse("watch", "mqtt://h/a", "--fleet", "b")
    monkeypatch.setenv("BLACKFLEET_BROKER", "mqtt://127.0.0.1:1")
    said = refuse("watch", "--fleet", "demo")
    assert "no MQTT session with mqtt://127.0.0.1:1: none within 0.3 s (connection refused)" in said
