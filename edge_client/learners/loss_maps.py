"""Asking the cloud for loss maps, and not giving in to unusable ones.

Legend: B frames, M maps of each.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from edge_client.errors import TurnRefused
from edge_client.turn import TurnTools
from protocol.codec.tensor import CodecError, decode
from protocol.messages import FetchLossMaps, LossMaps, MovedQuery, SeededQuery

log = logging.getLogger(__name__)

_ASKED_AT_MOST = 3
"""Times that one request is made while its answer is unusable."""


def ask_for_loss_maps(
    tools: TurnTools, request: SeededQuery | MovedQuery | FetchLossMaps, map_size: tuple[int, int]
) -> NDArray[np.float32]:
    """The answer to a request, float32 (B, M, rows, columns): the loss map, then a difference a seed or move.

    An unusable answer is asked for again under the same step: the cloud repeats what it has answered, and
    counts it once, so that only what was spoilt on the way comes out otherwise.

    Args:
        tools: of the turn.
        request: whose frames are B; M is 1, or 1 + its number of seeds or moves.
        map_size: rows, columns.

    Raises:
        TurnRefused: the answer stays of another size or number of maps than asked for, not finite, or holds
            a negative loss.
    """
    maps = 1
    if isinstance(request, SeededQuery):
        maps += len(request.seeds)
    elif isinstance(request, MovedQuery):
        maps += len(request.moves)
    reason = ""
    for _ in range(_ASKED_AT_MOST):
        [answer] = tools.ask([request])
        assert isinstance(answer, LossMaps)
        try:
            maps_BMyx = decode(answer.maps, expected_shape=(len(request.frames), maps, *map_size))
            lowest = float(maps_BMyx[:, 0].min())
            if lowest < 0:
                raise CodecError(f"a loss must not be negative, got {lowest:g}")
            return maps_BMyx
        except CodecError as error:
            reason = str(error)
            log.warning("the cloud's loss maps are unusable, asking again: %s", reason)
    raise TurnRefused(f"the cloud answered {_ASKED_AT_MOST} times with unusable loss maps: {reason}")
