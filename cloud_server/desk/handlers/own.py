"""Questions of somebody else's learner to somebody else's algorithm: what crosses is theirs, and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from cloud_server.desk.handlers.visit import Handlers, Visit, identity, refusal
from cloud_server.errors import RequestError
from protocol.messages import Ask, OwnPlan, Query, Told

Respond = Callable[[Any, Ask, Visit], msgspec.Struct]
"""(a question, the request that it came in, its visit) → the answer.

It answers a question once, or raises RequestError and has changed nothing; what it changes belongs to the
attempt at the turn, until `Algorithm.turn_done`."""


def own_handlers(responses: Mapping[type[msgspec.Struct], Respond]) -> Handlers:
    """Those of turns in which vehicles ask what is not ours, by the type of the question.

    A vehicle names a question by its struct's name; one that is not named here, or does not decode, is
    rejected. Answers are kept until the turn is over, to be repeated as they were where one got lost.
    """
    by_kind = {kind.__name__: (kind, respond) for kind, respond in responses.items()}

    def answer(request: Ask, visit: Visit) -> Told:
        if not isinstance(visit.active.turn.learner, OwnPlan):
            raise refusal(Ask)
        if request.kind not in by_kind:
            raise RequestError(
                f"no question is called {request.kind!r}, expected one of: {', '.join(by_kind)}"
            )
        kind, respond = by_kind[request.kind]
        try:
            question = msgspec.msgpack.decode(request.content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"this is no {request.kind}: {error}") from error
        told = respond(question, request, visit)
        return Told(**identity(request), content=msgspec.msgpack.encode(told))

    return {Ask: answer}


def as_query(request: Ask, frames: tuple[int, ...], features: Any) -> Query:
    """Features of train frames that came in a question, as `Visit.train_features` checks and decodes them."""
    return Query(**identity(request), frames=frames, features=features)
