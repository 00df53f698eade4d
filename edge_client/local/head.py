"""The local head on ONNX Runtime: features in, logits out, and the way back; and the folder it comes in.

A folder holds `head.json` (a `HeadSpec`), `forward.onnx`, `vjp.onnx` and `initial.f32`.
Shapes: B frames, C channels, K classes, H W feature and h w logit rows and columns; parameters float32 (n,).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.onnx_runtime import ort
from edge_client.encoder.sessions import CPU, open_session
from edge_client.work import count
from protocol.errors import Mistake

FORMAT_VERSION: Literal[1] = 1
SPEC_NAME = "head.json"
FORWARD_NAME = "forward.onnx"
VJP_NAME = "vjp.onnx"
INITIAL_NAME = "initial.f32"
FILE_NAMES = (FORWARD_NAME, VJP_NAME, INITIAL_NAME)

Positive = Annotated[int, msgspec.Meta(ge=1)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class HeadError(Mistake):
    """A folder that holds no usable local head; the message says what to do."""


class HeadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `head.json`."""

    format_version: Literal[1]
    feature_shape: tuple[Positive, Positive, Positive]
    """(C, H, W) of one frame's features."""
    logit_shape: tuple[Positive, Positive, Positive]
    """(K, h, w) of one frame's logits."""
    label_space: str
    normalisation: Literal["batch", "fixed"] = "batch"
    """By the statistics of each batch, or, in a surrogate, by constants."""
    parameter_count: Positive
    """n."""
    sha256: dict[str, Digest]
    """By file name."""
    multiply_adds: dict[str, int] = {}
    """Of one frame, by file name, of convolutions and matrix products; without those not counted."""


@dataclass(frozen=True, kw_only=True)
class HeadFolder:
    """A folder in memory, checked."""

    spec: HeadSpec
    forward: bytes
    """`features_BCHW` and `theta` (n,) → `logits_BKhw` and what `vjp` needs."""
    vjp: bytes
    """That, `theta` and `v_BKhw` → `gradient` (n,) and `features_gradient_BCHW`."""
    initial: NDArray[np.float32]
    """Parameters (n,) to start from, read-only."""

    @classmethod
    def load(cls, folder: Path) -> HeadFolder:
        """Read a folder.

        Raises:
            HeadError: a file is missing, damaged or of another format.
        """
        try:
            spec = msgspec.json.decode((folder / SPEC_NAME).read_bytes(), type=HeadSpec)
            files = {name: (folder / name).read_bytes() for name in FILE_NAMES}
        except OSError as error:
            raise HeadError(
                f"can't read the local head {error.filename}: {error.strerror}; "
                "`blackfleet launch --algorithm blackfleet`, or one with the estimator surrogate, writes "
                "this folder; copy it to where it is needed"
            ) from error
        except (ValueError, msgspec.DecodeError) as error:
            raise HeadError(f"{folder / SPEC_NAME} describes no local head: {error}") from error
        for name, content in files.items():
            if hashlib.sha256(content).hexdigest() != spec.sha256.get(name):
                raise HeadError(f"{folder / name} is not the file that was exported; export it again")
        if len(files[INITIAL_NAME]) != 4 * spec.parameter_count:
            raise HeadError(f"{folder / INITIAL_NAME} holds no {spec.parameter_count} parameters")
        initial = np.frombuffer(files[INITIAL_NAME], "<f4").astype(np.float32)
        initial.flags.writeable = False
        return cls(spec=spec, forward=files[FORWARD_NAME], vjp=files[VJP_NAME], initial=initial)


