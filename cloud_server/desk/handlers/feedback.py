"""Zeroth-order learning: vehicles ask what the cloud's network makes of features; nothing changes by it.

Another estimator with a message of its own is a function here and a line in `feedback_handlers`.
Legend: B frames of a batch, C channels, H W feature rows and columns, y x rows and columns of a loss map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.handlers.visit import Handlers, Visit, identity, refusal
from cloud_server.desk.moved_queries import checked_moves, coded_moved_maps
from cloud_server.desk.seeded_queries import LossMapsOf, checked_scale, coded_loss_maps
from datasets.augment import View, seen_labels
from protocol.codec.tensor import EncodedTensor
from protocol.messages import (
    Feedback,
    LossMapPlan,
    LossMaps,
    MovedQuery,
    OwnPlan,
    Query,
    RegionSpsaPlan,
    SeededQuery,
    SpsaPlan,
)

if TYPE_CHECKING:  # see cloud_server.algorithms.base
    from cloud_server.training.trainer import Trainer

OWN_MAP_BITS = 8
"""Quantisation of the loss maps that an estimator gets that is not ours."""


@dataclass(frozen=True)
class Judge:
    """The network that answers about some frames of one vehicle, and what they should look like."""

    trainer: Trainer
    """Holds that network."""
    label_BHW: NDArray[np.uint8] | None
    """uint8; None: the loss is the entropy of the network's own predictions."""
    note: Callable[[NDArray[np.float32]], None] = lambda maps_Byx: None
    """Shown the loss maps of whole frames as the vehicle sent them."""

    def of_views(self, views: tuple[View, ...]) -> Judge:
        """The same about views of the frames."""
        if not views:
            return self
        label_BHW = None if self.label_BHW is None else seen_labels(self.label_BHW, views)
        return Judge(self.trainer, label_BHW)

    def loss(self, features_BCHW: NDArray[np.float32]) -> float:
        """Mean over the frames."""
        return self.trainer.evaluate_loss(features_BCHW, self.label_BHW)

    def loss_maps(
        self, copies: Iterable[NDArray[np.float32]], map_size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Of M copies of the frames, features_BCHW each, copy after copy: float32 [M·B, y, x].

        Raises:
            ValueError: the map's size does not fit the network.
        """
        maps_MByx = self.trainer.loss_maps(copies, self.label_BHW, map_size)
        self.note(maps_MByx)
        return maps_MByx


class GivesFeedback(Protocol):
    """An algorithm whose vehicles learn from losses."""

    def feedback(self, vehicle: str, indices: tuple[int, ...]) -> AbstractContextManager[Judge]:
        """Who judges features of these train frames, for as long as the context lasts; changes nothing."""
        ...


def feedback_handlers(algorithm: GivesFeedback) -> Handlers:
    """Those of its turns in which vehicles learn from feedback."""
    return {
        Query: partial(_answer_query, algorithm),
        SeededQuery: partial(_answer_seeded_query, algorithm),
        MovedQuery: partial(_answer_moved_query, algorithm),
    }


def _answer_query(algorithm: GivesFeedback, request: Query, visit: Visit) -> Feedback:
    features_BCHW = visit.train_features(request)
    if not isinstance(visit.active.turn.learner, SpsaPlan | OwnPlan):
        raise refusal(Query)
    visit.check_answers(request.frames, 1)
    views = visit.checks.views(visit.active.turn, request.frames, request.draw)
    with algorithm.feedback(request.vehicle, request.frames) as judge:
        loss = judge.of_views(views).loss(features_BCHW)
    visit.active.count_answers(request.frames, 1)
    return Feedback(**identity(request), losses=(loss,))


def _answer_seeded_query(algorithm: GivesFeedback, request: SeededQuery, visit: Visit) -> LossMaps:
    """Loss maps, no more of them than the turn's plan and the limit say."""
    features_BCHW = visit.train_features(request)
    plan = visit.active.turn.learner
    if not isinstance(plan, LossMapPlan | OwnPlan):
        raise refusal(SeededQuery)
    map_bits = plan.map_bits if isinstance(plan, LossMapPlan) else OWN_MAP_BITS
    scale_C = checked_scale(request, plan, features_BCHW.shape)
    maps = _loss_maps_of(
        algorithm,
        request,
        1 + len(request.seeds),
        visit,
        lambda loss_maps: coded_loss_maps(request, features_BCHW, scale_C, loss_maps, map_bits),
    )
    return LossMaps(**identity(request), maps=maps)


def _answer_moved_query(algorithm: GivesFeedback, request: MovedQuery, visit: Visit) -> LossMaps:
    """The same where the vehicle says itself how far each feature is moved."""
    features_BCHW = visit.train_features(request)
    plan = visit.active.turn.learner
    if not isinstance(plan, RegionSpsaPlan):
        raise refusal(MovedQuery)
    moves = checked_moves(request, plan, features_BCHW.shape)
    maps = _loss_maps_of(
        algorithm,
        request,
        1 + len(moves),
        visit,
        lambda loss_maps: coded_moved_maps(request, features_BCHW, moves, loss_maps, plan.map_bits),
    )
    return LossMaps(**identity(request), maps=maps)


def _loss_maps_of(
    algorithm: GivesFeedback,
    request: SeededQuery | MovedQuery,
    answers: int,
    visit: Visit,
    code: Callable[[LossMapsOf], EncodedTensor],
) -> EncodedTensor:
    """What `code` makes of so many maps of each frame, and of whoever judges them, within the limit.

    Raises:
        RequestError: a frame would have had too many answers, or the maps don't fit.
    """
    visit.check_answers(request.frames, answers)
    views = visit.checks.views(visit.active.turn, request.frames, request.draw)
    with algorithm.feedback(request.vehicle, request.frames) as judge:
        maps = code(partial(judge.of_views(views).loss_maps, map_size=request.map_size))
    visit.active.count_answers(request.frames, answers)
    visit.active.answered_largely(request.step)
    return maps
