"""The vehicle's encoder on ONNX Runtime: image and θ in, features out; and back, where its bundle has a VJP.

Shapes: B frames, H by W pixels, C channels; θ is float32 (n,).
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import BundleError, EncoderBundle, EncoderSpec, in_subspace, write_theta
from edge_client.encoder.onnx_runtime import ort
from edge_client.encoder.sessions import CPU, DEFAULT_PROVIDERS, open_session
from edge_client.encoder.subspaces import Everything, Subspace
from edge_client.work import count
from protocol.errors import SettingError
from protocol.plans.adaptation import SUBSPACES

log = logging.getLogger(__name__)

Mode = Literal["bind", "rebuild"]
Arrays = dict[str, NDArray[Any]]
"""Inputs or outputs of a graph by name."""
_DeviceArrays = dict[str, Any]
"""The same as ONNX Runtime holds them (`OrtValue`)."""
_Finish = Callable[[NDArray[np.float32]], NDArray[np.float32]]
PROBE_FRAMES = 8
PROBE_REPEATS = 3


class Encoder:
    """Runs any θ of one architecture; shared by all vehicles of a host, from any thread.

    ONNX Runtime optimises a graph only around constant weights. A new θ is therefore run either through
    the graph that takes it as an input (*bind*) or through a new session with θ as constants (*rebuild*).
    The two agree to rounding, not to the bit: a run that must be repeatable names its mode.

    Args:
        bundle: what to run.
        mode: "bind", "rebuild", or "auto": measure both on this device and keep the faster.
        threads: intra-op threads of a session.
        providers: ONNX Runtime execution providers in order of preference; each is tried with a real
            inference and the CPU is the last resort. None: `DEFAULT_PROVIDERS`.

    Raises:
        SettingError: unknown mode, or fewer threads than one.
    """

    def __init__(
        self,
        bundle: EncoderBundle,
        *,
        mode: Literal["auto", "bind", "rebuild"] = "auto",
        threads: int = 1,
        providers: Sequence[str] | None = None,
    ) -> None:
        if mode not in ("auto", "bind", "rebuild"):
            raise SettingError(f"encoder mode must be auto, bind or rebuild, got {mode!r}")
        if threads < 1:
            raise SettingError(f"encoder threads must be at least 1, got {threads}")
        self.spec: EncoderSpec = bundle.spec
        self.theta0 = bundle.theta0
        width, height = bundle.spec.image_size
        self._frame_shape = (height, width, 3)
        probe: Arrays = {"image_BHWC": np.zeros((1, *self._frame_shape), np.uint8)}
        built_in = ort.get_available_providers()
        wanted = [name for name in DEFAULT_PROVIDERS if name in built_in] if providers is None else providers
        self.provider = _working_provider(bundle, wanted, threads, probe)
        self._forward = _Graph(bundle, "forward", self.provider, threads)
        if mode == "auto":
            random = np.random.default_rng(0)
            frames = random.integers(0, 256, (PROBE_FRAMES, *self._frame_shape), dtype=np.uint8)
            mode = self._forward.faster_mode(bundle.theta0, {"image_BHWC": frames})
        self._forward.mode = mode

        self._ways_back: dict[str, tuple[_Graph, _Graph]] = {}
        """By subspace: tape and VJP."""
        for subspace in SUBSPACES:
            tape, vjp = (in_subspace(graph, subspace) for graph in ("tape", "vjp"))
            if tape in bundle.graphs:
                both = (
                    _Graph(bundle, tape, self.provider, threads),
                    _Graph(bundle, vjp, self.provider, threads),
                )
                both[0].mode = mode
                self._ways_back[subspace] = both

    @property
    def mode(self) -> Mode:
        """How a changed θ is run; to be recorded with a run and given back to repeat it."""
        return self._forward.mode

    def forward(self, theta: NDArray[np.float32], image_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of some frames under θ.

        Args:
            theta: float32 (n,).
            image_BHWC: uint8 RGB (B, H, W, 3) of the bundle's image size, B at least 1.

        Returns:
            float32 (B, C, H', W'). On the CPU a frame's features don't depend on the other frames.

        Raises:
            ValueError: wrong shape or type of either.
        """
        self._check_theta(theta)
        self._check_images(image_BHWC)
        pieces = self._forward.run_pieces(theta, self._forward.split({"image_BHWC": image_BHWC}))
        count(len(image_BHWC), self._forward.multiply_adds, forwards=True)
        return np.concatenate([piece["features_BCHW"] for piece in pieces])

    def linearise(
        self,
        theta: NDArray[np.float32],
        image_BHWC: NDArray[np.uint8],
        subspace: Subspace | None = None,
    ) -> Linearisation:
        """Features of some frames together with the way back; arguments as for `forward`.

        Args:
            subspace: where the way back ends; θ must lie in it. It costs only what leads there, if the bundle
                has its graphs. None: θ itself.

        Raises:
            BundleError: the bundle has no VJP.
        """
        self._check_theta(theta)
        self._check_images(image_BHWC)
        tape, vjp, finish = self._way_back(theta, subspace or Everything(theta))
        pieces = tape.run_on_device(theta, tape.split({"image_BHWC": image_BHWC}))
        count(len(image_BHWC), tape.multiply_adds, forwards=True)
        return Linearisation(vjp, theta, pieces, finish)

    def vjp(
        self,
        theta: NDArray[np.float32],
        image_BHWC: NDArray[np.uint8],
        v_BCHW: NDArray[np.float32],
        subspace: Subspace | None = None,
    ) -> NDArray[np.float32]:
        """The gradient of ⟨forward(θ, image), v⟩ with respect to θ, or to φ in a subspace.

        Whoever needs the features as well gets both for less from `linearise`.

        Args:
            theta: float32 (n,).
            image_BHWC: uint8 RGB (B, H, W, 3).
            v_BCHW: float32 of the features' shape.
            subspace: as for `linearise`.

        Returns:
            float32 (n,), or (m,) in a subspace, summed over the frames.

        Raises:
            BundleError: the bundle has no VJP.
        """
        self._check_theta(theta)
        self._check_images(image_BHWC)
        _check_vector(v_BCHW, (len(image_BHWC), *self.spec.feature_shape))
        subspace = subspace or Everything(theta)
        tape, vjp, finish = self._way_back(theta, subspace)
        gradient = np.zeros(subspace.size, np.float32)
        # piece by piece, so that the activations of one frame, not of the batch, are kept at a time
        for piece in tape.split({"image_BHWC": image_BHWC, "v_BCHW": v_BCHW}):
            linearised = Linearisation(vjp, theta, tape.run_on_device(theta, [piece]), finish)
            gradient += linearised.pull_back(piece["v_BCHW"])
            count(len(piece["v_BCHW"]), tape.multiply_adds, forwards=True)
        return gradient

    def _way_back(self, theta: NDArray[np.float32], subspace: Subspace) -> tuple[_Graph, _Graph, _Finish]:
        """Tape, VJP, and what makes ∂L/∂φ of what the VJP gives; that of all of θ leads everywhere."""
        if "all" not in self._ways_back:
            raise BundleError(
                f"the bundle of encoder {self.spec.name} has no VJP; "
                "use an estimator that needs forward passes only: spsa-gc, region-spsa, or activation with "
                "activation.forward_passes above 0"
            )
        scale = subspace.scale_of(theta)
        if subspace.name in self._ways_back and scale is not None:
            return *self._ways_back[subspace.name], lambda gradient: gradient / scale
        return *self._ways_back["all"], subspace.pull_back

    def _check_theta(self, theta: NDArray[np.float32]) -> None:
        count = self.spec.parameter_count
        if theta.dtype != np.float32 or theta.shape != (count,):
            raise ValueError(f"θ must be float32 ({count},), got {theta.dtype} {theta.shape}")

    def _check_images(self, image_BHWC: NDArray[np.uint8]) -> None:
        fits = image_BHWC.ndim == 4 and image_BHWC.shape[1:] == self._frame_shape and len(image_BHWC) > 0
        if image_BHWC.dtype != np.uint8 or not fits:
            height, width, _ = self._frame_shape
            raise ValueError(
                f"encoder {self.spec.name} takes uint8 images (B, {height}, {width}, 3), "
                f"got {image_BHWC.dtype} {image_BHWC.shape}"
            )


