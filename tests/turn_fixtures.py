"""A turn in which nothing is asked for, to be changed into the one that a test is about."""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.messages import Turn

_EMPTY = Turn(
    vehicle="car-1",
    grant="0" * 16,
    turn_id=0,
    step=0,
    after_turn=None,
    seed=0,
    learner=None,
    epochs=0,
    batches=0,
    batch_size=1,
    uploads=(),
)


def empty_turn(**changes: Any) -> Turn:
    """No learning, no uploads, by `changes` of its fields."""
    return msgspec.structs.replace(_EMPTY, **changes)
