"""The trial of an update: every graph that a vehicle would run, run once, in a process of its own.

`python -m edge_client.updates.trial` reads a `TrialJob` from its input; exit code 0: everything ran and is
finite, else the last line says what is wrong. Whatever it does to its process, the vehicle goes on.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import EncoderBundle, EncoderSpec
from edge_client.encoder.providers import Outputs, choose_encoder, encoder_outputs
from edge_client.encoder.sessions import CPU
from edge_client.local.head import HeadFolder, HeadSpec, LocalHead, head_outputs
from protocol.errors import MENDABLE
from protocol.update_file import UpdateError

_LONGEST_S = 1800.0
"""An engine of TensorRT takes minutes."""


class TrialJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run, and what it takes the place of."""

    bundle: str
    head: str | None
    present_bundle: str
    present_head: str | None
    provider: str
    threads: int
    mode: str
    frames_BHWC: bytes = b""
    """Some of the vehicle's own frames, uint8 RGB of the encoder's input size; empty: none."""


def try_out(job: TrialJob) -> None:
    """Run every graph.

    Raises:
        UpdateError: something doesn't fit what it takes the place of, or computes nothing finite.
        Exception: whatever ONNX Runtime raises.
    """
    bundle = EncoderBundle.load(job.bundle)
    _check_bundle(bundle.spec, EncoderBundle.load(job.present_bundle).spec)
    mode = job.mode
    encoder = choose_encoder(bundle, job.provider, mode=mode, threads=job.threads)  # type: ignore[arg-type]
    _check_finite(encoder_outputs(bundle, encoder.provider, job.threads, (encoder.mode,)))
    if job.frames_BHWC:
        width, height = bundle.spec.image_size
        image_BHWC = np.frombuffer(job.frames_BHWC, np.uint8).reshape(-1, height, width, 3)
        features_BCHW = encoder.forward(bundle.theta0, image_BHWC)
        if features_BCHW.shape[1:] != bundle.spec.feature_shape:
            raise UpdateError(
                f"features have the shape {features_BCHW.shape[1:]}, not {bundle.spec.feature_shape}"
            )
        _check_finite({"forward, on this vehicle's frames": features_BCHW})
    if job.head is None:
        return
    head = HeadFolder.load(Path(job.head))
    if head.spec.feature_shape != bundle.spec.feature_shape:
        raise UpdateError(
            f"the head takes features of {head.spec.feature_shape}, not {bundle.spec.feature_shape}"
        )
    if job.present_head is not None:
        _check_head(head.spec, HeadFolder.load(Path(job.present_head)).spec)
    for provider in dict.fromkeys((encoder.provider, CPU)):
        with contextlib.suppress(RuntimeError):  # on another provider the vehicle takes the CPU by itself
            _check_finite(head_outputs(LocalHead(head, provider=provider, threads=job.threads)))


def _check_bundle(new: EncoderSpec, present: EncoderSpec) -> None:
    for what in ("feature_shape", "image_size", "subspace"):
        found, expected = getattr(new, what), getattr(present, what)
        if found != expected:
            raise UpdateError(f"its {what} is {found}, and this vehicle's {expected}")
    if lacking := sorted(set(present.graphs) - set(new.graphs)):
        raise UpdateError(f"it lacks the graph {lacking[0]}, which this vehicle's bundle has")


def _check_head(new: HeadSpec, present: HeadSpec) -> None:
    for what in ("label_space", "normalisation"):
        found, expected = getattr(new, what), getattr(present, what)
        if found != expected:
            raise UpdateError(f"its {what} is {found}, and this vehicle's {expected}")


def _check_finite(outputs: Outputs) -> None:
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise UpdateError(f"{name}: not finite")


class RunningTrial:
    """A trial in its process."""

    def __init__(self, job: TrialJob) -> None:
        """Raises OSError: the process can't be started."""
        with tempfile.TemporaryFile() as given:
            given.write(msgspec.msgpack.encode(job))
            given.seek(0)
            self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge_client.updates.trial"],
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                # Not the supervisor's process: it is not to be told of this one's loop.
                env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
            )
        self._began = time.monotonic()

    def outcome(self) -> str | None:
        """What is wrong, empty where nothing is; None: it still runs."""
        code = self._process.poll()
        if code is None:
            if time.monotonic() - self._began <= _LONGEST_S:
                return None
            self._process.kill()
            self._process.wait()
            return f"its trial took longer than {_LONGEST_S:g} s"
        if code == 0:
            return ""
        if code < 0:
            return f"its trial was ended by signal {-code}"
        self._said.seek(0)
        lines = self._said.read()[-4000:].decode(errors="replace").strip().splitlines()
        return f"its trial failed: {lines[-1] if lines else f'exit code {code}'}"

    def close(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._said.close()


def main() -> int:
    """Do the job that the input describes; returns the exit code."""
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=TrialJob)
    try:
        try_out(job)
    except MENDABLE as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def frames_of(image_BHWC: NDArray[np.uint8]) -> bytes:
    """Frames as a job holds them."""
    return np.ascontiguousarray(image_BHWC).tobytes()


if __name__ == "__main__":
    sys.exit(main())
