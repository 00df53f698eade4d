"""One encoder for the fleet: vehicles fetch it, and send what they have made of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from cloud_server.desk.handlers.every_turn import end
from cloud_server.desk.handlers.visit import Handlers, Visit, identity, refusal
from protocol.codec.weights import WeightTensor
from protocol.messages import Ack, FetchEncoder, Judged, SendEncoder, SharedEncoder, Turn, TurnDone
from protocol.plans.sharing import digest_of


class KeepsEncoder(Protocol):
    """What an algorithm shares the fleet's encoder by."""

    def fetch(self, vehicle: str) -> tuple[WeightTensor, ...]:
        """What the vehicle's turn starts from; empty where nothing is shared yet."""
        ...

    def take(self, turn: Turn, tensors: Sequence[WeightTensor]) -> bool:
        """Keep what a vehicle sends until its turn is done; whether it can be the fleet's.

        Raises:
            RequestError: it does not fit; nothing has changed.
        """
        ...

    def check_complete(self, turn: Turn) -> None:
        """Check that the turn may end.

        Raises:
            RequestError: something that it asks for is missing.
        """


class SharesEncoder(Protocol):
    """An algorithm whose vehicles may have one encoder."""

    @property
    def shared_encoder(self) -> KeepsEncoder:
        """By which they have it."""
        ...


def shared_encoder_handlers(algorithm: SharesEncoder) -> Handlers:
    """Those of its turns that begin at the fleet's encoder."""
    shared = algorithm.shared_encoder
    return {
        FetchEncoder: partial(_send, shared),
        SendEncoder: partial(_take, shared),
        TurnDone: partial(_end, shared),
    }


def _send(shared: KeepsEncoder, request: FetchEncoder, visit: Visit) -> SharedEncoder:
    if visit.active.turn.sharing is None:
        raise refusal(FetchEncoder)
    tensors = shared.fetch(request.vehicle)
    is_known = bool(request.known) and request.known == digest_of(tensors)
    return SharedEncoder(**identity(request), tensors=None if is_known else tensors)


def _take(shared: KeepsEncoder, request: SendEncoder, visit: Visit) -> Judged:
    taken = shared.take(visit.active.turn, request.tensors)
    return Judged(**identity(request), taken=taken)


def _end(shared: KeepsEncoder, request: TurnDone, visit: Visit) -> Ack:
    shared.check_complete(visit.active.turn)
    return end(request, visit)
