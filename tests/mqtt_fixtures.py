"""What tests of MQTT sessions share: an inbox, waiting, a client that listens."""

from __future__ import annotations

import queue
import time

from fleet import broker
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session.transport import Delivery

WAIT_S = 20


class Inbox:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self._deliveries: queue.Queue[Delivery] = queue.Queue()

    def __call__(self, delivery: Delivery) -> None:
        self._deliveries.put(delivery)

    def next(self) -> Delivery:
        return self._deliveries.get(timeout=WAIT_S)

    @property
    def empty(self) -> bool:
        return self._deliveries.empty()


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def url(port: int, options: str = "") -> str:
    return broker.broker_url(port) + options


def listening(
    address: str, loop: NetworkLoop, topic_filter: str, client_id: str
) -> tuple[MqttTransport, Inbox]:
    client, inbox = MqttTransport(address, client_id, loop=loop), Inbox()
    client.subscribe(topic_filter, inbox)
    client.connect(WAIT_S)
    return client, inbox
