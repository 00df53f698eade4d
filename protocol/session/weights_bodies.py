"""Weights that go to many, encoded once."""

from __future__ import annotations

import msgspec

from protocol.codec.weights import WeightTensor
from protocol.messages import Weights

_ENCODER = msgspec.msgpack.Encoder()


class WeightsBodies:
    """Encodes the same weights once, however many vehicles they go to."""

    def __init__(self) -> None:
        self._tensors: tuple[WeightTensor, ...] | None = None
        self._body = b""

    def encode(self, message: Weights) -> list[bytes]:
        """The message in two pieces: what is the vehicle's own, and what all have in common."""
        if message.tensors is not self._tensors:
            self._tensors, self._body = message.tensors, _ENCODER.encode(message.tensors)
        # The tensors are the last field; an empty array takes one byte.
        head = _ENCODER.encode(msgspec.structs.replace(message, tensors=()))[:-1]
        return [head, self._body]
