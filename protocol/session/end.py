"""What both ends have in common: a message is encoded, split, and sent as the network takes it.

What arrives is reassembled, decoded, and its sender checked.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable

import msgspec

from protocol import messages
from protocol.errors import BlackfleetError
from protocol.session import parts, topics
from protocol.session.clock import Clock
from protocol.session.intake import AnyMessage, Intake, Malformed, Received
from protocol.session.outgoing import Outgoing, Sending
from protocol.session.parts import MessageTooLarge
from protocol.session.seal import Seal, without_seal
from protocol.session.transport import Transport, Will, publish_packet_bytes
from protocol.session.weights_bodies import WeightsBodies

Connect = Callable[[str, Will, Callable[[], None]], Transport]
"""Makes a transport from (client id, last will, what to do after each connect)."""

DEFAULT_PAYLOAD_LIMIT_BYTES = 128 * 1024 - 256
"""Under the smallest hard packet limit of the cloud brokers, with room for the topic."""
SMALLEST_PAYLOAD_LIMIT_BYTES = 1024

MAX_MESSAGE_BYTES = messages.DEFAULT_LIMIT_BYTES
_DRAIN_S = 3.0
_ENCODER = msgspec.msgpack.Encoder()


class TooManyWaiting(BlackfleetError):
    """A vehicle for which so much waits that no more is kept; whoever misses an answer asks for it again."""


class End:
    """What both ends share."""

    def __init__(
        self,
        transport: Transport,
        fleet: str,
        *,
        payload_limit_bytes: int,
        limit_bytes: int,
        stall_s: float,
        clock: Clock,
        seal: Seal | None,
    ) -> None:
        """With `seal` all that is said is sealed, and nothing is heard that is not."""
        self.transport = transport
        self.fleet = topics.check_id(fleet, "fleet id")
        self.clock = clock
        self._seal = seal
        self.limit_bytes = limit_bytes
        """The largest message that this end takes; its status says so."""
        self._payload_limit_bytes = payload_limit_bytes
        self._bodies = WeightsBodies()
        self._message_ids = itertools.count(secrets.randbits(48))
        self._outgoing = Outgoing(transport, clock, stall_s)
        self._intakes: list[Intake] = []
        self._intake = self._new_intake()

    def _new_intake(self) -> Intake:
        intake = Intake(
            clock=self.clock,
            limit_bytes=self.limit_bytes,
            may_send_parts=self._may_send_parts,
            say=self._outgoing.say,
            heed=self._outgoing.heed,
            open_seal=without_seal if self._seal is None else self._seal.open,
        )
        self._intakes.append(intake)
        return intake

    def _aside(self, topic_filter: str) -> Intake:
        """What arrives on these topics, for another thread than the one that reads all else."""
        intake = self._new_intake()
        self.transport.subscribe(topic_filter, intake.deliver)
        return intake

    @property
    def dropped(self) -> int:
        """Messages that arrived and for which there was no room."""
        return self._intake.dropped

    def resume(self) -> None:
        """To be called after each (re)connect: what was on its way goes on where it stopped."""
        for intake in self._intakes:
            intake.resume()

    def receive(self, timeout_s: float) -> Received | Malformed | None:
        """The next message, or None when `timeout_s` has passed without a whole one."""
        self._outgoing.tick()
        received = self._intake.receive(timeout_s)
        if isinstance(received, Received) and isinstance(received.message, messages.Status):
            self._note_limit(received.message)
        return received

    def announce(self, status: messages.Status) -> int:
        """Publish a retained status, in place of one that still waits; returns the bytes that this adds.

        What is known of this end's link is put into it.
        """
        round_trip_s = self._outgoing.round_trip_s
        status = msgspec.structs.replace(
            status,
            limit_bytes=self.limit_bytes,
            round_trip_ms=None if round_trip_s is None else max(0, round(1000 * round_trip_s)),
            reconnects=self.transport.traffic.reconnects,
            certificate_days=self.transport.traffic.certificate_days,
        )
        sending = self._sending(topics.STATUS, status.vehicle, status)
        return sending.packet_bytes - self._outgoing.replace_waiting(sending)

    def encode_status(self, status: messages.Status) -> bytes:
        """The payload of a status that is not announced."""
        return encode_status(status, self._seal)

    def close(self) -> None:
        """Send what waits, for a short time, and say goodbye."""
        self._outgoing.drain(_DRAIN_S)
        self.transport.close()

    def _may_send_parts(self, vehicle: str) -> bool:
        """Whether room is kept for unfinished messages of this sender."""
        del vehicle
        return True

    def _note_limit(self, status: messages.Status) -> None:
        """What its sender says of the largest message that it takes."""

    def _limit_of(self, receiver: str) -> int:
        """The largest message that a receiver takes, as far as is known."""
        del receiver
        return MAX_MESSAGE_BYTES

    @property
    def is_sealed(self) -> bool:
        """Whether only who has the run's keys is heard."""
        return self._seal is not None

    def _send(self, channel: topics.Channel, vehicle: str, receiver: str, message: AnyMessage) -> Sending:
        """Put a message on its way.

        Raises:
            MessageTooLarge: its receiver could not take it; nothing is sent.
        """
        self.clock.catch_up()
        sending = self._sending(channel, vehicle, message)
        limit_bytes = self._limit_of(receiver)
        if sending.frames.message_bytes > limit_bytes:
            raise MessageTooLarge(
                f"a message {type(message).__name__} of {sending.frames.message_bytes} bytes is more than "
                f"the {limit_bytes} bytes that {receiver!r} takes"
            )
        self._outgoing.send(sending)
        return sending

    def _sending(self, channel: topics.Channel, vehicle: str, message: AnyMessage) -> Sending:
        topic = topics.topic(channel, self.fleet, vehicle)
        limit_bytes = self._publish_limit_bytes(topic, channel.qos)
        pieces = self._encode(message)
        if self._seal is not None:
            is_for_session = isinstance(message, messages.Turn)
            pieces = self._seal.close(channel, vehicle, pieces, is_for_session=is_for_session)
        frames = parts.Framed(pieces, limit_bytes, next(self._message_ids))
        return Sending(frames, topic, qos=channel.qos, retain=channel.retained)

    def _publish_limit_bytes(self, topic: str, qos: int) -> int:
        """The largest payload that goes in one publish."""
        limit_bytes = self._payload_limit_bytes
        if self.transport.packet_limit_bytes is None:
            return limit_bytes
        header_bytes = publish_packet_bytes(topic, limit_bytes, qos) - limit_bytes
        return min(limit_bytes, self.transport.packet_limit_bytes - header_bytes)

    def _encode(self, message: AnyMessage) -> list[bytes]:
        if isinstance(message, messages.Weights):
            return self._bodies.encode(message)
        return [_ENCODER.encode(message)]


def encode_status(status: messages.Status, seal: Seal | None = None) -> bytes:
    """The payload of a status, for a last will that the broker publishes in the sender's name."""
    pieces = [_ENCODER.encode(status)]
    if seal is not None:
        pieces = seal.close(topics.STATUS, status.vehicle, pieces, is_for_session=False)
    return parts.split(b"".join(pieces), DEFAULT_PAYLOAD_LIMIT_BYTES, 0)[0]
