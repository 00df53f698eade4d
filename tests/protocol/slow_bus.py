"""A transport whose broker is the test: it acknowledges, delivers and loses as it is told."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from protocol.session.clock import Item, RealClock
from protocol.session.transport import Delivery, Handler, Traffic, Transport, topic_matches


class HandClock(RealClock):
    """Moves when the test moves it; waiting takes no time."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now(self) -> float:
        return self.time_s


@dataclass(frozen=True)
class Packet:
    """What was published and not acknowledged."""

    topic: str
    payload: bytes
    acknowledged: Callable[[], None] | None


class SlowBus:
    """Two or more `SlowTransport`s that hear each other."""

    def __init__(self) -> None:
        self.clients: list[SlowTransport] = []

    def client(self) -> SlowTransport:
        self.clients.append(SlowTransport(self))
        return self.clients[-1]

    def deliver(self, topic: str, payload: bytes) -> None:
        for client in self.clients:
            for topic_filter, handler in client.handlers.items():
                if topic_matches(topic_filter, topic):
                    handler(Delivery(topic, payload, retained=False))

    def run(self, lose: Callable[[bytes], bool] = lambda _: False) -> None:
        """Acknowledge and deliver until nothing is under way."""
        while any(client.step(lose) for client in self.clients):
            pass


class SlowTransport(Transport):
    """One client."""

    packet_limit_bytes: int | None = None  # type: ignore[assignment]  # tests set it
    connected = True  # type: ignore[assignment]

    def __init__(self, bus: SlowBus) -> None:
        self.bus = bus
        self.handlers: dict[str, Handler] = {}
        self.under_way: deque[Packet] = deque()

    @property
    def traffic(self) -> Traffic:
        return Traffic()

    def connect(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        del timeout_s, stop

    def subscribe(self, topic_filter: str, handler: Handler, qos: int = 1) -> None:
        self.handlers[topic_filter] = handler

    def unsubscribe(self, topic_filter: str) -> None:
        self.handlers.pop(topic_filter, None)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        on_acknowledged: Callable[[], None] | None = None,
    ) -> None:
        self.under_way.append(Packet(topic, payload, on_acknowledged))

    def step(self, lose: Callable[[bytes], bool] = lambda _: False) -> bool:
        """Let the oldest packet arrive at the broker, and from there at its receivers unless it is lost."""
        if not self.under_way:
            return False
        packet = self.under_way.popleft()
        if packet.acknowledged is not None:
            packet.acknowledged()
        if not lose(packet.payload):
            self.bus.deliver(packet.topic, packet.payload)
        return True

    def seconds_disconnected(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


class ActingClock(HandClock):
    """While somebody waits, time passes and the rest of the world acts; all in one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[float], None] = lambda now: None

    def take(self, inbox: queue.Queue[Item], timeout_s: float) -> Item:
        if inbox.empty() and timeout_s > 0:
            self.time_s += timeout_s
            self.act(self.time_s)
        return inbox.get_nowait()
