"""What every handler gets, and how a desk finds it: by the type of the request.

A handler answers a request once, or raises and has changed nothing. Which ones a run has, the row of its
algorithm says.
Legend: B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.checks import Featured, RequestChecks
from cloud_server.desk.turns import ActiveTurn
from cloud_server.errors import RequestError
from cloud_server.storage.label_store import LabelStore
from protocol.messages import (
    Answer,
    AskGradient,
    FetchEncoder,
    FetchLossMaps,
    FetchSteps,
    FetchWeights,
    MovedQuery,
    Query,
    Recall,
    Request,
    RequestIdentity,
    SeededQuery,
    SendEncoder,
    Smashed,
    SplitScores,
    TrainStep,
    Update,
)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """The attempt at a turn that a request belongs to, and what its answer may need."""

    active: ActiveTurn
    checks: RequestChecks
    labels: LabelStore
    max_answers_per_frame: int
    """Losses or loss maps about one frame in one attempt."""
    max_answers_per_vehicle: int
    """The same about all frames together, in the whole run."""
    now: float
    """By the clock of the link."""

    def train_features(self, request: Featured) -> NDArray[np.float32]:
        """features_BCHW of train frames, whose labels are here where the turn follows labels.

        Raises:
            RequestError, LabelError, CodecError: see `RequestChecks.features`.
        """
        return self.checks.features(request, "train", labelled=self.active.turn.follows_labels)

    def check_answers(self, frames: tuple[int, ...], answers: int) -> None:
        """Check that so many more answers about each of these frames are allowed.

        Raises:
            RequestError: one of them would have had too many in this attempt, or the vehicle in this run.
        """
        self.active.check_answers(frames, answers, self.max_answers_per_frame)
        self.active.told.check(frames, answers, self.max_answers_per_vehicle)


Handler = Callable[[Any, Visit], Answer]
"""(a request of the type under which it stands, its visit) → the answer.

Raises RequestError, LabelError or CodecError where the request does not fit; DivergedError ends the run."""
Handlers = Mapping[type, Handler]
"""By type of request."""

_WITHOUT: Mapping[type, str] = {
    Query: "this turn has no queries",
    SeededQuery: "this turn has no seeded queries",
    MovedQuery: "this turn has no moved queries",
    TrainStep: "this turn has no training steps",
    Smashed: "this turn uploads no batches while it learns",
    AskGradient: "this turn asks for no gradients",
    FetchLossMaps: "this turn fetches no loss maps",
    FetchEncoder: "this turn's encoder is the vehicle's own",
    SendEncoder: "this turn's encoder is the vehicle's own",
    FetchSteps: "this turn's encoder is not known by its steps",
    FetchWeights: "this run exchanges no weights",
    Update: "this run exchanges no weights",
    SplitScores: "this run exchanges no weights",
}


def refusal(kind: type) -> RequestError:
    """What a request is answered with in a turn that has no use for its type."""
    return RequestError(_WITHOUT.get(kind, f"this turn has no {kind.__name__}"))


def identity(request: Request | Recall) -> RequestIdentity:
    """What its answer begins with."""
    return {
        "vehicle": request.vehicle,
        "grant": request.grant,
        "turn_id": request.turn_id,
        "step": request.step,
    }
