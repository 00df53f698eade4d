"""The encoder bundle: what the operator hands to a vehicle, read and checked.

A directory with `encoder.json` (an `EncoderSpec`) and ONNX graphs. `forward.onnx` has θ as initializers whose
bytes may be overwritten in place, `forward_bound.onnx` as one more input `theta`. With a VJP, `tape.onnx` and
`tape_bound.onnx` do the same and also return what `vjp.onnx` needs to go back; θ is an input of `vjp.onnx`.
The same three with `-film` and so on in their names go back only to what learns in that subspace.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocol.errors import Mistake
from protocol.plans.adaptation import SUBSPACES, SubspaceName

FORMAT_VERSION: Literal[2] = 2
"""1: without `projection`, `subspace` and graphs of subspaces; read as an encoder that has none of them."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
WAY_BACK = ("tape", "tape_bound", "vjp")
"""The graphs that go back, to all of θ; `in_subspace` names those of its parts."""


def in_subspace(graph: str, subspace: str) -> str:
    """The name of a graph of the way back that ends in a subspace."""
    return graph if subspace == "all" else f"{graph}-{subspace}"


def holds_theta(graph: str) -> bool:
    """Whether a graph has θ as initializers."""
    return graph.partition("-")[0] in ("forward", "tape")


class BundleError(Mistake):
    """A bundle that is incomplete, damaged or of another format; the message says what to do."""


class ParameterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One array inside θ."""

    name: str
    shape: tuple[Positive, ...]
    offset: NotNegative
    """First element inside θ, in float32 elements."""
    kind: Literal["weight", "bias"]
    """Axis 0 of both is the output channel."""

    @property
    def size(self) -> int:
        """Number of float32 elements."""
        return math.prod(self.shape)


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ONNX file of the bundle."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    byte_offsets: tuple[NotNegative, ...] = ()
    """Where each parameter's little-endian float32 data starts in the file, in the order of
    `EncoderSpec.parameters`; empty where θ is an input of the graph."""
    multiply_adds: NotNegative = 0
    """Of one frame, of convolutions and matrix products; 0 = not counted."""


class EncoderSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The content of `encoder.json`."""

    format_version: Literal[1, 2]
    name: str
    image_size: tuple[Positive, Positive]
    """Width and height in pixels."""
    pixel_mean: tuple[float, float, float]
    """Subtracted inside the graphs from RGB scaled to [0, 1]."""
    pixel_std: tuple[float, float, float]
    feature_shape: tuple[Positive, Positive, Positive]
    """(C, H, W) of one frame's features."""
    parameters: tuple[ParameterSpec, ...]
    opset: Positive
    theta_sha256: str
    """Of the initial θ as little-endian float32."""
    graphs: dict[str, GraphSpec]
    projection: tuple[str, ...] = ()
    """The parameters of its last layers, which may learn alone; empty where the encoder names none."""
    subspace: SubspaceName = "all"
    """What of it learns where nobody says."""

    def __post_init__(self) -> None:
        end = 0
        for parameter in self.parameters:
            if parameter.offset != end:
                raise ValueError(f"{parameter.name} starts at {parameter.offset} of θ, expected {end}")
            end += parameter.size
        if end == 0:
            raise ValueError("no parameters")
        for required in ("forward", "forward_bound"):
            if required not in self.graphs:
                raise ValueError(f"graph {required} is not described")
        if stranger := set(self.projection).difference(parameter.name for parameter in self.parameters):
            raise ValueError(f"projection {min(stranger)} is no parameter")
        known = {"forward", "forward_bound"}
        for subspace in SUBSPACES:
            names = {in_subspace(graph, subspace) for graph in WAY_BACK}
            if 0 < len(names & set(self.graphs)) < len(names):
                raise ValueError(f"graphs {', '.join(sorted(names))} must come together")
            known |= names
        for name, graph in self.graphs.items():
            if name not in known:
                raise ValueError(f"unknown graph {name}")
            expected = len(self.parameters) if holds_theta(name) else 0
            if len(graph.byte_offsets) != expected:
                raise ValueError(f"{name} has {len(graph.byte_offsets)} byte offsets, expected {expected}")

    @property
    def parameter_count(self) -> int:
        """n, the length of θ."""
        return self.parameters[-1].offset + self.parameters[-1].size