class Linearisation:
    """The encoder around one θ and one batch: its value and its vector-Jacobian product.

    Attributes:
        features_BCHW: float32, what `Encoder.forward` returns for the same arguments, to rounding.
    """

    def __init__(
        self, vjp: _Graph, theta: NDArray[np.float32], tape: Sequence[_DeviceArrays], finish: _Finish
    ) -> None:
        self._finish = finish
        self.features_BCHW: NDArray[np.float32] = np.concatenate(
            [piece["features_BCHW"].numpy() for piece in tape]
        )
        self._vjp = vjp
        self._theta = theta.copy()
        self._tape = tape

    def pull_back(self, v_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient of ⟨features, v⟩ for θ, float32 (n,), or for φ of the subspace, float32 (m,); may be
        asked for several v.

        Raises:
            ValueError: v is not float32 of the features' shape.
        """
        _check_vector(v_BCHW, self.features_BCHW.shape)
        vectors = self._vjp.split({"v_BCHW": v_BCHW})
        feeds = [{**piece, **_on_device(vector)} for piece, vector in zip(self._tape, vectors, strict=True)]
        [first, *others] = self._vjp.run_on_device(self._theta, feeds)
        gradient: NDArray[np.float32] = first["gradient"].numpy().copy()
        for part in others:
            gradient += part["gradient"].numpy()
        count(len(v_BCHW), self._vjp.multiply_adds, ways_back=True)
        return self._finish(gradient)


class _Graph:
    """One ONNX graph of a bundle, run under any θ; keeps the session of the last θ."""

    def __init__(self, bundle: EncoderBundle, name: str, provider: str, threads: int) -> None:
        self.mode: Mode = "bind"
        self._spec = bundle.spec
        self._name = name
        self._provider = provider
        self._threads = threads
        graph, dash, subspace = name.partition("-")
        self.multiply_adds = bundle.spec.graphs[name].multiply_adds
        """Of one frame; 0 = not known."""
        self._model = bundle.graphs[name]
        self._bound_model = bundle.graphs.get(f"{graph}_bound{dash}{subspace}", self._model)
        self._lock = threading.Lock()
        self._bound: ort.InferenceSession | None = None
        self._built: tuple[NDArray[np.float32], ort.InferenceSession] | None = None

    def split(self, batch: Arrays) -> list[Arrays]:
        """The pieces in which a batch is run.

        On the CPU each piece is one frame: its activations stay in the cache (15 to 30 % faster than a
        batch of eight), and the result of a frame doesn't depend on the batch it came in.
        """
        frames = len(next(iter(batch.values())))
        size = 1 if self._provider == CPU else frames
        return [
            {name: values[start : start + size] for name, values in batch.items()}
            for start in range(0, frames, size)
        ]

    def run_pieces(self, theta: NDArray[np.float32], pieces: Sequence[Arrays]) -> list[Arrays]:
        """The outputs for each piece by name; what a piece holds beyond the graph's inputs is ignored."""
        session, bound_theta = self._session(theta)
        inputs = {value.name for value in session.get_inputs()}
        outputs = [value.name for value in session.get_outputs()]
        results: list[Arrays] = []
        for piece in pieces:
            feeds = {name: values for name, values in piece.items() if name in inputs}
            found = session.run(outputs, {**feeds, **bound_theta})
            results.append(dict(zip(outputs, found, strict=True)))
        return results

    def run_on_device(
        self, theta: NDArray[np.float32], pieces: Sequence[Arrays | _DeviceArrays]
    ) -> list[_DeviceArrays]:
        """The same with what ONNX Runtime holds: a tape is as large as all activations, and copying it out
        and in again takes as long as a third of a forward pass."""
        session, bound_theta = self._session(theta)
        inputs = {value.name for value in session.get_inputs()}
        outputs = [value.name for value in session.get_outputs()]
        bound = _on_device(bound_theta)
        results: list[_DeviceArrays] = []
        for piece in pieces:
            feeds = _on_device({name: values for name, values in piece.items() if name in inputs})
            found = session.run_with_ort_values(outputs, {**feeds, **bound})
            results.append(dict(zip(outputs, found, strict=True)))
        return results

    def faster_mode(self, theta: NDArray[np.float32], batch: Arrays) -> Mode:
        """The mode that takes less time for a new θ and one batch, by the median of some trials."""
        seconds: dict[Mode, list[float]] = {"bind": [], "rebuild": []}
        for trial in range(PROBE_REPEATS + 1):
            for mode, taken in seconds.items():
                self.mode = mode
                changed = theta * np.float32(1 + 1e-3 * trial)
                start = time.perf_counter()
                self.run_pieces(changed, self.split(batch))
                if trial > 0:
                    taken.append(time.perf_counter() - start)
        bind_s, rebuild_s = statistics.median(seconds["bind"]), statistics.median(seconds["rebuild"])
        log.info(
            "%s on %s: %.1f ms with weights bound, %.1f ms with a rebuilt session",
            *(self._name, self._provider, 1e3 * bind_s, 1e3 * rebuild_s),
        )
        return "bind" if bind_s <= rebuild_s else "rebuild"

    def _session(self, theta: NDArray[np.float32]) -> tuple[ort.InferenceSession, Arrays]:
        with self._lock:
            if self.mode == "bind":
                if self._bound is None:
                    self._bound = open_session(self._bound_model, self._provider, self._threads)
                return self._bound, {"theta": theta}
            if self._built is None or not np.array_equal(self._built[0], theta):
                model = write_theta(self._spec, self._name, self._model, theta)
                self._built = (theta.copy(), open_session(model, self._provider, self._threads))
            return self._built[1], {}


def _on_device(arrays: Mapping[str, Any]) -> _DeviceArrays:
    return {
        name: ort.OrtValue.ortvalue_from_numpy(values) if isinstance(values, np.ndarray) else values
        for name, values in arrays.items()
    }


def _check_vector(v_BCHW: NDArray[np.float32], shape_BCHW: tuple[int, ...]) -> None:
    if v_BCHW.dtype != np.float32 or v_BCHW.shape != shape_BCHW:
        raise ValueError(f"v must be float32 {shape_BCHW}, got {v_BCHW.dtype} {v_BCHW.shape}")


def _working_provider(bundle: EncoderBundle, preferred: Sequence[str], threads: int, probe: Arrays) -> str:
    """The first of the preferred providers that really runs the forward graph, else the CPU.

    `ort.get_available_providers()` names what the build contains, not what the device can run.
    """
    built_in = ort.get_available_providers()
    for provider in preferred:
        if provider == CPU:
            return CPU
        if provider not in built_in:
            log.warning("%s is not part of this ONNX Runtime; trying the next provider", provider)
            continue
        try:
            session = open_session(bundle.graphs["forward"], provider, threads)
            if session.get_providers()[0] != provider:
                raise RuntimeError("ONNX Runtime fell back by itself")
            session.run(None, probe)
        except Exception as error:  # ONNX Runtime raises whatever the provider's library does
            log.warning("%s does not run here (%s); trying the next provider", provider, error)
            continue
        return provider
    return CPU
