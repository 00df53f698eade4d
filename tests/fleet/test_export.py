"""Encoder bundles: what export writes, and what a vehicle refuses to load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_client.encoder.bundle import BundleError, EncoderBundle, read_theta, write_theta
from fleet.export.bundle import export_bundle
from fleet.export.convolutions import ConvolutionEncoder
from fleet.export.encoders import CHAINS, build_encoder
from fleet.export.errors import ExportError

SIZE = (64, 48)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "exported"
    export_bundle("stride8-c4", folder, image_size=SIZE, seed=0)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_seed_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    export_bundle("stride8-c4", tmp_path / "again", image_size=SIZE, seed=0)
    export_bundle("stride8-c4", tmp_path / "other", image_size=SIZE, seed=1)
    assert contents(tmp_path / "again") == contents(exported)
    assert contents(tmp_path / "other") != contents(exported)


def test_loaded_theta_is_what_torch_holds(exported: Path) -> None:
    module = build_encoder("stride8-c4", seed=0)
    expected = np.concatenate([parameter.detach().numpy().ravel() for parameter in module.parameters()])
    assert np.array_equal(EncoderBundle.load(exported).theta0, expected)


def test_written_theta_is_read_back(exported: Path) -> None:
    bundle = EncoderBundle.load(exported)
    theta = np.arange(bundle.spec.parameter_count, dtype=np.float32)
    patched = write_theta(bundle.spec, "forward", bundle.graphs["forward"], theta)
    assert len(patched) == len(bundle.graphs["forward"])
    assert np.array_equal(read_theta(bundle.spec, "forward", patched), theta)


def test_export_replaces_a_bundle_and_leaves_nothing_behind(folder: Path) -> None:
    export_bundle("stride8-c8", folder, image_size=SIZE, seed=0)
    assert EncoderBundle.load(folder).spec.name == "stride8-c8"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_export_into_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else than an encoder bundle"):
        export_bundle("stride8-c8", tmp_path, image_size=SIZE, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_export_that_disagrees_with_torch_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConvolutionEncoder, "rgb_mean", (0.5, 0.5, 0.5))
    with pytest.raises(ExportError, match="the features of ONNX and torch differ by"):
        export_bundle("stride8-c8", tmp_path / "e", image_size=SIZE, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [(62, 48), (64, 0), (64, -8), (66, 50)])
def test_image_size_that_does_not_fit_is_refused(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"image size {size[0]}x{size[1]} does not fit encoder {name}"):
        export_bundle(name, tmp_path / "e", image_size=size, seed=0)


def test_unknown_encoder_and_negative_seed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown encoder 'resnet', expected one of: stride8-c4"):
        export_bundle("resnet", tmp_path / "e", image_size=SIZE, seed=0)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        export_bundle("stride8-c8", tmp_path / "e", image_size=SIZE, seed=-1)


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A fault: `encoder.json` with one change."""

    def damage(folder: Path) -> None:
        spec = json.loads((folder / "encoder.json").read_text())
        change(spec)
        (folder / "encoder.json").write_text(json.dumps(spec))

    return damage


def flip_byte(folder: Path) -> None:
    model = bytearray((folder / "forward_bound.onnx").read_bytes())
    model[100] ^= 1
    (folder / "forward_bound.onnx").write_bytes(model)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), "encoder.json: No such file"),
    "no graph": (lambda folder: (folder / "forward.onnx").unlink(), "forward.onnx: No such file"),
    "not JSON": (lambda folder: (folder / "encoder.json").write_text("{"), "Input data was truncated"),
    "not UTF-8": (lambda folder: (folder / "encoder.json").write_bytes(b'{"name": "\xff"}'), "utf-8"),
    "empty graph": (lambda folder: (folder / "forward.onnx").write_bytes(b""), "sha256 differs"),
    "flipped bit": (flip_byte, "forward_bound.onnx is not the file that was exported"),
    "version": (edit(lambda spec: spec.update(format_version=3)), "format_version"),
    "unknown key": (edit(lambda spec: spec.update(colour="red")), "colour"),
    "missing key": (edit(lambda spec: spec.pop("name")), "`name`"),
    "image size": (edit(lambda spec: spec.update(image_size=[0, 48])), "image_size"),
    "shape": (edit(lambda spec: spec["parameters"][0].update(shape=[16, 3, 3])), "conv0.bias starts at"),
    "offset": (edit(lambda spec: spec["parameters"][1].update(offset=7)), "conv0.bias starts at 7 of θ"),
    "no parameters": (edit(lambda spec: spec.update(parameters=[])), "no parameters"),
    "huge shape": (edit(lambda spec: spec["parameters"][-1].update(shape=[10**12])), "too short for"),
    "byte offset outside": (
        edit(lambda spec: spec["graphs"]["forward"]["byte_offsets"].__setitem__(0, 10**6)),
        "conv0.weight ends outside forward.onnx",
    ),
    "byte offset wrong": (
        edit(lambda spec: spec["graphs"]["forward"]["byte_offsets"].__setitem__(0, 100)),
        "do not lead to the parameters",
    ),
    "byte offset missing": (
        edit(lambda spec: spec["graphs"]["forward"]["byte_offsets"].pop()),
        "forward has 5 byte offsets, expected 6",
    ),
    "graph undescribed": (edit(lambda spec: spec["graphs"].pop("forward_bound")), "forward_bound"),
    "graphs incomplete": (edit(lambda spec: spec["graphs"].pop("tape")), "must come together"),
    "graph unknown": (
        edit(lambda spec: spec["graphs"].update({"../x": spec["graphs"]["forward"]})),
        "../x",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_corrupt_bundle_is_one_clear_line(folder: Path, fault: str) -> None:
    damage, expected = FAULTS[fault]
    damage(folder)
    with pytest.raises(BundleError) as caught:
        EncoderBundle.load(folder)
    message = str(caught.value)
    assert message.startswith(f"corrupt encoder bundle {folder}: ")
    assert message.endswith("; export it again with `blackfleet encoder export`")
    assert expected in message
    assert "\n" not in message
