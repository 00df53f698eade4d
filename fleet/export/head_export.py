"""Writes local heads: ONNX graphs, initial parameters and a description, checked against torch."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import msgspec
import numpy as np
import torch

from datasets.catalog import label_space
from datasets.labels import LabelSpace
from edge_client.encoder.bundle import EncoderSpec
from edge_client.local.against_decoder import PICTURES
from edge_client.local.head import (
    FORMAT_VERSION,
    FORWARD_NAME,
    INITIAL_NAME,
    SPEC_NAME,
    VJP_NAME,
    HeadFolder,
    HeadSpec,
    LocalHead,
)
from fleet.export.bundle import KINK_DRAWS
from fleet.export.errors import ExportError
from fleet.export.head_graphs import head_graphs, head_parameter_specs
from fleet.export.heads import HeadModule, build_head
from fleet.export.multiply_adds import counted
from fleet.export.onnx_check import TOLERANCE, relative_difference
from protocol.atomic import write_bytes_atomic
from protocol.noise import derive_seed

_CHECKED_FRAMES = 2


def export_head(
    encoder: EncoderSpec, folder: Path, *, label_space_name: str, width: int, depth: int, seed: int
) -> HeadFolder:
    """Write a freshly initialised head for an encoder's features; the same arguments give the same files.

    Args:
        encoder: of the bundle that the head stands behind.
        width: channels inside, 1 at least.
        depth: residual blocks, 0 at least.

    Raises:
        SettingError: an unknown label space, or sizes that do not fit.
        OSError: the folder can't be written.
        ExportError: the graphs disagree with torch.
    """
    classes = label_space(label_space_name)
    head = head_for(encoder, classes, width=width, depth=depth, seed=seed)
    return write_head(head, encoder, folder, classes.name)


def export_decoder(encoder: EncoderSpec, folder: Path, *, width: int, depth: int, seed: int) -> HeadFolder:
    """Write a freshly initialised decoder from an encoder's features to pictures, a quarter of the frame each
    way: a head of three classes, the colours. See `export_head`."""
    decoder = build_head(
        encoder.feature_shape[0],
        3,
        stride=encoder.image_size[1] // encoder.feature_shape[1],
        width=width,
        depth=depth,
        seed=derive_seed(seed, "decoder"),
    )
    return write_head(decoder, encoder, folder, PICTURES)


def head_for(
    encoder: EncoderSpec, classes: LabelSpace, *, width: int, depth: int, seed: int, fixed: bool = False
) -> HeadModule:
    """A freshly initialised head for an encoder's features.

    Raises:
        SettingError: sizes that do not fit.
    """
    return build_head(
        encoder.feature_shape[0],
        classes.num_classes,
        stride=encoder.image_size[1] // encoder.feature_shape[1],
        width=width,
        depth=depth,
        seed=seed,
        fixed=fixed,
    )


def write_head(head: HeadModule, encoder: EncoderSpec, folder: Path, labels: str) -> HeadFolder:
    """Write a head as it is; see `export_head`."""
    _, height, columns = encoder.feature_shape
    specs = head_parameter_specs(head)
    forward, vjp = (graph.serialise(specs, None) for graph in head_graphs(head, (height, columns)))
    initial = torch.nn.utils.parameters_to_vector(head.parameters()).detach().numpy()
    files = {FORWARD_NAME: forward, VJP_NAME: vjp, INITIAL_NAME: initial.astype("<f4").tobytes()}
    spec = HeadSpec(
        format_version=FORMAT_VERSION,
        feature_shape=encoder.feature_shape,
        logit_shape=(head.classes, height * head.enlargement, columns * head.enlargement),
        label_space=labels,
        normalisation="fixed" if head.is_fixed else "batch",
        parameter_count=initial.size,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        multiply_adds={FORWARD_NAME: counted(forward), VJP_NAME: counted(vjp)},
    )
    _check_against_torch(head, HeadFolder(spec=spec, forward=forward, vjp=vjp, initial=initial))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes_atomic(folder / name, content)
    write_bytes_atomic(folder / SPEC_NAME, msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
    return HeadFolder.load(folder)


def _check_against_torch(head: HeadModule, folder: HeadFolder) -> None:
    """Value and both gradients at other parameters than the initial ones."""
    random = np.random.default_rng(0)
    parameters = folder.initial + random.uniform(0.01, 0.1, folder.initial.shape).astype(np.float32)
    moved = copy.deepcopy(head)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters), moved.parameters())
    onnx_head = LocalHead(folder)
    draws = []
    for _ in range(KINK_DRAWS):
        shape = (_CHECKED_FRAMES, *folder.spec.feature_shape)
        features_BCHW = torch.from_numpy(random.standard_normal(shape).astype(np.float32)).requires_grad_()
        logits_BKhw = moved(features_BCHW)
        v_BKhw = random.standard_normal(tuple(logits_BKhw.shape)).astype(np.float32)
        sources = [*moved.parameters(), features_BCHW]
        *parts, features_gradient = torch.autograd.grad(logits_BKhw, sources, torch.from_numpy(v_BKhw))
        linearised = onnx_head.linearise(parameters, features_BCHW.detach().numpy())
        gradient, features_gradient_BCHW = linearised.pull_back(v_BKhw)
        expected = torch.cat([part.ravel() for part in parts]).numpy()
        draws.append(
            max(
                relative_difference(linearised.logits_BKhw, logits_BKhw.detach().numpy()),
                relative_difference(gradient, expected),
                relative_difference(features_gradient_BCHW, features_gradient.numpy()),
            )
        )
    if not min(draws) <= TOLERANCE:
        raise ExportError(
            f"local head: ONNX and torch differ by {min(draws):g} of the largest element, more than "
            f"{TOLERANCE:g}; nothing was written"
        )
