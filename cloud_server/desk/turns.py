"""A turn under way: its grant, the answers given so far, and what was uploaded.

Exactly once: a request is identified by its step; a step that comes again gets the answer it got before
and has no other effect.
"""

from __future__ import annotations

import secrets
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.answers import Told
from cloud_server.errors import RequestError
from datasets.augment import WHOLE, View
from protocol.messages import Ack, Answer, Recall, Request, Turn, Work
from protocol.session.outgoing import Sending

_SLOWEST_RETRY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a vehicle uploaded of one split, in the order of its steps."""

    indices: tuple[int, ...]
    """Frame numbers on the vehicle."""
    features_BCHW: NDArray[np.float32]
    views: tuple[View, ...] = ()
    """What was seen of each frame; none: all of it, as it is."""


@dataclass(kw_only=True)
class ActiveTurn:
    """One attempt at one turn of one vehicle."""

    turn: Turn
    """What was granted; `turn.grant` names the attempt."""
    answers: dict[int, Answer] = field(default_factory=dict)
    sendings: dict[int, Sending | None] = field(default_factory=dict)
    """How far each answer is on its way, by step; None: it could not be sent."""
    granting: Sending | None = None
    """How far the grant is on its way."""
    _missed_grant: bool = False
    uploads: dict[int, tuple[str, Features]] = field(default_factory=dict)
    """By step, so that the order of arrival makes no difference."""
    uploaded: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Frames by split."""
    queries: int = 0
    frame_answers: Counter[int] = field(default_factory=Counter)
    """By frame: losses and loss maps that queries have brought."""
    told: Told = field(default_factory=Told)
    """What its vehicle has had in the whole run, this attempt included."""
    train_steps: int = 0
    _latest_large_step: int | None = None
    loss: float | None = None
    work: Work | None = None
    done: bool = False
    failed: str | None = None
    """Why the vehicle can't do the turn, in its own words."""
    abandoned: bool = False
    """The vehicle is no longer at it: it must start over under a new grant."""
    granted_at: float
    """By the clock of the link, as all times here: when the turn was granted."""
    _sent_at: float | None = None
    _repeats: int = 0
    reported_at: float = field(init=False)
    """When its traffic was last logged."""
    done_at: float = 0.0
    """When the vehicle had finished."""

    def __post_init__(self) -> None:
        self.reported_at = self.granted_at

    @property
    def begun(self) -> bool:
        """Whether the vehicle has reacted to the grant."""
        return bool(self.answers)

    def repeat_due(self, now: float, retry_s: float) -> bool:
        """Whether the grant, which may be lost, is to be sent again at `now`; if so, it counts as sent.

        Due after `retry_s`, then after twice as long, and so on: a vehicle may learn long before it speaks.
        """
        since = self.granted_at if self._sent_at is None else self._sent_at
        patience_s = min(retry_s * 2.0 ** min(self._repeats, 16), _SLOWEST_RETRY_S)
        if self.begun or (self.granting is not None and not self.granting.done):
            return False
        if now - since <= patience_s and not self._missed_grant:
            return False
        self._missed_grant = False
        self._sent_at = now
        self._repeats += 1
        return True

    def may_have_missed_grant(self) -> None:
        """The vehicle was away and is back: what it has not reacted to is to be repeated at once."""
        self._missed_grant, self.granting = True, None

    def has_answered(self, request: object) -> bool:
        """Whether this is a request that has come before, and is to change nothing."""
        return (
            isinstance(request, Request)
            and request.step in self.answers
            and (request.grant, request.turn_id) == (self.turn.grant, self.turn.turn_id)
        )

    def is_on_its_way(self, step: int, now: float, retry_s: float) -> bool:
        """Whether the answer at `step` has gone out, and may not have reached the vehicle yet."""
        sending = self.sendings.get(step)
        if sending is None:
            return False
        return sending.done_at is None or now - sending.done_at <= retry_s

    def answered_largely(self, step: int) -> None:
        """Forget the gradient or the loss maps that answered the request of this kind before `step`.

        The vehicle makes these requests one by one: it has got that answer, or it would not be here. The step
        itself must be remembered, so that a late duplicate is not learnt from again.
        """
        if self._latest_large_step is not None:
            large = self.answers[self._latest_large_step]
            self.answers[self._latest_large_step] = Ack(
                vehicle=large.vehicle, grant=large.grant, turn_id=large.turn_id, step=large.step
            )
        self._latest_large_step = step

    def check_answers(self, indices: tuple[int, ...], answers: int, most: int) -> None:
        """Check that so many more answers about each of some frames are allowed.

        Raises:
            RequestError: a frame would have had more than `most` in this attempt.
        """
        for index in indices:
            asked = self.frame_answers[index] + answers
            if asked > most:
                raise RequestError(
                    f"frame {index} would have {asked} answers in this turn, more than the {most} allowed "
                    f"(zeroth_order.max_answers_per_frame)"
                )

    def count_answers(self, indices: tuple[int, ...], answers: int) -> None:
        """Count a query, and what it has brought about each of its frames."""
        self.queries += 1
        self.told.answers += len(indices) * answers
        for index in indices:
            self.frame_answers[index] += answers

    @property
    def answers_per_frame(self) -> int:
        """Most answers that any frame has had."""
        return max(self.frame_answers.values(), default=0)

    def is_attempt(self, request: Request | Recall) -> bool:
        """Whether a request belongs to this attempt, and the attempt still counts."""
        grant = (self.turn.grant, self.turn.turn_id)
        return not self.abandoned and (request.grant, request.turn_id) == grant

    def add_upload(self, step: int, split: str, features: Features) -> None:
        """Keep features of frames of a split.

        Raises:
            RequestError: some of them are here already; nothing is kept.
        """
        again = self.uploaded[split].intersection(features.indices)
        if again:
            raise RequestError(f"{split} frame {min(again)} is uploaded twice")
        self.uploaded[split].update(features.indices)
        self.uploads[step] = (split, features)

    def features(self) -> dict[str, Features]:
        """Everything uploaded, by split; independent of the order of arrival."""
        by_split: dict[str, list[Features]] = {}
        for step in sorted(self.uploads):
            split, features = self.uploads[step]
            by_split.setdefault(split, []).append(features)
        return {split: _joined(pieces) for split, pieces in by_split.items()}


def _joined(pieces: Sequence[Features]) -> Features:
    """Piece after piece; a frame of a piece without views was seen whole."""
    varied = any(piece.views for piece in pieces)
    views = (piece.views or (WHOLE,) * len(piece.indices) for piece in pieces if varied)
    return Features(
        indices=tuple(chain.from_iterable(piece.indices for piece in pieces)),
        features_BCHW=np.concatenate([piece.features_BCHW for piece in pieces]),
        views=tuple(chain.from_iterable(views)),
    )


def new_grant() -> str:
    """A name for one attempt at a turn; not part of any result."""
    return secrets.token_hex(8)
