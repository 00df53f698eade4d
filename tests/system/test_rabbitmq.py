"""What a fleet asks of a broker, asked of one that clusters: RabbitMQ with its MQTT plugin."""

from __future__ import annotations

from pathlib import Path

from mqtt_fixtures import WAIT_S, listening, url
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
