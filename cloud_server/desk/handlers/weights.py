"""Federated learning: weights go down, updates and scores come up."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from cloud_server.desk.handlers.every_turn import ChecksEnd, end_if_complete
from cloud_server.desk.handlers.visit import Handlers, Visit, identity
from protocol.codec.weights import WeightTensor
from protocol.messages import Ack, FetchWeights, SplitScores, Turn, TurnDone, Update, Weights


class ExchangesWeights(ChecksEnd, Protocol):
    """An algorithm whose vehicles train the whole network and send weights."""

    def begin_at(self, turn: Turn) -> tuple[WeightTensor, ...]:
        """The global weights, which the turn begins with."""
        ...

    def take_update(self, turn: Turn, update: Update) -> None:
        """Keep a vehicle's weights until its turn is done.

        Raises:
            RequestError: they don't fit; nothing has changed.
        """

    def take_scores(self, turn: Turn, scores: SplitScores) -> None:
        """Keep how good the global weights are on a vehicle's frames, until its turn is done.

        Raises:
            RequestError: they don't fit; nothing has changed.
        """


def weight_handlers(algorithm: ExchangesWeights) -> Handlers:
    """Those of its turns."""
    return {
        FetchWeights: partial(_send, algorithm),
        Update: partial(_take_update, algorithm),
        SplitScores: partial(_take_scores, algorithm),
        TurnDone: partial(end_if_complete, algorithm),
    }


def _send(algorithm: ExchangesWeights, request: FetchWeights, visit: Visit) -> Weights:
    return Weights(**identity(request), tensors=algorithm.begin_at(visit.active.turn))


def _take_update(algorithm: ExchangesWeights, request: Update, visit: Visit) -> Ack:
    algorithm.take_update(visit.active.turn, request)
    return Ack(**identity(request))


def _take_scores(algorithm: ExchangesWeights, request: SplitScores, visit: Visit) -> Ack:
    algorithm.take_scores(visit.active.turn, request)
    return Ack(**identity(request))
