"""What a fleet asks of a broker, asked of one that clusters: RabbitMQ with its MQTT plugin."""

from __future__ import annotations

from pathlib import Path

from mqtt_fixtures import WAIT_S, listening, url
from process_fixtures import Launch, learnt, write_scenario
from rabbitmq import running_rabbitmq

from fleet.run.reach import check_reach
from protocol.mqtt.transport import NetworkLoop


def test_rabbitmq_hands_on_what_a_fleet_says(tmp_path: Path) -> None:
    with running_rabbitmq(tmp_path) as port, NetworkLoop() as loop:
        check_reach(url(port), "demo", WAIT_S)
        talker, inbox = listening(url(port), loop, "fleet/+/up", "talker")
        sizes = (0, 1, 20_000, 3_000_000)
        for size in sizes:
            talker.publish("fleet/car/up", bytes(size))
        assert [len(inbox.next().payload) for _ in sizes] == list(sizes)
        talker.publish("fleet/cloud/status", b"kept", retain=True)
        later, kept = listening(url(port), loop, "fleet/cloud/status", "later")
        assert kept.next().payload == b"kept"
        talker.close()
        later.close()


def test_fleet_over_rabbitmq_learns_what_it_learns_over_our_broker(tmp_path: Path, frames_root: Path) -> None:
    scenario = write_scenario(
        tmp_path / "scenario.yaml",
        frames_root,
        first_order={"epochs": 1},
        zeroth_order={"batches": 1},
        evaluation={"ood_frames": 1, "overlays": 0},
    )
    with running_rabbitmq(tmp_path) as port:
        own, other = Launch(tmp_path / "own", scenario), Launch(tmp_path / "other", scenario)
        try:
            own.start().complete()
            other.start("--broker", url(port)).complete()
        finally:
            own.stop()
            other.stop()
    assert learnt(other.run_folder) == learnt(own.run_folder)
    assert set(other.ids()) == set(own.ids()) - {"broker"}
