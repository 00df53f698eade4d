"""What an encoder costs: size, multiply-adds, time on this machine, bytes that it sends, ways to learn.

Shapes: B frames, H by W pixels, C channels.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.sessions import CPU
from edge_client.encoder.subspaces import subspace_of
from fleet.export.bundle import export_encoder, subspaces
from fleet.export.encoders import build_encoder, short_name
from fleet.export.multiply_adds import multiply_adds
from fleet.export.onnx_encoder import OnnxEncoder, missing_way_back
from protocol.codec.tensor import BITS

BATCHES = (1, 8)
_TRIALS = 15
_ENOUGH_S = 1.0
"""After which no further trial begins; there are three at least."""


@dataclass(frozen=True, kw_only=True)
class SubspaceCost:
    """One part of an encoder that can learn alone."""

    numbers: int
    """That learn in it."""
    way_back_forwards: float | None
    """Time of the way back, which follows a forward pass, in forward passes; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All that was found."""

    encoder: str
    image_size: tuple[int, int]
    """Width and height in pixels."""
    parameters: int
    """Elements of θ."""
    theta_bytes: int
    graph_bytes: dict[str, int]
    """By graph of the bundle."""
    multiply_adds: int
    """Of one frame's forward pass: of convolutions and matrix products."""
    forward_s: dict[int, float]
    """By batch: least seconds for all its frames, on the CPU with one thread."""
    feature_shape: tuple[int, int, int]
    """C, H, W."""
    feature_bytes: dict[int, int]
    """By bits: of a frame, before entropy coding."""
    no_way_back: str | None
    """Why there is no VJP; None: there is one."""
    subspaces: dict[str, SubspaceCost]
    learns: str
    """The subspace that learns where nobody says."""


def examine(
    name: str,
    *,
    image_size: tuple[int, int],
    weights: Path | None = None,
    trainable: Sequence[str] | None = None,
    seed: int = 0,
) -> Examination:
    """Export an encoder, which checks it, and measure it; nothing is left behind.

    Args:
        name, weights, trainable: see `fleet.export.encoders.architecture`.
        image_size: width and height that its strides divide.

    Raises:
        SettingError, OperatorError, ExportError: see `build_encoder` and `export_encoder`.
    """
    built = build_encoder(name, seed, weights, trainable)
    reason = missing_way_back(built, image_size) if isinstance(built, OnnxEncoder) else None
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_encoder(built, short_name(name), Path(folder) / "bundle", image_size=image_size)
    encoder = Encoder(bundle, mode="rebuild", threads=1, providers=[CPU])
    width, height = image_size
    images = {
        frames: np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        for frames in BATCHES
    }
    theta = bundle.theta0
    forward_s = {frames: _seconds(partial(encoder.forward, theta, image)) for frames, image in images.items()}
    shape = bundle.spec.feature_shape
    return Examination(
        encoder=name,
        image_size=image_size,
        parameters=theta.size,
        theta_bytes=theta.nbytes,
        graph_bytes={graph: len(model) for graph, model in bundle.graphs.items()},
        multiply_adds=multiply_adds(onnx.load_from_string(bundle.graphs["forward"])),
        forward_s=forward_s,
        feature_shape=shape,
        feature_bytes={bits: math.ceil(math.prod(shape) * bits / 8) for bits in sorted(BITS, reverse=True)},
        no_way_back=reason,
        subspaces=_costs(bundle, encoder, images[1], forward_s[1], has_way_back=reason is None),
        learns=bundle.spec.subspace,
    )


def _costs(
    bundle: EncoderBundle,
    encoder: Encoder,
    image_BHWC: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    forward_s: float,
    *,
    has_way_back: bool,
) -> dict[str, SubspaceCost]:
    costs: dict[str, SubspaceCost] = {}
    v_BCHW = np.ones((1, *bundle.spec.feature_shape), np.float32)
    for name in subspaces(bundle.spec.projection):
        subspace = subspace_of(name, bundle.spec, bundle.theta0)
        forwards = None
        if has_way_back:
            linearised = encoder.linearise(bundle.theta0, image_BHWC, subspace)
            forwards = _seconds(partial(linearised.pull_back, v_BCHW)) / forward_s
        costs[name] = SubspaceCost(numbers=subspace.size, way_back_forwards=forwards)
    return costs


def _seconds(work: Callable[[], object]) -> float:
    """Least processor time of some trials, the first left out: one thread takes that long if undisturbed."""
    work()
    taken: list[float] = []
    while len(taken) < 3 or (len(taken) < _TRIALS and sum(taken) < _ENOUGH_S):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return min(taken)
