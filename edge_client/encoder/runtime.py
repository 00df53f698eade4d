"""The vehicle's encoder on ONNX Runtime: image and θ in, features out; and back, where its bundle has a VJP.

Shapes: B frames, H by W pixels, C channels; θ is float32 (n,).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import BundleError, EncoderBundle, EncoderSpec, in_subspace
from edge_client.encoder.graph import PROBE_FRAMES, Arrays, DeviceArrays, Graph, Mode, on_device
from edge_client.encoder.onnx_runtime import ort
from edge_client.encoder.sessions import CPU, DEFAULT_PROVIDERS, base_name, open_session, told
from edge_client.encoder.subspaces import Everything, Subspace
from edge_client.work import count
from protocol.errors import SettingError
from protocol.plans.adaptation import SUBSPACES

log = logging.getLogger(__name__)

_Finish = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Encoder:
    """Runs any θ of one architecture; shared by all vehicles of a host, from any thread.

    ONNX Runtime optimises a graph only around constant weights. A new θ is therefore run either through
    the graph that takes it as an input (*bind*) or through a new session with θ as constants (*rebuild*).
    The two agree to rounding, not to the bit: a run that must be repeatable names its mode.

    Args:
        bundle: what to run.
        mode: "bind", "rebuild", or "auto": rebuild on the CPU, where it is faster and no measurement should
            decide which bits come out; measure both on another device and keep the faster.
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
        self._forward = Graph(bundle, "forward", self.provider, threads)
        if mode == "auto" and self.provider == CPU:
            mode = "rebuild"
        elif mode == "auto":
            random = np.random.default_rng(0)
            frames = random.integers(0, 256, (PROBE_FRAMES, *self._frame_shape), dtype=np.uint8)
            mode = self._forward.faster_mode(bundle.theta0, {"image_BHWC": frames})
        self._forward.mode = mode

        self._ways_back: dict[str, tuple[Graph, Graph]] = {}
        """By subspace: tape and VJP."""
        for subspace in SUBSPACES:
            tape, vjp = (in_subspace(graph, subspace) for graph in ("tape", "vjp"))
            if tape in bundle.graphs:
                both = (
                    Graph(bundle, tape, self.provider, threads),
                    Graph(bundle, vjp, self.provider, threads),
                )
                both[0].mode = mode
                self._ways_back[subspace] = both

    @property
    def mode(self) -> Mode:
        """How a changed θ is run; to be recorded with a run and given back to repeat it."""
        return self._forward.mode

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Run every graph at these batch sizes, the largest first.

        So whatever a device prepares for a shape is prepared before a turn begins: kernels chosen, engines
        compiled. Nothing is learnt, and it counts as no work.
        """
        width, height = self.spec.image_size
        sizes = sorted(set(batch_sizes), reverse=True)
        began = time.perf_counter()
        with told(f"encoder {self.spec.name} is warmed up for batches of {', '.join(map(str, sizes))}"):
            for size in sizes:
                image_BHWC = np.zeros((size, height, width, 3), np.uint8)
                v_BCHW = np.zeros((size, *self.spec.feature_shape), np.float32)
                # Where pieces of a batch are frames, one is as good as all.
                [piece] = self._forward.split({"image_BHWC": image_BHWC, "v_BCHW": v_BCHW})[:1]
                self._forward.run_pieces(self.theta0, [piece])
                for tape, vjp in self._ways_back.values():
                    for kept in tape.run_on_device(self.theta0, [piece]):
                        vjp.run_on_device(self.theta0, [{**kept, "v_BCHW": piece["v_BCHW"]}])
        log.info("encoder %s is warm after %.1f s", self.spec.name, time.perf_counter() - began)

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
        self.count_forward(len(image_BHWC))
        return np.concatenate([piece["features_BCHW"] for piece in pieces])

    def count_forward(self, frames: int) -> None:
        """Count so many frames' way through the encoder as work, here or where they were kept."""
        count(frames, self._forward.multiply_adds, forwards=True)

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

    def _way_back(self, theta: NDArray[np.float32], subspace: Subspace) -> tuple[Graph, Graph, _Finish]:
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
        self, vjp: Graph, theta: NDArray[np.float32], tape: Sequence[DeviceArrays], finish: _Finish
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
        feeds = [{**piece, **on_device(vector)} for piece, vector in zip(self._tape, vectors, strict=True)]
        [first, *others] = self._vjp.run_on_device(self._theta, feeds)
        gradient: NDArray[np.float32] = first["gradient"].numpy().copy()
        for part in others:
            gradient += part["gradient"].numpy()
        count(len(v_BCHW), self._vjp.multiply_adds, ways_back=True)
        return self._finish(gradient)


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
        if base_name(provider) not in built_in:
            log.warning("%s is not part of this ONNX Runtime; trying the next provider", provider)
            continue
        try:
            session = open_session(bundle.graphs["forward"], provider, threads)
            session.run(None, probe)
        except Exception as error:  # ONNX Runtime raises whatever the provider's library does
            log.warning("%s does not run here (%s); trying the next provider", provider, error)
            continue
        return provider
    return CPU
