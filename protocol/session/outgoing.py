"""Messages on their way: each waits for its turn, none waits for a slow neighbour, and none is forgotten.

What a client sends goes through one connection. A window bounds what it has under way there, and its topics
take turns, a payload each, so that a heartbeat or a second vehicle need not wait for the end of a large
message. A message in parts is followed to its receiver, which says how far it is: another window, one a
topic, bounds what is between the two, and where parts were lost the sender goes back to them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from protocol.session.clock import Clock
from protocol.session.parts import Framed, Say, Word
from protocol.session.transport import Transport, publish_packet_bytes
from protocol.session.window import Passage, Window

_LONGEST_STALL_S = 30.0
_TICK_S = 0.5
_PARTS_A_WORD = 16
_SMALL_BYTES = 1024
_MOST_WORDS = 256
"""On one topic; the oldest go, and whoever misses one asks again."""


class Sending:
    """One message on its way; safe to read from any thread."""

    def __init__(self, frames: Framed, topic: str, *, qos: int = 1, retain: bool = False) -> None:
        self.frames = frames
        self.topic = topic
        self.qos = qos
        self.retain = retain
        self.packet_bytes = (len(frames) - 1) * publish_packet_bytes(topic, frames.size(0), qos)
        self.packet_bytes += publish_packet_bytes(topic, frames.size(len(frames) - 1), qos)
        """Of all its packets, each once."""
        self.done_at: float | None = None
        """When it had arrived: at the broker, or in several parts at its receiver."""
        # What follows belongs to the sender, under its lock.
        self.next = 0
        self.have = 0
        self.unacknowledged = 0
        self.moved_at = 0.0
        self.stall_s = 0.0
        self.under_way: deque[tuple[int, Passage]] = deque()

    def arrived(self, now: float) -> None:
        """Whoever still asks how far it is need not keep its content alive."""
        self.done_at = now
        self.frames.release()

    @property
    def done(self) -> bool:
        """Whether it has arrived."""
        return self.done_at is not None


@dataclass
class _Lane:
    """What waits on one topic."""

    topic: str
    window: Window
    words: deque[bytes] = field(default_factory=lambda: deque(maxlen=_MOST_WORDS))
    """Words about messages in parts, which wait for nobody."""
    queue: deque[Sending] = field(default_factory=deque)
    """What has parts that are to be sent."""
    unconfirmed: dict[int, Sending] = field(default_factory=dict)
    """By message id: what was sent and has not been confirmed by its receiver."""
    ready: bool = False
    """Whether it stands in the line of lanes."""
    unasked_parts: int = 0
    unasked_bytes: int = 0

    def find(self, message_id: int) -> Sending | None:
        """A message in parts that is under way."""
        waiting = (sending for sending in self.queue if sending.frames.message_id == message_id)
        return self.unconfirmed.get(message_id) or next(waiting, None)

    def in_parts(self) -> list[Sending]:
        """Messages in parts that have set out."""
        begun = [sending for sending in self.queue if sending.next and not sending.frames.is_whole]
        return [*self.unconfirmed.values(), *begun]


@dataclass(frozen=True)
class _Packet:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    sending: Sending | None


class Outgoing:
    """Everything that one client sends."""

    def __init__(self, transport: Transport, clock: Clock, stall_s: float) -> None:
        """A message in parts that has not moved for `stall_s`, later for twice as long, is asked about."""
        self._stall_s = stall_s
        self._transport = transport
        self._clock = clock
        # Never held while the transport is called, which may call back.
        self._changed = threading.Condition()
        self._window = Window(clock)
        self._lanes: dict[str, _Lane] = {}
        self._line: deque[_Lane] = deque()
        self._with_parts: dict[str, _Lane] = {}
        """By topic: lanes that may hold a message in parts; few, however large the fleet."""
        self._publishing = False
        self._ticked_at = clock.now()
        self.round_trip_s: float | None = None
        """The latest passage of a small packet to the broker and back, with nothing ahead of it."""

    def send(self, sending: Sending) -> None:
        """Put a message at the end of its topic's queue."""
        with self._changed:
            lane = self._lane(sending.topic)
            lane.queue.append(sending)
            if not sending.frames.is_whole:
                self._with_parts[lane.topic] = lane
            self._wake(lane)
        self._publish()

    def say(self, topic: str, word: Word) -> None:
        """Tell the other end how far a message is, or ask it."""
        with self._changed:
            lane = self._lane(topic)
            lane.words.append(word.pack())
            self._wake(lane)
        self._publish()

    def replace_waiting(self, sending: Sending) -> int:
        """Send what supersedes the topic's earlier messages; returns the bytes that are not sent for it."""
        with self._changed:
            lane = self._lane(sending.topic)
            saved = sum(waiting.packet_bytes for waiting in lane.queue)
            lane.queue.clear()
        self.send(sending)
        return saved

    def heed(self, topic: str, word: Word) -> None:
        """Take to heart what the receiver says about a message on `topic`."""
        with self._changed:
            lane = self._lane(topic)
            sending = lane.find(word.message_id)
            if sending is None or word.say is Say.ASK:
                return
            self._confirm(lane, sending, min(word.have, len(sending.frames)))
            if not sending.done and word.say is Say.BACK and word.have < sending.next:
                self._go_back(lane, sending)
            self._wake(lane)
        self._publish()

    def forget(self, topic: str) -> None:
        """Send nothing more of what waits on a topic."""
        with self._changed:
            lane = self._lane(topic)
            for sending in lane.in_parts():
                self._empty(lane, sending)
            lane.queue.clear()
            lane.unconfirmed.clear()

    def waiting_bytes(self, topic: str) -> int:
        """Of the messages on a topic that have not set out as a whole."""
        with self._changed:
            return sum(sending.frames.message_bytes for sending in self._lane(topic).queue)

    def waiting(self, topic: str) -> int:
        """How many messages on a topic have not set out as a whole."""
        with self._changed:
            return len(self._lane(topic).queue)

    def tick(self) -> None:
        """Ask how far messages are that have not moved for a while; call it now and then."""
        if self._clock.now() - self._ticked_at < _TICK_S:
            return
        connected = self._transport.connected
        questions: list[tuple[str, Word]] = []
        with self._changed:
            self._ticked_at = now = self._clock.now()
            for lane in list(self._with_parts.values()):
                if not (lane.queue or lane.unconfirmed):
                    del self._with_parts[lane.topic]
                for sending in lane.in_parts():
                    if not connected or sending.unacknowledged:
                        sending.moved_at = now
                    elif sending.have < sending.next and now - sending.moved_at > max(
                        sending.stall_s, self._stall_s
                    ):
                        questions.append((lane.topic, Word(Say.ASK, sending.frames.message_id, 0)))
                        sending.moved_at = now
                        sending.stall_s = min(2 * max(sending.stall_s, self._stall_s), _LONGEST_STALL_S)
        for topic, word in questions:
            self.say(topic, word)

    def drain(self, timeout_s: float) -> None:
        """Wait until the transport has been given everything, for a while."""
        deadline = self._clock.now() + timeout_s
        with self._changed:
            while any(lane.queue or lane.words for lane in self._lanes.values()):
                left_s = deadline - self._clock.now()
                if left_s <= 0 or not self._transport.connected:
                    return
                self._clock.pause(self._changed, min(left_s, 0.1))

    # Under the lock ---------------------------------------------------------------------------------------

    def _lane(self, topic: str) -> _Lane:
        if topic not in self._lanes:
            self._lanes[topic] = _Lane(topic, Window(self._clock))
        return self._lanes[topic]

    def _wake(self, lane: _Lane) -> None:
        if not lane.ready:
            lane.ready = True
            self._line.append(lane)

    def _next(self) -> tuple[_Packet, Callable[[], None]] | None:
        """The next packet and what to do when the broker has it."""
        while self._line and self._window.open:
            lane = self._line.popleft()
            packet = self._take(lane)
            if packet is None:
                lane.ready = False
                continue
            self._line.append(lane)
            size = publish_packet_bytes(packet.topic, len(packet.payload), packet.qos)
            return packet, partial(self._acknowledged, packet.sending, self._window.enter(size))
        return None

    def _take(self, lane: _Lane) -> _Packet | None:
        if lane.words:
            return _Packet(lane.topic, lane.words.popleft(), 1, False, None)
        if not lane.queue:
            return None
        sending = lane.queue[0]
        if sending.frames.is_whole:
            lane.queue.popleft()
            payload = sending.frames.payload(0)
        elif not lane.window.open:
            return None
        else:
            payload = self._take_part(lane, sending)
        sending.next += 1
        sending.unacknowledged += 1
        sending.moved_at = self._clock.now()
        return _Packet(lane.topic, payload, sending.qos, sending.retain, sending)

    def _take_part(self, lane: _Lane, sending: Sending) -> bytes:
        index, frames = sending.next, sending.frames
        size = frames.size(index)
        sending.under_way.append((index, lane.window.enter(size)))
        lane.unasked_parts += 1
        lane.unasked_bytes += size
        last = index == len(frames) - 1
        asks = (
            last
            or not lane.window.open
            or lane.unasked_parts >= _PARTS_A_WORD
            or 2 * lane.unasked_bytes >= lane.window.size_bytes
        )
        if asks:
            lane.unasked_parts = lane.unasked_bytes = 0
        if last:
            lane.queue.popleft()
            lane.unconfirmed[frames.message_id] = sending
        return frames.payload(index, asks=asks)

    def _confirm(self, lane: _Lane, sending: Sending, have: int) -> None:
        now = self._clock.now()
        while sending.under_way and sending.under_way[0][0] < have:
            lane.window.leave(sending.under_way.popleft()[1])
        sending.have = max(sending.have, have)
        sending.moved_at, sending.stall_s = now, 0.0
        if have == len(sending.frames):
            self._empty(lane, sending)
            sending.arrived(now)
            lane.unconfirmed.pop(sending.frames.message_id, None)
            if sending in lane.queue:
                lane.queue.remove(sending)
            self._changed.notify_all()

    def _go_back(self, lane: _Lane, sending: Sending) -> None:
        self._empty(lane, sending)
        sending.next = sending.have
        if lane.unconfirmed.pop(sending.frames.message_id, None) is not None:
            lane.queue.appendleft(sending)

    def _empty(self, lane: _Lane, sending: Sending) -> None:
        while sending.under_way:
            lane.window.forget(sending.under_way.popleft()[1])

    # Without the lock -------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Hand over what may go; one thread at a time, so that the order stays."""
        with self._changed:
            if self._publishing:
                return  # whoever is at it will see what is new
            self._publishing = True
        try:
            while True:
                with self._changed:
                    following = self._next()
                    if following is None:
                        self._publishing = False
                        self._changed.notify_all()
                        return
                packet, acknowledged = following
                self._transport.publish(
                    packet.topic,
                    packet.payload,
                    qos=packet.qos,
                    retain=packet.retain,
                    on_acknowledged=acknowledged,
                )
        except BaseException:
            with self._changed:
                self._publishing = False
            raise

    def _acknowledged(self, sending: Sending | None, passage: Passage) -> None:
        with self._changed:
            self._window.leave(passage)
            if passage.ahead_bytes == passage.bytes <= _SMALL_BYTES:
                self.round_trip_s = self._clock.now() - passage.entered_at
            if sending is not None:
                sending.unacknowledged -= 1
                sending.moved_at = self._clock.now()
                if sending.frames.is_whole:
                    sending.arrived(self._clock.now())
                    self._changed.notify_all()
        self._publish()
