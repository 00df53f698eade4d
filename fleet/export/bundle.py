"""Writes encoder bundles: ONNX graphs, initial weights and a description, all checked against torch."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edge_client.encoder.bundle import (
    FORMAT_VERSION,
    EncoderBundle,
    EncoderSpec,
    GraphSpec,
    ParameterSpec,
    holds_theta,
    in_subspace,
)
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.subspaces import How, learning, subspace_of
from fleet.export.encoders import ImageEncoder, build_encoder, check_image_size, short_name
from fleet.export.errors import ExportError
from fleet.export.graphs import byte_offsets
from fleet.export.multiply_adds import counted
from fleet.export.onnx_check import TOLERANCE, check_against_file, relative_difference
from fleet.export.onnx_encoder import OnnxEncoder, missing_way_back
from fleet.export.reverse import WayBack, derive
from protocol.atomic import new_folder_beside
from protocol.plans.adaptation import SUBSPACES, SubspaceName

SPEC_NAME = "encoder.json"
"""In a bundle: what the rest is."""
FEATURES = "features_BCHW"
"""Name of an encoder's output."""
KINK_DRAWS = 3
"""Draws for the check of the VJP, of which the best counts: where a ReLU's input is zero to rounding, ONNX
and torch may rightly disagree by its whole slope, but hardly in every draw."""


def export_bundle(
    name: str,
    out_dir: Path | str,
    *,
    image_size: tuple[int, int],
    seed: int,
    trainable: Sequence[str] | None = None,
) -> EncoderBundle:
    """Export a freshly initialised encoder.

    Args:
        name, trainable: see `fleet.export.encoders.architecture`.
        out_dir: the folder to write; an existing bundle there is replaced, anything else is refused.
        image_size: width and height in pixels, multiples of the encoder's stride.
        seed: of the initial weights; the same seed gives the same files.

    Returns:
        The bundle as a vehicle reads it.

    Raises:
        SettingError: unknown encoder, negative seed, image size that does not fit.
        OSError: the folder can't be written, or holds something else.
        ExportError: the graphs disagree with torch.
    """
    encoder = build_encoder(name, seed, trainable=trainable)
    return export_encoder(encoder, short_name(name), out_dir, image_size=image_size)


