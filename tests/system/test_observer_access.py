"""An observer's user at a real broker with the deployed access list: it hears all and changes nothing."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from brokers import configured_mosquitto
from fleet_fixtures import CARS, FLEET, TinyFleet, World
from mqtt_fixtures import wait_until
from process_fixtures import ROOT, Refuse

from cloud_server.run.service import serve
from edge_client.host import Host
from fleet import broker
from fleet.watch import command
from fleet.watch.observer import Observer
from protocol.codec.lines import encode_lines
from protocol.messages import Finish, Happened, Reject, Status, TurnFailed
from protocol.mqtt.connect import connector
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session import topics
from protocol.session.observing import ObserverLink
from protocol.session.transport import Delivery

USERS = ("cloud", *CARS, "observer")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A mosquitto with deploy/mosquitto.acl, on which every user has a password: its own name twice."""
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    folder = tmp_path_factory.mktemp("broker")
    (folder / "passwords").touch(mode=0o600)
    for user in USERS:
        subprocess.run(["mosquitto_passwd", "-b", folder / "passwords", user, user * 2], check=True)
    options = f"allow_anonymous false\npassword_file {folder}/passwords\n"
    options += f"acl_file {ROOT}/deploy/mosquitto.acl\n"
    with configured_mosquitto(folder, options) as port:
        yield port


def url(port: int, user: str) -> str:
    return f"mqtt://{user}:{user * 2}@{broker.HOST}:{port}"


class Forger:
    """Has the observer's identity and tries all that would end a run, a turn, or somebody's presence."""

    def __init__(self, port: int, loop: NetworkLoop) -> None:
        self.heard: list[str] = []
        self.transport = MqttTransport(url(port, "observer"), f"{FLEET}-forger", loop=loop)
        for topic in (topics.topic_filter(topics.UP, FLEET), topics.topic_filter(topics.DOWN, FLEET)):
            self.transport.subscribe(topic, lambda delivery: self.heard.append(delivery.topic))
        self.transport.subscribe(topics.topic_filter(topics.STATUS, FLEET), self._forge)
        self.transport.subscribe(topics.topic(topics.EVENTS, FLEET, "cloud"), self._forge)
        self.transport.connect(20)

    def _forge(self, delivery: Delivery) -> None:
        """Whenever something is heard."""
        session = secrets.token_hex(8)
        plain_bytes, lines = encode_lines(['{"event": "result", "time": 1e9}'])
        for vehicle in (*CARS, "observer"):
            turned = {"vehicle": vehicle, "grant": session, "step": 0, "reason": "forged"}
            self._say(topics.DOWN, vehicle, Finish(vehicle=vehicle, reason="forged"))
            self._say(topics.DOWN, vehicle, Reject(**turned, final=True))
            self._say(topics.UP, vehicle, TurnFailed(**turned, turn_id=1))
            self._say(topics.STATUS, vehicle, Status(vehicle=vehicle, session=session, online=False, beat=9))
            self._say(topics.UP, vehicle, b"no message at all")
        self._say(topics.STATUS, "cloud", Status(vehicle="cloud", session=session, online=True, beat=9**9))
        happened = Happened(vehicle="cloud", session=session, first=0, plain_bytes=plain_bytes, lines=lines)
        self._say(topics.EVENTS, "cloud", happened)

    def _say(self, channel: topics.Channel, vehicle: str, message: object) -> None:
        payload = b"\x00" + (message if isinstance(message, bytes) else msgspec.msgpack.encode(message))
        self.transport.publish(topics.topic(channel, FLEET, vehicle), payload, retain=channel.retained)


def test_observer_hears_the_run_and_changes_nothing(
    tiny_world: World, undisturbed: TinyFleet, port: int, tmp_path: Path
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path / "fleet")
    folder, stop = tmp_path / "observer", threading.Event()
    folder.mkdir()
    with NetworkLoop() as loop:
        looking = MqttTransport(url(port, "observer"), f"{FLEET}-observer", loop=loop)
        link = ObserverLink(looking, FLEET)
        link.open(20)
        forger = Forger(port, loop)
        with Observer(link, folder, said=lambda _: None):
            hosts = [Host(fleet.host(car), connector(url(port, car), loop), stop) for car in CARS]
            threads = [threading.Thread(target=host.run) for host in hosts]
            for thread in threads:
                thread.start()
            try:
                serve(
                    fleet.config,
                    connector(url(port, "cloud"), loop),
                    run_folder=fleet.run_folder,
                    resume=False,
                    stop=stop,
                )
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            wait_until(lambda: '"event": "result"' in (folder / "log.jsonl").read_text())
        looking.close()
        forger.transport.close()
    assert fleet.fingerprint() == undisturbed.fingerprint()
    assert fleet.scores() == undisturbed.scores()
    result = fleet.result()
    assert result["strangers"] == 0 and not any(v["rejects"] for v in result["vehicles"].values())

    def told(path: Path, *of_the_observer: str) -> list[tuple[str, str | None]]:
        events = map(json.loads, path.read_text().splitlines())
        names = [(event["event"], event.get("vehicle")) for event in events]
        return [name for name in names if name[0] not in (*of_the_observer, "left")]

    happened = told(fleet.run_folder / "log.jsonl")
    assert told(folder / "log.jsonl", "waiting", "present") == happened
    assert looking.traffic.sent_packets == 0
    traffic = forger.transport.traffic
    assert traffic.sent_packets > 100 and traffic.handler_errors == 0 and forger.heard == []


def test_fleets_that_are_there_are_named_to_whoever_hears_nothing(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_OTHERS_S", 0.5)
    with NetworkLoop() as loop:
        cloud = MqttTransport(url(port, "cloud"), "cloud", loop=loop)
        cloud.connect(20)
        cloud.publish(topics.topic(topics.STATUS, "streets", "cloud"), b"here", retain=True)
        cloud.close()
        observer = MqttTransport(url(port, "observer"), "observer", loop=loop)
        link = ObserverLink(observer, "street")
        link.open(20)
        said = command.no_word(link)
        observer.close()
    assert "no word of fleet 'street' yet; fleets that are known there: streets" in said


def test_observer_with_a_wrong_password_is_refused_in_one_line(port: int, refuse: Refuse) -> None:
    assert "refused: not authorized" in refuse("watch", f"mqtt://observer:x@{broker.HOST}:{port}/{FLEET}")
