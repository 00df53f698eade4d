"""One encoder for the fleet: vehicles fetch it, or the steps that led to it, and give what they made."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.handlers.every_turn import ChecksEnd, end_if_complete
from cloud_server.desk.handlers.visit import Handlers, Visit, identity, refusal
from cloud_server.errors import RequestError
from protocol.codec.weights import WeightTensor
from protocol.messages import (
    Ack,
    Feedback,
    FetchEncoder,
    FetchSteps,
    Judged,
    SendEncoder,
    SharedEncoder,
    Steps,
    Turn,
    TurnDone,
)
from protocol.plans.sharing import digest_of


class HasSteps(Protocol):
    """Some of the fleet's steps."""

    @property
    def seeds(self) -> NDArray[np.uint64]:
        """(n,)."""
        ...

    @property
    def losses(self) -> NDArray[np.float64]:
        """(n, 2q)."""
        ...

    def page(self, since: int) -> HasSteps:
        """Some of those after the first `since`."""
        ...


class KeepsEncoder(ChecksEnd, Protocol):
    """What vehicles have in common of their encoders, as itself or as its steps."""

    def fetch(self, vehicle: str) -> tuple[WeightTensor, ...]:
        """What the vehicle's turn starts from; empty where nothing is shared yet.

        Raises:
            RequestError: it is known by its steps.
        """
        ...

    def record(self, vehicle: str) -> HasSteps:
        """All steps that the vehicle's encoder has to take.

        Raises:
            RequestError: it is not known by its steps.
        """
        ...

    def take(self, turn: Turn, tensors: Sequence[WeightTensor], losses: Sequence[float]) -> bool:
        """Keep what a vehicle makes of it until its turn is done; whether it can be the fleet's.

        Args:
            losses: what its queries were answered with in this attempt, in their order.

        Raises:
            RequestError: it does not fit; nothing has changed.
        """
        ...


class SharesEncoder(Protocol):
    """An algorithm whose vehicles may have one encoder."""

    @property
    def shared_encoder(self) -> KeepsEncoder:
        """What they have in common."""
        ...


def shared_encoder_handlers(algorithm: SharesEncoder) -> Handlers:
    """Those of its turns that begin at the fleet's encoder."""
    return {
        FetchEncoder: partial(_send, algorithm),
        FetchSteps: partial(_send_steps, algorithm),
        SendEncoder: partial(_take, algorithm),
        TurnDone: partial(_end, algorithm),
    }


def _send(algorithm: SharesEncoder, request: FetchEncoder, visit: Visit) -> SharedEncoder:
    if visit.active.turn.sharing is None:
        raise refusal(FetchEncoder)
    tensors = algorithm.shared_encoder.fetch(request.vehicle)
    is_known = bool(request.known) and request.known == digest_of(tensors)
    return SharedEncoder(**identity(request), tensors=None if is_known else tensors)


def _send_steps(algorithm: SharesEncoder, request: FetchSteps, visit: Visit) -> Steps:
    if visit.active.turn.sharing is None:
        raise refusal(FetchSteps)
    record = algorithm.shared_encoder.record(request.vehicle)
    total = len(record.seeds)
    if request.since > total:
        raise RequestError(f"this vehicle knows {request.since} steps of the fleet, which has taken {total}")
    page = record.page(request.since)
    return Steps(
        **identity(request),
        total=total,
        seeds=page.seeds.astype("<u8").tobytes(),
        losses=page.losses.astype("<f8").tobytes(),
    )


def _take(algorithm: SharesEncoder, request: SendEncoder, visit: Visit) -> Judged:
    answers = (visit.active.answers[step] for step in sorted(visit.active.answers))
    losses = [answer.losses[0] for answer in answers if isinstance(answer, Feedback)]
    taken = algorithm.shared_encoder.take(visit.active.turn, request.tensors, losses)
    return Judged(**identity(request), taken=taken)


def _end(algorithm: SharesEncoder, request: TurnDone, visit: Visit) -> Ack:
    return end_if_complete(algorithm.shared_encoder, request, visit)