def export_encoder(
    encoder: ImageEncoder, name: str, out_dir: Path | str, *, image_size: tuple[int, int]
) -> EncoderBundle:
    """Export an encoder as it is, trained or not; arguments and errors as for `export_bundle`."""
    plain = encoder.folded()
    check_image_size(image_size, name, plain.stride)
    folder = Path(out_dir)
    if folder.exists() and not (folder / SPEC_NAME).exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds something else than an encoder bundle; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = new_folder_beside(folder)
    try:
        _write(plain, name, image_size, written)
        bundle = EncoderBundle.load(written)
        if isinstance(plain, OnnxEncoder):
            check_against_file(plain, bundle)
        else:
            _check_against_torch(plain, bundle)
        _move_into_place(written, folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return bundle


def _write(encoder: ImageEncoder, name: str, image_size: tuple[int, int], folder: Path) -> None:
    parameters = encoder.parameter_specs()
    theta = torch.nn.utils.parameters_to_vector(encoder.parameters()).detach().numpy()
    forward = encoder.forward_graph(image_size)
    models = {
        "forward": forward.serialise(parameters, theta),
        "forward_bound": forward.serialise(parameters, None),
    }
    plain = onnx.load_from_string(models["forward"])
    # a file may hold operators that there is no way back through: such an encoder learns from losses alone
    if not isinstance(encoder, OnnxEncoder) or missing_way_back(encoder, image_size) is None:
        for subspace in subspaces(encoder.projection()):
            parts = learning(subspace, parameters, encoder.projection())
            way_back = _way_back(plain, parts)
            taped = [value for value in way_back.tape if value[0] != FEATURES]
            tape = dataclasses.replace(forward, outputs=[*forward.outputs, *taped])
            models[in_subspace("tape", subspace)] = tape.serialise(parameters, theta)
            models[in_subspace("tape_bound", subspace)] = tape.serialise(parameters, None)
            models[in_subspace("vjp", subspace)] = way_back.graph.serialise(parameters, None)
    graphs: dict[str, GraphSpec] = {}
    for graph, model in models.items():
        (folder / f"{graph}.onnx").write_bytes(model)
        offsets = byte_offsets(model, parameters) if holds_theta(graph) else ()
        graphs[graph] = GraphSpec(
            sha256=hashlib.sha256(model).hexdigest(), byte_offsets=offsets, multiply_adds=counted(model)
        )
    spec = EncoderSpec(
        format_version=FORMAT_VERSION,
        name=name,
        image_size=image_size,
        pixel_mean=encoder.rgb_mean,
        pixel_std=encoder.rgb_std,
        feature_shape=(encoder.channels, image_size[1] // encoder.stride, image_size[0] // encoder.stride),
        parameters=parameters,
        opset=forward.opset,
        theta_sha256=hashlib.sha256(theta.astype("<f4").tobytes()).hexdigest(),
        graphs=graphs,
        projection=encoder.projection(),
        subspace=encoder.subspace,
    )
    (folder / SPEC_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")


def subspaces(projection: Sequence[str]) -> tuple[SubspaceName, ...]:
    """Those of an encoder with these parameters as its projection."""
    return tuple(name for name in SUBSPACES if projection or "projection" not in name)


def _way_back(model: onnx.ModelProto, parts: Sequence[tuple[ParameterSpec, How]]) -> WayBack:
    """From the features to what learns."""
    return derive(
        model,
        {parameter.name: parameter.shape for parameter, _ in parts},
        FEATURES,
        by_channel={
            parameter.name: "scale" if parameter.kind == "weight" else "shift"
            for parameter, how in parts
            if how == "by channel"
        },
    )


def _check_against_torch(encoder: ImageEncoder, bundle: EncoderBundle) -> None:
    """At a θ of its own, whose every element differs from the initial one, so that no offset can be wrong."""
    random = np.random.default_rng(0)
    spread = float(np.abs(bundle.theta0).mean())
    theta = bundle.theta0 + random.uniform(0, spread, bundle.theta0.shape).astype(np.float32)
    moved = copy.deepcopy(encoder)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), moved.parameters())
    worst = dict.fromkeys(("features", "gradient"), 0.0)
    for mode in ("bind", "rebuild"):
        onnx_encoder = Encoder(bundle, mode=mode, providers=["CPUExecutionProvider"])
        draws = [_differences(moved, onnx_encoder, theta, random) for _ in range(KINK_DRAWS)]
        worst["features"] = max(worst["features"], *(features for features, _ in draws))
        worst["gradient"] = max(worst["gradient"], min(gradient for _, gradient in draws))
        if mode == "bind":
            for name in subspaces(bundle.spec.projection)[1:]:
                draws_of_part = [_difference_of_part(name, onnx_encoder, random) for _ in range(KINK_DRAWS)]
                worst[f"gradient in {name}"] = min(draws_of_part)
    for what, difference in worst.items():
        if not difference <= TOLERANCE:
            raise ExportError(
                f"encoder {bundle.spec.name}: the {what} of ONNX and torch differ by {difference:g} of the "
                f"largest element, more than {TOLERANCE:g}; nothing was written"
            )


def _differences(
    module: ImageEncoder,
    onnx_encoder: Encoder,
    theta: NDArray[np.float32],
    random: np.random.Generator,
) -> tuple[float, float]:
    """Largest difference of the features and of the VJP, relative to their largest element, for one draw."""
    width, height = onnx_encoder.spec.image_size
    image_BHWC = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    expected_BCHW = module(torch.from_numpy(image_BHWC))
    v_BCHW = random.standard_normal(tuple(expected_BCHW.shape)).astype(np.float32)
    gradients = torch.autograd.grad(expected_BCHW, list(module.parameters()), torch.from_numpy(v_BCHW))
    gradient = torch.cat([part.ravel() for part in gradients]).numpy()
    features_BCHW = expected_BCHW.detach().numpy()
    linearised = onnx_encoder.linearise(theta, image_BHWC)
    return (
        max(
            relative_difference(onnx_encoder.forward(theta, image_BHWC), features_BCHW),
            relative_difference(linearised.features_BCHW, features_BCHW),
        ),
        relative_difference(linearised.pull_back(v_BCHW), gradient),
    )


def _difference_of_part(name: str, encoder: Encoder, random: np.random.Generator) -> float:
    """Largest difference of a subspace's own way back to the part of that to all of θ, as above."""
    width, height = encoder.spec.image_size
    image_BHWC = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    v_BCHW = random.standard_normal((1, *encoder.spec.feature_shape)).astype(np.float32)
    subspace = subspace_of(name, encoder.spec, encoder.theta0)
    phi = random.uniform(-0.1, 0.1, subspace.size).astype(np.float32)
    theta = subspace.theta_of(phi)
    expected = subspace.pull_back(encoder.vjp(theta, image_BHWC, v_BCHW))
    return relative_difference(encoder.vjp(theta, image_BHWC, v_BCHW, subspace), expected)


def _move_into_place(written: Path, folder: Path) -> None:
    """Rename `written` to `folder`, whose former content goes away."""
    if folder.exists():
        former = new_folder_beside(folder)
        folder.replace(former)
        try:
            written.replace(folder)
        except OSError:
            former.replace(folder)
            raise
        shutil.rmtree(former, ignore_errors=True)
    else:
        written.replace(folder)
