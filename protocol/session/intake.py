"""What arrives at one client: put together on the network thread, decoded in the thread that reads it.

The network thread also answers for how far messages in parts are, so that a sender need not wait for a reader
that is busy.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from protocol import messages
from protocol.errors import WireError
from protocol.seldom import is_logged
from protocol.session import parts, topics
from protocol.session.clock import Clock
from protocol.session.inbox import FairInbox, Mutes, Waiting
from protocol.session.parts import Say, Word
from protocol.session.reassembly import Collected, Reassembler
from protocol.session.seal import without_seal
from protocol.session.topics import Channel
from protocol.session.transport import Delivery, publish_packet_bytes

log = logging.getLogger(__name__)

MAX_UNFINISHED = 8
"""Messages of one sender that may have arrived in part; a vehicle has at most four requests under way."""
_INBOX_SIZE = 20_000
_MOST_OF_ONE = 8_000
"""Messages of one sender that wait to be read; a vehicle has four requests under way."""
_LARGE_PART_BYTES = 1000
"""What a large message is sent in at least; of these many come in a short time."""
_LARGE_PART_WEIGHT = 1 / 8
_REPETITION_WEIGHT = 1 / 5
"""Of a part that has been here before, as an offence: a lost connection brings a window of 256 at most."""

AnyMessage = (
    messages.Up | messages.Down | messages.Status | messages.Events | messages.Sight | messages.Classes
)

_DECODERS: dict[str, msgspec.msgpack.Decoder[AnyMessage]] = {
    channel.name: msgspec.msgpack.Decoder(channel.message_type) for channel in topics.CHANNELS.values()
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Malformed:
    """A delivery that is no message of ours; `vehicle` is the topic's claim."""

    vehicle: str
    reason: str
    packet_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A decoded message and what it cost: all PUBLISH packets it came in, each once."""

    vehicle: str
    message: AnyMessage
    packet_bytes: int
    repeated_bytes: int = 0
    """Of parts that came again on this topic since the message before."""


@dataclass(frozen=True, slots=True)
class _Item:
    address: topics.Address
    content: Collected | str
    """A message, or what is wrong."""
    packet_bytes: int
    repeated_bytes: int = 0


def _ignore() -> None:
    """Nobody wants to know."""


class Intake:
    """Keeps what arrives until it is read; bounded, and what doesn't fit is counted and logged."""

    def __init__(
        self,
        *,
        clock: Clock,
        limit_bytes: int,
        may_send_parts: Callable[[str], bool],
        say: Callable[[str, Word], None],
        heed: Callable[[str, Word], None],
        open_seal: Callable[[Channel, str, bytes], bytes] = without_seal,
    ) -> None:
        """`limit_bytes`: of one message, and of all unfinished ones of a sender; of those that wait to be
        read, twice as many.

        `say` sends a word on a topic; `heed` gets one that is about what this client sends on a topic;
        `open_seal` gives what is in a message of a channel and vehicle, or raises a `WireError`.
        """
        self.dropped = 0
        """Messages for which there was no room; whoever misses an answer asks for it again."""
        self.on_arrival: Callable[[], None] = _ignore
        """Called when there is something to receive, by the network thread."""
        self.moved_at = 0.0
        """By the clock, when the latest part of a message arrived whose other parts are awaited."""
        self._clock = clock
        self._may_send_parts = may_send_parts
        self._say = say
        self._heed = heed
        self._open_seal = open_seal
        self._inbox: FairInbox[_Item | Malformed] = FairInbox(
            most=_INBOX_SIZE, most_of_one=_MOST_OF_ONE, most_bytes_of_one=2 * limit_bytes
        )
        self.mutes = Mutes(clock, self._note_mute)
        """The empty name stands for all that are not in the fleet."""
        self.on_mute: Callable[[], None] = _ignore
        """Called when somebody is no longer heard, by any thread."""
        self._lock = threading.Lock()
        """Around the reassembler, which deliveries and reconnections share."""
        self._reassembler = Reassembler(limit_bytes, MAX_UNFINISHED)
        self._repeated_bytes: Counter[str] = Counter()
        """By topic, since its last whole message."""

    @property
    def held_bytes(self) -> int:
        """Of messages whose other parts are awaited."""
        with self._lock:
            return self._reassembler.held_bytes

    def deliver(self, delivery: Delivery) -> None:
        """A transport's handler."""
        payload = delivery.payload
        if not payload and delivery.topic.endswith(topics.STATUS.name):
            return  # a cleared retained status
        try:
            address = topics.parse(delivery.topic)
        except WireError as error:
            self._put(Malformed(vehicle="", reason=str(error), packet_bytes=0), len(payload))
            return
        is_large_part = len(payload) >= _LARGE_PART_BYTES and parts.is_part(payload)
        weight = _LARGE_PART_WEIGHT if is_large_part else 1.0
        is_status = address.channel is topics.STATUS
        if not self.mutes.hears(self._sender(address.vehicle), weight, is_status=is_status):
            return
        word = parts.read_word(payload)
        if word is not None and address.channel is not topics.STATUS:
            self._take_word(address, word)
            return
        cost = publish_packet_bytes(delivery.topic, len(payload), address.channel.qos)
        answer = self._take(address, delivery, cost)
        if answer is not None and address.channel is not topics.STATUS:
            self._say(_other_way(address), answer)

    def resume(self) -> None:
        """Tell all senders where unfinished messages are to go on: the connection was lost for a while."""
        with self._lock:
            gaps = self._reassembler.unfinished()
        for topic, word in gaps:
            self._say(_other_way(topics.parse(topic)), word)

    def receive(self, timeout_s: float) -> Received | Malformed | None:
        """The next message, or None when `timeout_s` has passed without a whole one."""
        try:
            item = self._clock.take(self._inbox, timeout_s).item
        except queue.Empty:
            return None
        return item if isinstance(item, Malformed) else self._decode(item)

    def _decode(self, item: _Item) -> Received | Malformed:
        vehicle = item.address.vehicle
        try:
            if isinstance(item.content, str):
                raise parts.PartsError(item.content)
            channel = item.address.channel
            message = _DECODERS[channel.name].decode(self._open_seal(channel, vehicle, item.content.join()))
            if message.vehicle != vehicle:
                raise WireError(f"message of vehicle {message.vehicle!r} on the topic of {vehicle!r}")
        except (WireError, msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:300]
            return Malformed(vehicle=vehicle, reason=reason, packet_bytes=item.packet_bytes)
        return Received(
            vehicle=vehicle,
            message=message,
            packet_bytes=item.packet_bytes,
            repeated_bytes=item.repeated_bytes,
        )

    def refused(self, vehicle: str) -> None:
        """A message of this sender was refused: if it goes on so, it is not heard for a while."""
        self.mutes.refused(self._sender(vehicle))

    def _note_mute(self, sender: str, count: int, seconds: float) -> None:
        if is_logged(count, first=10):
            whose = repr(sender) if sender else "who is not in this fleet"
            words = "%s sends too much, or what is refused: not heard for %g s (mute %d so far)"
            log.warning(words, whose, seconds, count)
        self.on_mute()

    def _sender(self, vehicle: str) -> str:
        """Whose turn and room a message takes: those of no vehicle of the fleet share one."""
        return vehicle if self._may_send_parts(vehicle) else ""

    def _take_word(self, address: topics.Address, word: Word) -> None:
        topic = topics.topic(address.channel, address.fleet, address.vehicle)
        if word.say is not Say.ASK:
            self._heed(_other_way(address), word)
        elif self._may_send_parts(address.vehicle):
            with self._lock:
                answer = self._reassembler.progress(topic, word.message_id)
            self._say(_other_way(address), answer)

    def _take(self, address: topics.Address, delivery: Delivery, cost: int) -> Word | None:
        """Keep a payload; returns what its sender is to be told."""
        if parts.is_part(delivery.payload) and not self._may_send_parts(address.vehicle):
            reason = f"a part of a message, and {address.vehicle!r} is not in this fleet"
            self._put(_Item(address, reason, cost), cost)
            return None
        try:
            with self._lock:
                dropped = self._reassembler.dropped
                arrival = self._reassembler.take(delivery.topic, delivery.payload, cost)
                is_one_too_many = self._reassembler.dropped > dropped
        except parts.PartsError as error:
            # Counted here already: a reader that is slow would let much more come.
            self.refused(address.vehicle)
            self._put(_Item(address, str(error), cost), cost)
            return None
        if is_one_too_many:
            self.refused(address.vehicle)
        if arrival.repeated:
            self._repeated_bytes[delivery.topic] += cost
            self.mutes.refused(self._sender(address.vehicle), _REPETITION_WEIGHT)
        if arrival.message is None:
            self.moved_at = self._clock.now()
        else:
            message, repeated_bytes = arrival.message, self._repeated_bytes.pop(delivery.topic, 0)
            self._put(_Item(address, message, message.packet_bytes, repeated_bytes), message.packet_bytes)
        return arrival.answer

    def _put(self, item: _Item | Malformed, size: int) -> None:
        vehicle = item.vehicle if isinstance(item, Malformed) else item.address.vehicle
        if not self._inbox.offer(Waiting(self._sender(vehicle), item, size)):
            self.dropped += 1
            if is_logged(self.dropped, first=1):
                log.warning("no room for messages of %r: %d dropped so far", vehicle, self.dropped)
        self._clock.notify(self._inbox)
        self.on_arrival()


def _other_way(address: topics.Address) -> str:
    """The topic on which the receiver of a message speaks to its sender."""
    return topics.topic(topics.other_way(address.channel), address.fleet, address.vehicle)
