"""Pictures that lie: each kind of file in each reader is read for what it shows, or refused with its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from picture_files import CHANNELS, animation, chunk, exif, jpeg, palette, png

from datasets.frame import DatasetError
from datasets.labels import CAMVID, CITYSCAPES
from datasets.readers.camvid import CamVidFrames
from datasets.readers.image_files import decode_ids, decode_instances, decode_rgb
from datasets.readers.image_header import ImageFault, read_header
from datasets.readers.unlabelled import Pictures
from evaluation.predictions import PredictionError, read_prediction_ids

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits by PNG's colour type."""
KINDS = [(colour, bits) for colour, depths in DEPTHS.items() for bits in depths]
COLOURS = [(20 * i % 256, (7 * i + 90) % 256, (255 - 11 * i) % 256) for i in range(256)]


def samples(colour: int, bits: int, seed: int = 0, size: tuple[int, int] = (9, 13)) -> NDArray[np.integer]:
    drawn = np.random.default_rng(seed).integers(0, 2**bits, (*size, CHANNELS[colour]))
    if colour in (4, 6):
        drawn[:, :, -1] = 2**bits - 1
    return drawn


def shown(samples_HWC: NDArray[np.integer], colour: int, bits: int) -> NDArray[np.uint8]:
    """What a picture of these samples shows, RGB."""
    if colour == 3:
        return np.array(COLOURS, np.uint8)[samples_HWC[:, :, 0]]
    visible = samples_HWC[:, :, :3] if CHANNELS[colour] >= 3 else samples_HWC[:, :, :1].repeat(3, axis=2)
    return (visible * 255 // (2**bits - 1)).astype(np.uint8)


def parts_of(colour: int, bits: int) -> list[bytes]:
    return [palette(COLOURS[: 2**bits])] if colour == 3 else []


def written(folder: Path, data: bytes, name: str = "x.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "bits"), KINDS)
def test_a_png_of_any_kind_is_read_for_what_it_shows_or_refused(
    colour: int, bits: int, interlaced: bool, tmp_path: Path
) -> None:
    drawn = samples(colour, bits)
    data = png(drawn, colour=colour, bits=bits, interlaced=interlaced, parts=parts_of(colour, bits))
    path = written(tmp_path, data)
    if bits == 16:
        with pytest.raises(DatasetError, match=rf"{path}: .*16 bits a channel, expected 8"):
            decode_rgb(path)
    else:
        np.testing.assert_array_equal(decode_rgb(path), shown(drawn, colour, bits))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "bits"), KINDS)
def test_ids_come_from_a_grey_png_of_their_own_bits_alone(
    colour: int, bits: int, interlaced: bool, tmp_path: Path
) -> None:
    drawn = samples(colour, bits) % 19
    if colour in (4, 6):
        drawn[:, :, -1] = 2**bits - 1
    data = png(drawn, colour=colour, bits=bits, interlaced=interlaced, parts=parts_of(colour, bits))
    path = written(tmp_path, data)
    for wanted, read in (
        ({8}, lambda: decode_ids(path)),
        ({16}, lambda: decode_instances(path)),
        ({8, 16}, lambda: read_prediction_ids(path, CITYSCAPES)),
    ):
        if colour == 0 and bits in wanted:
            np.testing.assert_array_equal(read(), drawn[:, :, 0])
            continue
        with pytest.raises(
            (DatasetError, PredictionError), match=f"^{path}: expected a grey PNG of "
        ) as error:
            read()
        assert ("palette" in str(error.value)) == (colour == 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "PNG, big end first", "JPEG"])
def test_a_picture_stored_turned_stands_upright_unless_a_label_goes_with_it(
    orientation: int, kind: str, tmp_path: Path
) -> None:
    stored = np.kron(np.random.default_rng(1).integers(0, 256, (2, 3, 1)), np.ones((8, 8, 3))).astype(
        np.uint8
    )
    order = ">" if "big" in kind else "<"
    if kind == "JPEG":
        data = jpeg(stored, orientation=orientation)
    else:
        data = png(stored, colour=2, bits=8, parts=[chunk(b"eXIf", exif(orientation, order))])
    path = written(tmp_path, data)
    expected = cv2.imdecode(np.frombuffer(jpeg(stored, orientation=orientation), np.uint8), cv2.IMREAD_COLOR)
    image_HWC = decode_rgb(path)
    assert image_HWC.shape == expected.shape
    assert np.abs(image_HWC.astype(int) - expected[:, :, ::-1]).max() < 12
    if orientation == 1:
        np.testing.assert_array_equal(decode_rgb(path, labelled=True), image_HWC)
    else:
        with pytest.raises(DatasetError, match=rf"{path}: stored turned \(Exif orientation {orientation}\)"):
            decode_rgb(path, labelled=True)


