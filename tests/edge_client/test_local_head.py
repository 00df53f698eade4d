"""The local head on ONNX Runtime and its loss in numpy, against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from cloud_server.training import losses
from datasets.labels import CAMVID, VOID
from edge_client.encoder.bundle import EncoderSpec
from edge_client.local.cross_entropy import cross_entropy, downsample_label
from edge_client.local.head import FILE_NAMES, SPEC_NAME, HeadError, HeadFolder, LocalHead
from fleet.export.bundle import export_bundle
from fleet.export.head_export import export_head
from fleet.export.heads import build_head

SIZE = (64, 48)


def encoder_spec(folder: Path, name: str = "stride8-c8") -> EncoderSpec:
    return export_bundle(name, folder, image_size=SIZE, seed=0).spec


def close(value: np.ndarray, expected: np.ndarray, share: float = 1e-5) -> None:
    np.testing.assert_allclose(value, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize(
    ("encoder", "width", "depth"),
    [("stride8-c8", 32, 2), ("stride4-c8", 7, 1), ("stride8-c4", 5, 0), ("stride8-c16", 6, 3)],
)
def test_value_and_gradients_equal_autograd(tmp_path: Path, encoder: str, width: int, depth: int) -> None:
    spec = encoder_spec(tmp_path / "bundle", encoder)
    folder = export_head(spec, tmp_path / "head", label_space_name="camvid", width=width, depth=depth, seed=4)
    module = build_head(
        spec.feature_shape[0],
        CAMVID.num_classes,
        stride=SIZE[0] // spec.feature_shape[2],
        width=width,
        depth=depth,
        seed=4,
    )
    random = np.random.default_rng(1)
    features = torch.from_numpy(3 + random.standard_normal((3, *spec.feature_shape)).astype(np.float32))
    logits = module(features.requires_grad_())
    assert logits.shape == (3, CAMVID.num_classes, SIZE[1] // 4, SIZE[0] // 4)
    v = random.standard_normal(tuple(logits.shape)).astype(np.float32)
    *parts, features_gradient = torch.autograd.grad(
        logits, [*module.parameters(), features], torch.from_numpy(v)
    )
    linearised = LocalHead(folder).linearise(folder.initial, features.detach().numpy())
    gradient, gradient_BCHW = linearised.pull_back(v)
    close(linearised.logits_BKhw, logits.detach().numpy())
    close(gradient_BCHW, features_gradient.numpy())
    offset = 0
    # where the gradient is zero but for rounding, the largest of all is the measure
    largest = max(float(part.abs().max()) for part in parts)
    for part in parts:
        own = gradient[offset : offset + part.numel()]
        np.testing.assert_allclose(own, part.ravel().numpy(), rtol=0, atol=1e-5 * largest)
        offset += part.numel()
    assert offset == gradient.size == folder.spec.parameter_count


def test_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    spec = encoder_spec(tmp_path / "bundle")
    for name in ("a", "b"):
        export_head(spec, tmp_path / name, label_space_name="cityscapes", width=4, depth=1, seed=0)
    for file in (SPEC_NAME, *FILE_NAMES):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    other = export_head(spec, tmp_path / "c", label_space_name="cityscapes", width=4, depth=1, seed=1)
    assert not np.array_equal(other.initial, HeadFolder.load(tmp_path / "a").initial)


@pytest.mark.parametrize("file", [SPEC_NAME, *FILE_NAMES])
def test_damaged_or_missing_file_is_refused(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "head"
    export_head(
        encoder_spec(tmp_path / "bundle"), folder, label_space_name="camvid", width=4, depth=0, seed=0
    )
    (folder / file).write_bytes((folder / file).read_bytes()[:-3])
    with pytest.raises(HeadError, match=file):
        HeadFolder.load(folder)
    (folder / file).unlink()
    with pytest.raises(HeadError, match="launch --algorithm blackfleet"):
        HeadFolder.load(folder)


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    spec = encoder_spec(tmp_path / "bundle")
    folder = export_head(spec, tmp_path / "head", label_space_name="camvid", width=4, depth=0, seed=0)
    head = LocalHead(folder)
    features = np.zeros((2, *spec.feature_shape), np.float32)
    with pytest.raises(ValueError, match="head parameters must be"):
        head.linearise(folder.initial[1:], features)
    with pytest.raises(ValueError, match="takes float32 features"):
        head.linearise(folder.initial, features[:, 1:])
    with pytest.raises(ValueError, match="v must be float32"):
        head.linearise(folder.initial, features).pull_back(np.zeros((2, 1, 1, 1), np.float32))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("void_share", [0.0, 0.3, 1.0])
def test_cross_entropy_equals_torch(void_share: float, weighted: bool) -> None:
    random = np.random.default_rng(3)
    logits = (10 * random.standard_normal((2, 11, 6, 8))).astype(np.float32)
    label = random.integers(0, 11, (2, 6, 8)).astype(np.uint8)
    label[random.random(label.shape) < void_share] = VOID
    leaf = torch.from_numpy(logits).requires_grad_()
    weight = random.gamma(1, size=label.shape).astype(np.float32) if weighted else None
    if weight is None:
        expected = losses.cross_entropy(leaf, torch.from_numpy(label))
    else:
        target = torch.from_numpy(label).long()
        pixels = functional.cross_entropy(leaf, target, ignore_index=VOID, reduction="none")
        expected = (pixels * torch.from_numpy(weight)).sum() / max(int((label != VOID).sum()), 1)
    expected.backward()
    loss, gradient = cross_entropy(logits, label, weight)
    assert gradient.dtype == np.float32
    assert loss == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [(12, 16), (5, 7), (48, 64)])
def test_labels_are_reduced_as_in_the_cloud(size: tuple[int, int]) -> None:
    label = np.random.default_rng(0).integers(0, 12, (48, 64)).astype(np.uint8)
    expected = losses.downsample_labels(torch.from_numpy(label), size).numpy()
    assert np.array_equal(downsample_label(label, size), expected)
