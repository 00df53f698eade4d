"""Local losses that are weighted by where the cloud's lay: vehicles fetch loss maps of an earlier round."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from cloud_server.desk.handlers.visit import Handlers, Visit, identity, refusal
from protocol.codec.tensor import EncodedTensor
from protocol.messages import FetchLossMaps, LocalLossPlan, LossMaps


class KeepsLossMaps(Protocol):
    """An algorithm that keeps loss maps of what was uploaded."""

    def kept_loss_maps(self, vehicle: str, indices: tuple[int, ...]) -> EncodedTensor:
        """The loss maps (B, 1, y, x) of train frames uploaded before; must not change anything.

        Raises:
            RequestError: none are kept of these frames together.
        """
        ...


def loss_map_handlers(algorithm: KeepsLossMaps) -> Handlers:
    """Those of its turns in which vehicles learn by themselves."""
    return {FetchLossMaps: partial(_answer, algorithm)}


def _answer(algorithm: KeepsLossMaps, request: FetchLossMaps, visit: Visit) -> LossMaps:
    """Loss maps that were committed before the turn, where its plan has a use for them."""
    visit.checks.check_frames(request.vehicle, request.frames, "train")
    turn = visit.active.turn
    if not isinstance(turn.learner, LocalLossPlan) or turn.loss_map_frames is None:
        raise refusal(FetchLossMaps)
    visit.check_answers(request.frames, 1)
    maps = algorithm.kept_loss_maps(request.vehicle, request.frames)
    visit.active.count_answers(request.frames, 1)
    return LossMaps(**identity(request), maps=maps)