def test_readers_put_pictures_without_labels_upright_and_refuse_labelled_ones(tmp_path: Path) -> None:
    stored = samples(2, 8).astype(np.uint8)
    turned = png(stored, colour=2, bits=8, parts=[chunk(b"eXIf", exif(3))])
    label = png(np.zeros((9, 13, 1), np.uint8), colour=0, bits=8)
    for folder in ("train", "trainannot", "drive"):
        (tmp_path / folder).mkdir()
    written(tmp_path / "drive", turned)
    unlabelled = Pictures(tmp_path / "drive", CAMVID)
    np.testing.assert_array_equal(unlabelled.load(unlabelled.refs[0]).image_HWC, stored[::-1, ::-1])
    written(tmp_path / "train", turned, "A_1.png")
    written(tmp_path / "trainannot", label, "A_1.png")
    labelled = CamVidFrames(tmp_path)
    for read in (labelled.load, labelled.load_image):
        with pytest.raises(DatasetError, match=r"A_1.png: stored turned"):
            read(labelled.refs[0])
    written(tmp_path / "train", png(stored, colour=2, bits=8), "A_1.png")
    written(tmp_path / "trainannot", label[:33] + chunk(b"eXIf", exif(6)) + label[33:], "A_1.png")
    with pytest.raises(DatasetError, match=r"A_1.png: ids stored turned \(Exif orientation 6\)"):
        labelled.load(labelled.refs[0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(samples(2, 8), colour=2, bits=8, parts=[animation(3)]), "an animation of 3 pictures"),
        (png(samples(6, 8) // 2, colour=6, bits=8), "transparent in places"),
        (png(samples(4, 8) // 2, colour=4, bits=8), "transparent in places"),
        (
            png(samples(3, 8), colour=3, bits=8, parts=[palette(COLOURS), chunk(b"tRNS", b"\0" * 200)]),
            "transparent in places",
        ),
        (png(samples(0, 8) * 0, colour=0, bits=8, parts=[chunk(b"tRNS", b"\0\0")]), "transparent in places"),
        (b"", r"not a readable image \(0 bytes\)"),
        (b"GIF89a" + bytes(20), "it is a GIF, expected PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), "without a valid header"),
        (b"no picture", "neither PNG nor JPEG"),
    ],
)
def test_what_a_picture_cannot_be_read_for_is_said(data: bytes, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, data)
    with pytest.raises(DatasetError, match=f"^{path}: .*{reason}"):
        decode_rgb(path)


def test_opaque_alpha_and_one_picture_animations_are_no_lies(tmp_path: Path) -> None:
    drawn = samples(6, 8)
    data = png(drawn, colour=6, bits=8, parts=[animation(1)])
    np.testing.assert_array_equal(decode_rgb(written(tmp_path, data)), shown(drawn, 6, 8))


def test_cmyk_is_refused(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    path = tmp_path / "x.jpg"
    pillow.fromarray(samples(2, 8).astype(np.uint8)).convert("CMYK").save(path)
    with pytest.raises(
        DatasetError, match=rf"^{path}: a CMYK JPEG of 8 bits a channel, expected grey or RGB"
    ):
        decode_rgb(path)


NOISE = np.random.default_rng(2).integers(0, 256, (40, 56, 3)).astype(np.uint8)
WHOLE: dict[str, bytes] = {
    "PNG": png(NOISE, colour=2, bits=8),
    "JPEG": jpeg(NOISE),
    "progressive JPEG": jpeg(NOISE, progressive=True),
    "JPEG with Exif": jpeg(NOISE, orientation=1),
}


@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None)
def test_a_file_cut_off_anywhere_is_found(kind: str, share: float) -> None:
    data = WHOLE[kind]
    assert read_header(data).bits == 8
    for rest in (b"", bytes(len(data))):  # as copied in part, and as a disk leaves it after a power cut
        with pytest.raises(ImageFault):
            read_header(data[: int(share * (len(data) - 1))] + rest)


@given(st.integers(8, len(WHOLE["PNG"]) - 1), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_a_png_with_any_byte_changed_is_found(place: int, change: int) -> None:
    data = bytearray(WHOLE["PNG"])
    data[place] ^= change
    with pytest.raises(ImageFault):
        read_header(bytes(data))


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", WHOLE["JPEG"][:300]])
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_header_or_a_fault(rest: bytes, start: bytes) -> None:
    try:
        read_header(start + rest)
    except ImageFault as fault:
        assert "\n" not in str(fault)


def test_what_follows_a_jpeg_is_none_of_its_own(tmp_path: Path) -> None:
    data = jpeg(NOISE)
    plain = decode_rgb(written(tmp_path, data))
    np.testing.assert_array_equal(decode_rgb(written(tmp_path, data + b"\0maker's own data")), plain)


@pytest.mark.parametrize("read", [decode_rgb, decode_ids, decode_instances])
def test_a_missing_file_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path / "nowhere.png"))):
        read(tmp_path / "nowhere.png")
