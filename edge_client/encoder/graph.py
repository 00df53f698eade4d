"""One ONNX graph of an encoder's bundle, run under any θ.

Shapes: B frames, H by W pixels, C channels; θ is float32 (n,).
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import EncoderBundle, write_theta
from edge_client.encoder.onnx_runtime import ort
from edge_client.encoder.sessions import CPU, DEVICE_MEMORY, base_name, open_session

log = logging.getLogger(__name__)

Mode = Literal["bind", "rebuild"]
Arrays = dict[str, NDArray[Any]]
"""Inputs or outputs of a graph by name."""
DeviceArrays = dict[str, Any]
"""The same as ONNX Runtime holds them (`OrtValue`)."""
_FOR_THE_HOST = frozenset({"features_BCHW", "gradient"})
"""Outputs that no other graph takes."""
PROBE_FRAMES = 8
PROBE_REPEATS = 3


class Graph:
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
        self.memory = DEVICE_MEMORY.get(base_name(provider))
        """Where what the next graph takes from `run_on_device` stays; None: the host's, as everything."""
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
        self, theta: NDArray[np.float32], pieces: Sequence[Arrays | DeviceArrays]
    ) -> list[DeviceArrays]:
        """The same with what ONNX Runtime holds: a tape is as large as all activations, and copying it out
        and in again takes as long as a third of a forward pass."""
        session, bound_theta = self._session(theta)
        inputs = {value.name for value in session.get_inputs()}
        outputs = [value.name for value in session.get_outputs()]
        bound = on_device(bound_theta)
        results: list[DeviceArrays] = []
        for piece in pieces:
            feeds = on_device({name: values for name, values in piece.items() if name in inputs})
            if self.memory is None:
                found = session.run_with_ort_values(outputs, {**feeds, **bound})
            else:
                found = _run_bound(session, {**feeds, **bound}, outputs, self.memory)
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


def _run_bound(
    session: ort.InferenceSession, feeds: DeviceArrays, outputs: Sequence[str], memory: str
) -> list[Any]:
    """By IOBinding: without it a device's outputs are copied to the host, and in again for the next graph."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, "cpu" if name in _FOR_THE_HOST else memory)
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return list(binding.get_outputs())


def on_device(arrays: Mapping[str, Any]) -> DeviceArrays:
    """Arrays as ONNX Runtime holds them; those that it holds already stay."""
    return {
        name: ort.OrtValue.ortvalue_from_numpy(values) if isinstance(values, np.ndarray) else values
        for name, values in arrays.items()
    }
