"""On what device encoders run: chosen by running every graph there, and comparing with the CPU.

`onnxruntime.get_available_providers()` names what a build contains, not what a device runs, nor whether it
computes the same: TensorRT before 10.4 takes convolutions whose weights are inputs for others.
Shapes: B frames, H by W pixels, C channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import EncoderBundle, in_subspace
from edge_client.encoder.graph import Graph, Mode
from edge_client.encoder.onnx_runtime import ort
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.sessions import CPU, DEFAULT_PROVIDERS, TENSORRT, base_name, options_of, told
from edge_client.errors import VehicleError
from protocol.errors import SettingError
from protocol.plans.adaptation import SUBSPACES

log = logging.getLogger(__name__)

AUTO = "auto"
_SUFFIX = "ExecutionProvider"
_FRAMES = 2
TOLERANCE = 1e-3
"""Most that anything may differ from the CPU's, as a share of the largest value. Rounding in float32 stays
far below; TF32 and float16 do not."""

Outputs = dict[str, NDArray[np.float32]]
"""What graphs give, by a name that says which and how."""


def short_name(provider: str) -> str:
    """`CPU` of `CPUExecutionProvider`, with the options as they are."""
    return provider.replace(_SUFFIX, "", 1)


def find_provider(name: str) -> str:
    """ONNX Runtime's name of `cpu`, `cuda`, `tensorrt`, or of any other that this build has; options stay.

    Raises:
        SettingError: it has none of this name, and the message lists those that it has; or the options are
            not `KEY=VALUE`, or the CPU's.
    """
    built_in: list[str] = ort.get_available_providers()
    base, colon, options = name.partition(":")
    for provider in built_in:
        if base.lower() in (provider.lower(), short_name(provider).lower()):
            if options_of(name) and provider == CPU:
                raise SettingError(f"the CPU's provider has no options here, got {name!r}; take cpu")
            return provider + (colon + options if options else "")
    if base == AUTO:
        raise SettingError(f"options are a named provider's, got {name!r}; for instance cuda:device_id=1")
    raise SettingError(
        f"ONNX Runtime {ort.__version__} has no provider {base!r} here, it has "
        f"{', '.join(short_name(provider).lower() for provider in built_in)}; take one of these, or auto, or "
        f"install a build that has it"
    )


def candidates(name: str) -> list[str]:
    """The providers that `name` stands for, the preferred one first.

    Raises:
        SettingError: see `find_provider`.
    """
    if name != AUTO:
        return [find_provider(name)]
    built_in = ort.get_available_providers()
    return [provider for provider in DEFAULT_PROVIDERS if provider in built_in]


def choose_encoder(
    bundle: EncoderBundle, provider: str, *, mode: Literal["auto", "bind", "rebuild"], threads: int
) -> Encoder:
    """An encoder on the first provider of `candidates(provider)` that gives what the CPU gives.

    Raises:
        SettingError: this ONNX Runtime has no such provider, or the mode is not for it.
        VehicleError: the provider that was named does not run here, or computes something else.
    """
    for name in candidates(provider):
        if base_name(name) == TENSORRT:
            if mode == "rebuild":
                raise SettingError(
                    "TensorRT compiles an engine for minutes: encoder mode rebuild would do so for every θ; "
                    "take bind"
                )
            mode = "bind"
        if name == CPU:
            break
        modes: tuple[Mode, ...] = ("bind", "rebuild") if mode == "auto" else (mode,)

        def outputs(device: str, bundle: EncoderBundle = bundle, modes: tuple[Mode, ...] = modes) -> Outputs:
            return encoder_outputs(bundle, device, threads, modes)

        if runs_as_on_cpu(f"encoder {bundle.spec.name}", name, outputs, is_named=provider != AUTO):
            return Encoder(bundle, mode=mode, threads=threads, providers=[name])
    return Encoder(bundle, mode=mode, threads=threads, providers=[CPU])


def runs_as_on_cpu(what: str, provider: str, outputs: Callable[[str], Outputs], *, is_named: bool) -> bool:
    """Whether `outputs` of a provider are those of the CPU; said in the log, and why not.

    Raises:
        VehicleError: they are not, and it was asked for by name.
    """
    try:
        with told(f"{what}: every graph is tried on {short_name(provider)}"):
            fault = difference(outputs(provider), outputs(CPU))
    except Exception as error:  # ONNX Runtime raises whatever the provider's library does
        fault = "does not run here: " + " ".join(str(error).split())[:300]
    if fault is None:
        log.info("%s: every graph on %s gives what the CPU gives", what, short_name(provider))
        return True
    if is_named:
        raise VehicleError(f"{what}: {short_name(provider)} {fault}; take --provider auto or cpu")
    log.warning("%s: %s %s; it goes to the CPU", what, short_name(provider), fault)
    return False


def difference(found: Outputs, expected: Outputs) -> str | None:
    """What is too far from what was expected, in words; None: nothing."""
    for name, values in expected.items():
        scale = float(np.abs(values).max()) or 1.0
        error = float(np.abs(found[name] - values).max()) / scale
        if not error <= TOLERANCE:
            return f"computes something else than the CPU: {name} differs by {error:.2g} of its largest value"
    return None


def encoder_outputs(bundle: EncoderBundle, provider: str, threads: int, modes: tuple[Mode, ...]) -> Outputs:
    """Features and gradients of a batch by every graph of a bundle, under a θ that is not the exported one.

    Raises:
        Exception: whatever the provider raises.
    """
    random = np.random.default_rng(0)
    width, height = bundle.spec.image_size
    image_BHWC = random.integers(0, 256, (_FRAMES, height, width, 3), dtype=np.uint8)
    v_BCHW = random.standard_normal((_FRAMES, *bundle.spec.feature_shape)).astype(np.float32)
    theta = bundle.theta0 * np.float32(1.01)
    found: Outputs = {}
    for mode in modes:
        forward = _graph(bundle, "forward", provider, threads, mode)
        pieces = forward.run_pieces(theta, forward.split({"image_BHWC": image_BHWC}))
        found[f"forward, {mode}"] = np.concatenate([piece["features_BCHW"] for piece in pieces])
        for subspace in SUBSPACES:
            tape_name, vjp_name = (in_subspace(name, subspace) for name in ("tape", "vjp"))
            if tape_name not in bundle.graphs:
                continue
            tape = _graph(bundle, tape_name, provider, threads, mode)
            vjp = _graph(bundle, vjp_name, provider, threads, "bind")
            tapes = tape.run_on_device(theta, tape.split({"image_BHWC": image_BHWC}))
            found[f"{tape_name}, {mode}"] = np.concatenate([kept["features_BCHW"].numpy() for kept in tapes])
            feeds = [{**kept, **v} for kept, v in zip(tapes, vjp.split({"v_BCHW": v_BCHW}), strict=True)]
            parts = [part["gradient"].numpy() for part in vjp.run_on_device(theta, feeds)]
            found[f"{vjp_name}, {mode}"] = np.sum(parts, axis=0)
    return found


def _graph(bundle: EncoderBundle, name: str, provider: str, threads: int, mode: Mode) -> Graph:
    graph = Graph(bundle, name, provider, threads)
    graph.mode = mode
    return graph