class LocalHead:
    """Runs any parameters of one head; shared by all vehicles of a host, from any thread.

    Args:
        folder: what to run.
        provider: ONNX Runtime execution provider, that of the encoder.
        threads: intra-op threads of a session.
    """

    def __init__(self, folder: HeadFolder, *, provider: str = CPU, threads: int = 1) -> None:
        self.spec = folder.spec
        self.initial = folder.initial
        self._forward = open_session(folder.forward, provider, threads)
        self._vjp = open_session(folder.vjp, provider, threads)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """As `Encoder.warm_up`: both graphs at these batch sizes, the largest first."""
        for size in sorted(set(batch_sizes), reverse=True):
            features_BCHW = np.zeros((size, *self.spec.feature_shape), np.float32)
            linearised = self.linearise(self.initial, features_BCHW)
            linearised.pull_back(np.zeros_like(linearised.logits_BKhw))

    def linearise(
        self, parameters: NDArray[np.float32], features_BCHW: NDArray[np.float32]
    ) -> HeadLinearisation:
        """The logits of a batch together with the way back.

        Where BatchNorm takes its statistics from the batch, a frame's logits depend on the others.

        Raises:
            ValueError: wrong shape or type of either.
        """
        size = self.spec.parameter_count
        if parameters.dtype != np.float32 or parameters.shape != (size,):
            raise ValueError(
                f"head parameters must be float32 ({size},), got {parameters.dtype} {parameters.shape}"
            )
        shape = (len(features_BCHW), *self.spec.feature_shape)
        if features_BCHW.dtype != np.float32 or features_BCHW.shape != shape or not len(features_BCHW):
            raise ValueError(
                f"the local head takes float32 features (B, {', '.join(map(str, self.spec.feature_shape))}), "
                f"got {features_BCHW.dtype} {features_BCHW.shape}"
            )
        feeds = {"features_BCHW": features_BCHW, "theta": parameters}
        count(len(features_BCHW), self.spec.multiply_adds.get(FORWARD_NAME, 0))
        way_back_adds = self.spec.multiply_adds.get(VJP_NAME, 0)
        return HeadLinearisation(self._vjp, feeds, _run(self._forward, feeds), multiply_adds=way_back_adds)


class HeadLinearisation:
    """The head around some parameters and one batch: its value and its vector-Jacobian product.

    Attributes:
        logits_BKhw: float32.
    """

    def __init__(
        self,
        vjp: ort.InferenceSession,
        feeds: Mapping[str, NDArray[np.float32]],
        tape: Mapping[str, NDArray[np.float32]],
        *,
        multiply_adds: int = 0,
    ) -> None:
        """`multiply_adds`: of the way back, of one frame; 0 = not known."""
        self._multiply_adds = multiply_adds
        self.logits_BKhw = tape["logits_BKhw"]
        self._vjp = vjp
        self._known = {**feeds, **tape}

    def pull_back(self, v_BKhw: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The gradients of ⟨logits, v⟩: float32 (n,) for the parameters, (B, C, H, W) for the features.

        Raises:
            ValueError: v is not float32 of the logits' shape.
        """
        if v_BKhw.dtype != np.float32 or v_BKhw.shape != self.logits_BKhw.shape:
            raise ValueError(f"v must be float32 {self.logits_BKhw.shape}, got {v_BKhw.dtype} {v_BKhw.shape}")
        found = _run(self._vjp, {**self._known, "v_BKhw": v_BKhw})
        count(len(v_BKhw), self._multiply_adds, is_back=True)
        return found["gradient"], found["features_gradient_BCHW"]


def _run(session: ort.InferenceSession, values: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """The outputs by name; values beyond the graph's inputs are ignored."""
    outputs = [output.name for output in session.get_outputs()]
    feeds = {graph_input.name: values[graph_input.name] for graph_input in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))


def head_outputs(head: LocalHead) -> dict[str, NDArray[np.float32]]:
    """What every graph of a head gives for one batch, by name: to compare one provider with another.

    Raises:
        Exception: whatever the provider raises.
    """
    random = np.random.default_rng(0)
    features_BCHW = random.standard_normal((2, *head.spec.feature_shape)).astype(np.float32)
    linearised = head.linearise(head.initial, features_BCHW)
    v_BKhw = random.standard_normal(linearised.logits_BKhw.shape).astype(np.float32)
    gradient, features_gradient = linearised.pull_back(v_BKhw)
    return {"logits": linearised.logits_BKhw, "gradient": gradient, "features' gradient": features_gradient}
