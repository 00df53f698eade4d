"""What a vehicle may name in a request: its own frames, labels of their size, features of its shape.

Legend: B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.agreement import shape_text
from cloud_server.desk.registry import Registry
from cloud_server.desk.turns import ActiveTurn
from cloud_server.errors import RequestError
from cloud_server.storage.label_store import LabelStore
from datasets.augment import View, draw_view, view_seed
from evaluation.predictions import PredictionError, prediction_name
from protocol.batches import batch_count
from protocol.codec.plausible import implausible
from protocol.codec.tensor import EncodedTensor, decode
from protocol.messages import SPLITS, CseFslPlan, FslSagePlan, OfferedLabel, Turn, WhiteBoxPlan
from protocol.plans.cse_fsl import uploaded_batches

MOST_LABEL_PIXELS = 2**24
"""Of one label, decoded: 4096 x 4096. Predictions are enlarged to it, a class at a time."""


class Featured(Protocol):
    """A request that brings features of some frames."""

    @property
    def vehicle(self) -> str: ...

    @property
    def frames(self) -> tuple[int, ...]: ...

    @property
    def features(self) -> EncodedTensor: ...


class RequestChecks:
    """Checks that change nothing; a request that fails one is to be rejected with the error's text."""

    def __init__(self, registry: Registry, labels: LabelStore) -> None:
        self._registry = registry
        self._labels = labels

    def features(self, request: Featured, split: str, *, labelled: bool = True) -> NDArray[np.float32]:
        """features_BCHW of frames that belong to `split`; `labelled`: and whose labels are here.

        Raises:
            RequestError, LabelError, CodecError: the frames don't fit, a label is missing, or the features
                are not of the vehicle's shape, or nothing that an encoder gives.
        """
        self.check_frames(request.vehicle, request.frames, split)
        if labelled:
            self._labels.get(request.vehicle, request.frames)
        shape = self._registry.feature_shape(request.vehicle)
        features_BCHW = decode(request.features, expected_shape=(len(request.frames), *shape))
        if wrong := implausible(features_BCHW):
            raise RequestError(f"features hold {wrong}")
        return features_BCHW

    def views(
        self, turn: Turn, indices: tuple[int, ...], draw: int | None, split: str = "train"
    ) -> tuple[View, ...]:
        """What a vehicle has seen of frames of `split` by a draw of the turn's augmentation; none where they
        were seen as they are.

        Raises:
            RequestError: there is no such draw.
        """
        if draw is None:
            return ()
        augmentation, size = turn.augmentation, self._registry.image_size
        if augmentation is None or split != "train" or size is None:
            raise RequestError(f"{split} frames are seen as they are in this turn, not by draw {draw}")
        if draw > turn.epochs:
            raise RequestError(f"this turn's draws go from 0 to {turn.epochs}, got {draw}")
        return tuple(draw_view(augmentation, size, view_seed(turn.seed, draw, index)) for index in indices)

    def check_frames(self, vehicle: str, indices: tuple[int, ...], split: str) -> None:
        """Some frames of `split`, each once.

        Raises:
            RequestError: there are none, one is of another split, or one is named twice.
        """
        allowed = self._registry.frames(vehicle, split)
        if not indices:
            raise RequestError("no frames are named")
        for index in indices:
            if index not in allowed:
                raise RequestError(f"frame {index} is no {split} frame of {vehicle!r}")
        if len(set(indices)) != len(indices):
            raise RequestError("a frame is named twice")

    def check_labels(self, turn: Turn, labels: Sequence[OfferedLabel]) -> None:
        """Labels of declared frames; those to train and validate on have the size that the turn says.

        Raises:
            RequestError: one of them is not.
        """
        vehicle, input_size = turn.vehicle, self._registry.image_size
        train_size = input_size if turn.train_label_size is None else turn.train_label_size[::-1]
        expected = {"train": train_size, "val": input_size}
        frames = {split: self._registry.frames(vehicle, split) for split in SPLITS}
        for label in labels:
            split = next((split for split in SPLITS if label.index in frames[split]), None)
            if split is None:
                count = sum(map(len, frames.values()))
                raise RequestError(f"label of frame {label.index}, but {vehicle!r} declared {count} frames")
            size = (label.width, label.height)
            if label.width * label.height > MOST_LABEL_PIXELS:
                raise RequestError(
                    f"label of frame {label.index} is {shape_text(size)} pixels, of which a label may have "
                    f"{MOST_LABEL_PIXELS}"
                )
            if split in expected and size != expected[split]:
                raise RequestError(
                    f"label of {split} frame {label.index} is {shape_text(size)} pixels, expected "
                    f"{shape_text(expected[split] or ())}"
                )
            try:
                prediction_name(label.key)
            except PredictionError as error:  # else it would come at the end of the run
                raise RequestError(str(error)) from error

    def check_complete(self, active: ActiveTurn) -> None:
        """A turn that is said to be done has had all its training steps and uploads.

        Raises:
            RequestError: something is missing.
        """
        turn = active.turn
        expected_steps = self.train_steps(turn)
        if active.train_steps != expected_steps:
            raise RequestError(
                f"turn {turn.turn_id} ended after {active.train_steps} of {expected_steps} training steps"
            )
        for split in turn.uploads:
            expected = self.asked_frames(turn, split)
            uploaded = active.uploaded[split]
            if len(uploaded) != len(expected):
                raise RequestError(
                    f"turn {turn.turn_id} ended with {len(uploaded)} of {len(expected)} {split} "
                    f"frames uploaded"
                )

    def train_steps(self, turn: Turn) -> int:
        """How many training steps a turn consists of, or uploads of batches for later ones."""
        frames = len(self._registry.frames(turn.vehicle, "train"))
        batches = turn.epochs * batch_count(frames, turn.batch_size)
        if isinstance(turn.learner, CseFslPlan | FslSagePlan):
            return len(uploaded_batches(batches, turn.learner.upload_every))
        return batches if isinstance(turn.learner, WhiteBoxPlan) else 0

    def most_requests(self, turn: Turn, max_answers_per_frame: int) -> int:
        """More than any honest turn has: each query is about a frame, each frame has so many answers at most,
        is visited and uploaded so often, and has one label, offered and sent anew if the cloud is another.
        Answers are kept until the turn is over, so that their number must end."""
        frames = sum(len(self._registry.frames(turn.vehicle, split)) for split in SPLITS)
        return 1024 + frames * (max_answers_per_frame + 2 * turn.epochs + 4)

    def asked_frames(self, turn: Turn, split: str) -> Sequence[int]:
        """The frames of a split that are to be uploaded in a turn that asks for the split."""
        return turn.upload_frames.get(split, self._registry.frames(turn.vehicle, split))
