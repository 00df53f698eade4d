"""The byte counts of `result.json` against what crossed the wire, seen by a proxy before the broker."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from brokers import running_broker
from process_fixtures import CARS, Launch, write_scenario
from wire_proxy import WireProxy

from protocol.session.topics import CLOUD_ID

pytestmark = pytest.mark.timeout(300)

TOLERANCE = 0.02


def test_byte_counts_of_the_result_are_what_crossed_the_wire(tmp_path: Path, frames_root: Path) -> None:
    scenario = write_scenario(
        tmp_path / "scenario.yaml",
        frames_root,
        rounds=1,
        spsa={"queries": 32},  # else the cloud's goodbye, after the result, weighs too much
        patience={"heartbeat_s": 10, "retry_s": 5},  # as in any run that no test disturbs
    )
    launch = Launch(tmp_path / "run", scenario)
    with running_broker("amqtt", tmp_path) as port, WireProxy(port) as proxy:
        try:
            launch.start("--broker", proxy.url).complete()
        finally:
            launch.stop()
    result = launch.result()
    fleet = json.loads((launch.run_folder / "cloud.json").read_text())["fleet"]
    for car in CARS:
        entry = result["vehicles"][car]
        for direction in ("up", "down"):
            crossed = [
                packet
                for packet in proxy.published
                if packet.client_id.startswith(f"{fleet}-{car}-") and packet.direction == direction
            ]
            crossed_bytes = sum(packet.packet_bytes for packet in crossed)
            counted_bytes = entry[f"{direction}link_bytes"]
            by_topic = Counter[str]()
            for packet in crossed:
                by_topic[packet.topic] += packet.packet_bytes
            assert counted_bytes == pytest.approx(crossed_bytes, rel=TOLERANCE), (car, by_topic, entry)
    asked = "blackfleet/v1/fleet/reach-"  # what the launcher sends to itself before any vehicle starts
    topics = {packet.topic for packet in proxy.published if not packet.topic.startswith(asked)}
    channels = {(car, level) for car in CARS for level in ("up", "down", "status")}
    channels |= {(CLOUD_ID, "status"), (CLOUD_ID, "events")}
    assert topics == {f"blackfleet/v1/{fleet}/{who}/{level}" for who, level in channels}
