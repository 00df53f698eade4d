"""What the product expects of a publish-subscribe session, whichever library or process carries it.

`protocol.mqtt.transport.MqttTransport` speaks to a broker, `protocol.session.memory` stays in this process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import Mistake

log = logging.getLogger(__name__)


class BrokerUnreachable(Mistake, ConnectionError):
    """No session with the broker: the message names its URL, what happened, and what to do."""


@dataclass(frozen=True)
class Will:
    """What the broker publishes for a client that vanishes without saying goodbye."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True)
class Delivery:
    """One message as it arrived."""

    topic: str
    payload: bytes
    retained: bool
    """True: an old message the broker kept, sent because of a new subscription."""


Handler = Callable[[Delivery], None]
"""Gets a delivery on the network thread: it only enqueues."""


@dataclass
class Traffic:
    """PUBLISH packets of one session, with the whole packet counted (see `publish_packet_bytes`)."""

    sent_packets: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    received_bytes: int = 0
    reconnects: int = 0
    """Sessions established after the first one."""
    dropped: int = 0
    """Messages that were not sent, because the queue was full or the session was offline (QoS 0)."""
    handler_errors: int = 0
    """Exceptions that left a handler or `on_connect`; each one is in the log."""
    certificate_days: int | None = None
    """Until this client's certificate ends, where that is soon."""


class Transport(Protocol):
    """One client's session with the broker; safe to call from any thread."""

    @property
    def connected(self) -> bool:
        """True while the session is up, with the subscriptions made so far when it was established."""

    @property
    def traffic(self) -> Traffic:
        """Counters since the transport was made."""

    @property
    def packet_limit_bytes(self) -> int | None:
        """The largest packet that the broker says it takes; None: it has said nothing."""

    def connect(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Wait for the first session; later ones are made in the background.

        Raises `BrokerUnreachable` after `timeout_s`, or at once when the broker refuses this client for good
        or `stop` is set.
        """

    def subscribe(self, topic_filter: str, handler: Handler, qos: int = 1) -> None:
        """Hand what matches `topic_filter` (`+` one level, `#` the rest) to `handler`, also after reconnects.

        Each filter has one handler; subscribing again replaces it. Keep the filters of one client disjoint:
        brokers differ in how often they then deliver.
        """

    def unsubscribe(self, topic_filter: str) -> None:
        """No longer be handed what matches this filter; what is on its way may still come."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        on_acknowledged: Callable[[], None] | None = None,
    ) -> None:
        """Hand `payload` over for sending; return at once. QoS 1 waits in a bounded queue while offline.

        `on_acknowledged` is called, from any thread, once the broker has it (QoS 1); it must not wait.
        """

    def seconds_disconnected(self) -> float:
        """Seconds since the session was lost (or since `connect` was called), 0.0 while it is up."""

    def close(self) -> None:
        """Say goodbye (the will is not sent) and stop. Waiting QoS 1 messages get a short time to leave."""


def call_guarded(callback: Callable[[], None], client_id: str, traffic: Traffic) -> None:
    """Call what is not the transport's own; an exception there is counted and logged, and goes no further."""
    try:
        callback()
    except Exception:
        traffic.handler_errors += 1
        log.exception("client %s: exception in a callback", client_id)


def publish_packet_bytes(topic: str, payload_len: int, qos: int) -> int:
    """Size of the MQTT 3.1.1 PUBLISH packet: fixed header, topic, packet id (QoS 1 and 2) and payload."""
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + payload_len
    length_field = 1
    while remaining >> (7 * length_field):
        length_field += 1
    return 1 + length_field + remaining


def check_topic(topic: str) -> None:
    """Raise ValueError where `topic` can't be published on."""
    if not topic or "+" in topic or "#" in topic:
        raise ValueError(f"a topic to publish on must not be empty nor hold wildcards, got {topic!r}")


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether `topic` falls under `topic_filter` (MQTT 3.1.1, section 4.7)."""
    filter_levels, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and filter_levels[0] in ("+", "#"):
        return False
    for position, wanted in enumerate(filter_levels):
        if wanted == "#":
            return True
        if position >= len(levels) or wanted not in ("+", levels[position]):
            return False
    return len(filter_levels) == len(levels)