@dataclass(frozen=True)
class EncoderBundle:
    """A bundle in memory, checked: `EncoderBundle.load(path)`."""

    spec: EncoderSpec
    theta0: NDArray[np.float32]
    """Initial θ, float32 (n,), read-only."""
    graphs: dict[str, bytes]
    """Serialised ONNX models; only the forward ones where the architecture has no VJP."""

    @classmethod
    def load(cls, path: Path | str) -> EncoderBundle:
        """Read the bundle in folder `path`.

        Raises:
            BundleError: a file is missing or unreadable, or its content isn't what was exported.
        """
        folder = Path(path)
        try:
            spec = msgspec.json.decode((folder / "encoder.json").read_bytes(), type=EncoderSpec)
            graphs = {name: (folder / f"{name}.onnx").read_bytes() for name in spec.graphs}
            for name, model in graphs.items():
                if hashlib.sha256(model).hexdigest() != spec.graphs[name].sha256:
                    raise ValueError(f"{name}.onnx is not the file that was exported (sha256 differs)")
            for name, graph in spec.graphs.items():
                if graph.byte_offsets:
                    theta = read_theta(spec, name, graphs[name])
                    if hashlib.sha256(theta.astype("<f4").tobytes()).hexdigest() != spec.theta_sha256:
                        raise ValueError(f"the byte offsets of {name}.onnx do not lead to the parameters")
        except OSError as error:
            raise _corrupt(folder, f"{error.filename}: {error.strerror}") from error
        except (ValueError, msgspec.DecodeError) as error:
            raise _corrupt(folder, str(error)) from error
        theta0 = read_theta(spec, "forward", graphs["forward"])
        theta0.flags.writeable = False
        return cls(spec=spec, theta0=theta0, graphs=graphs)


def spec_digest(spec: EncoderSpec) -> str:
    """Identifies a bundle by everything its description says, file digests included."""
    return hashlib.sha256(msgspec.json.encode(spec)).hexdigest()[:32]


def bundle_digest(bundle: EncoderBundle) -> str:
    """What a bundle is known by."""
    return spec_digest(bundle.spec)


def read_theta(spec: EncoderSpec, name: str, model: bytes) -> NDArray[np.float32]:
    """θ float32 (n,) from the initializers of `model`, the serialised graph `name`.

    Raises:
        ValueError: an offset lies outside the file.
    """
    if 4 * spec.parameter_count > len(model):
        raise ValueError(f"{name}.onnx is too short for {spec.parameter_count} parameters")
    theta = np.empty(spec.parameter_count, np.float32)
    for parameter, start in zip(spec.parameters, spec.graphs[name].byte_offsets, strict=True):
        if start + 4 * parameter.size > len(model):
            raise ValueError(f"{parameter.name} ends outside {name}.onnx ({len(model)} bytes)")
        values = np.frombuffer(model, "<f4", parameter.size, start)
        theta[parameter.offset : parameter.offset + parameter.size] = values
    return theta


def write_theta(spec: EncoderSpec, name: str, model: bytes, theta: NDArray[np.float32]) -> bytes:
    """`model`, the serialised graph `name`, with its initializers replaced by θ float32 (n,)."""
    patched = bytearray(model)
    little_endian = theta.astype("<f4", copy=False)
    for parameter, start in zip(spec.parameters, spec.graphs[name].byte_offsets, strict=True):
        values = little_endian[parameter.offset : parameter.offset + parameter.size]
        patched[start : start + 4 * parameter.size] = values.tobytes()
    return bytes(patched)


def _corrupt(folder: Path, fault: str) -> BundleError:
    return BundleError(
        f"corrupt encoder bundle {folder}: {' '.join(fault.split())}; "
        "export it again with `blackfleet encoder export`"
    )
