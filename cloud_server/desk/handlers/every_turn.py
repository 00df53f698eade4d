"""What is asked in turns of every kind: labels, uploads, and the turn's end."""

from __future__ import annotations

import math
from typing import Protocol

from cloud_server.desk.handlers.visit import Handlers, Visit, identity
from cloud_server.desk.turns import Features
from cloud_server.errors import RequestError
from protocol.messages import Ack, LabelOffer, Labels, LabelWant, Turn, TurnDone, TurnFailed, Upload
from protocol.showing import plain


def offer(request: LabelOffer, visit: Visit) -> LabelWant:
    """Name the labels that are not here."""
    visit.checks.check_labels(visit.active.turn, request.labels)
    wanted = tuple(
        label.index
        for label in request.labels
        if not visit.labels.has(request.vehicle, label.index, label.digest)
    )
    return LabelWant(**identity(request), indices=wanted)


def take_labels(request: Labels, visit: Visit) -> Ack:
    """Keep labels."""
    visit.checks.check_labels(visit.active.turn, [label for label, _ in request.labels])
    for label, coded in request.labels:
        visit.labels.add(
            request.vehicle,
            label.index,
            label.key,
            label.digest,
            coded,
            height=label.height,
            width=label.width,
        )
    return Ack(**identity(request))


def take_upload(request: Upload, visit: Visit) -> Ack:
    """Keep features of frames that the turn asks for until it is done."""
    turn = visit.active.turn
    if request.split not in turn.uploads:
        raise RequestError(f"split {request.split!r} is not asked for in this turn")
    views = visit.checks.views(turn, request.frames, request.draw, request.split)
    labelled = request.split != "train" or turn.follows_labels
    features_BCHW = visit.checks.features(request, request.split, labelled=labelled)
    unasked = set(request.frames).difference(visit.checks.asked_frames(turn, request.split))
    if unasked:
        raise RequestError(f"{request.split} frame {min(unasked)} is not asked for in this turn")
    uploaded = Features(indices=request.frames, features_BCHW=features_BCHW, views=views)
    visit.active.add_upload(request.step, request.split, uploaded)
    return Ack(**identity(request))


class ChecksEnd(Protocol):
    """What knows whether a turn has had all that it asks for."""

    def check_complete(self, turn: Turn) -> None:
        """Check that the turn may end.

        Raises:
            RequestError: something that it asks for is missing.
        """


def end_if_complete(checks: ChecksEnd, request: TurnDone, visit: Visit) -> Ack:
    """The turn is done, if it is complete and somebody else finds so, too."""
    checks.check_complete(visit.active.turn)
    return end(request, visit)


def end(request: TurnDone, visit: Visit) -> Ack:
    """The turn is done, if it is complete."""
    visit.checks.check_complete(visit.active)
    if request.loss is not None and not math.isfinite(request.loss):
        raise RequestError(f"loss must be finite, got {request.loss}")
    told = None if request.work is None else request.work.forward_equivalents
    if told is not None and not math.isfinite(told):
        raise RequestError(f"forward equivalents must be finite, got {told}")
    visit.active.done = True
    visit.active.done_at = visit.now
    visit.active.loss = request.loss
    visit.active.work = request.work
    return Ack(**identity(request))


def fail(request: TurnFailed, visit: Visit) -> Ack:
    """The vehicle can't do its turn."""
    visit.active.failed = plain(request.reason) or "it gave no reason"
    return Ack(**identity(request))


EVERY_TURN: Handlers = {
    LabelOffer: offer,
    Labels: take_labels,
    Upload: take_upload,
    TurnDone: end,
    TurnFailed: fail,
}
