"""Exported graphs against the run's own predictions of a vehicle's test frames.

Shapes: B frames, C channels, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.labels import LabelSpace
from edge_client.encoder.sessions import CPU, open_session
from edge_client.frames import FrameCache, Sight
from edge_client.predict.card import FEATURES, IDS, IMAGE, LOGITS
from evaluation.likeliest import likeliest
from evaluation.predictions import PredictionError, prediction_name, read_prediction
from evaluation.scores import ConfusionMatrix
from fleet.export.errors import ExportError
from fleet.model.served import Served
from protocol.codec.bits import encode_within
from protocol.codec.tensor import decode, encode
from protocol.plans.coding import Coding

TOLERANCE = 1e-3
"""Largest share of pixels whose class may differ: other kernels add up in another order."""

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TestFrames:
    """A vehicle's test frames as it sees them, their labels, and what the run predicted of them."""

    keys: Sequence[str]
    """Of the test frames."""
    calibration: Sequence[str]
    """Some of its train frames, whose ranges of values are like those to come."""
    cache: FrameCache
    sight: Sight | None
    predictions: Path
    """Folder of the run's label images."""
    label_space: LabelSpace

    def image(self, key: str) -> Pixels:
        """image_HWC at the encoder's input size."""
        return self.cache.resized(key, self.sight)[0]

    def label(self, key: str) -> Pixels:
        """label_HW at its own size."""
        return self.cache.full_label(key)

    def predicted(self, key: str) -> Pixels:
        """The run's prediction_HW of it.

        Raises:
            ExportError: there is none.
        """
        try:
            return read_prediction(self.predictions / prediction_name(key), self.label_space)
        except PredictionError as error:
            raise ExportError(f"the run's own prediction of {key} can't be read: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Checked:
    """How a model compares with the run that it is of."""

    frames: int
    parts_differ: float
    """Share of pixels in which encoder, codec and network, one after the other, differ from the run."""
    model_differs: float
    """Share of pixels in which the one model, which codes each frame by itself, differs from the run."""
    model_miou: float
    run_miou: float


def check_graphs(
    served: Served, frames: TestFrames, *, encoder: bytes, network: bytes, model: bytes, threads: int
) -> Checked:
    """Predict the test frames with the three graphs.

    Features go from the encoder's graph through the run's codec, as many frames at once as in the run, into
    the network's graph: that must give the run's predictions. The one model must give what its two parts
    give of each frame alone.

    Raises:
        ExportError: more than `TOLERANCE` of the pixels differ in either.
    """
    run_encoder, run_network, run_model = (_runner(graph, threads) for graph in (encoder, network, model))
    apart = Differing()
    alone = Differing()
    against_run = Differing()
    scores = {name: ConfusionMatrix(frames.label_space) for name in ("model", "run")}
    for keys in _batches(frames.keys, served.frames_at_once):
        features = [run_encoder({IMAGE: frames.image(key)[None]}, FEATURES) for key in keys]
        coded_BCHW = coded(np.concatenate(features), served.coding)
        for key, features_CHW, features_1CHW in zip(keys, coded_BCHW, features, strict=True):
            label_HW, expected_HW = frames.label(key), frames.predicted(key)
            size_HW = (label_HW.shape[0], label_HW.shape[1])
            apart.add(likeliest(run_network({FEATURES: features_CHW[None]}, LOGITS)[0], size_HW), expected_HW)
            bits = None if served.coding is None else Coding(bits=served.coding.bits)
            own_logits_Khw = run_network({FEATURES: coded(features_1CHW, bits)}, LOGITS)[0]
            ids_hw = run_model({IMAGE: frames.image(key)[None]}, IDS)[0]
            alone.add(own_logits_Khw.argmax(axis=0).astype(np.uint8), ids_hw)
            prediction_HW = likeliest(own_logits_Khw, size_HW)
            against_run.add(prediction_HW, expected_HW)
            scores["model"].add(label_HW, prediction_HW)
            scores["run"].add(label_HW, expected_HW)
    for what, differing in (
        ("encoder and network differ from the run's predictions", apart),
        ("the model differs from its own encoder and network", alone),
    ):
        if not differing.share <= TOLERANCE:
            raise ExportError(
                f"{what} of {len(frames.keys)} test frames in {100 * differing.share:.3f} % of the pixels, "
                f"more than {100 * TOLERANCE:g} %; nothing was written"
            )
    return Checked(
        frames=len(frames.keys),
        parts_differ=apart.share,
        model_differs=against_run.share,
        model_miou=scores["model"].mean_iou(),
        run_miou=scores["run"].mean_iou(),
    )


class Differing:
    """Counts pixels that two label maps disagree on."""

    def __init__(self) -> None:
        self._differing = 0
        self._pixels = 0

    def add(self, label_HW: Pixels, other_HW: Pixels) -> None:
        """Two maps of one shape."""
        self._differing += int((label_HW != other_HW).sum())
        self._pixels += label_HW.size

    @property
    def share(self) -> float:
        """0 to 1; NaN where there was nothing to compare."""
        return self._differing / self._pixels if self._pixels else float("nan")


def coded(features_BCHW: Features, coding: Coding | None) -> Features:
    """Features as they come out of a message that they went into."""
    if coding is None:
        return features_BCHW
    if coding.frame_bytes is None:
        message = encode(features_BCHW, coding.bits)
    else:
        message = encode_within(features_BCHW, bytes_per_frame=coding.frame_bytes, most_bits=coding.bits)
    return decode(message, expected_shape=features_BCHW.shape)


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[first : first + size] for first in range(0, len(keys), size))


def _runner(graph: bytes, threads: int) -> Any:
    session = open_session(graph, CPU, threads)
    return lambda feeds, output: session.run([output], feeds)[0]
