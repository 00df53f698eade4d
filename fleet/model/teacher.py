"""A model that labels: what `blackfleet export` writes, or any ONNX file, a picture in, scores or ids out.

Shapes: B = 1 picture, H W its rows and columns, K classes of the teacher, h w those of what comes out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.catalog import label_space
from datasets.frame import resize_image
from datasets.labels import VOID, LabelSpace
from edge_client.encoder.onnx_runtime import ort
from edge_client.encoder.providers import candidates
from edge_client.encoder.sessions import CPU, open_session
from edge_client.predict.card import ModelCard, ModelError
from fleet.errors import OperatorError
from fleet.model.class_map import read_class_map
from fleet.model.likely import as_logits, likely_classes

_DTYPES: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
_SCALES = {
    "raw": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
PIXELS = tuple(_SCALES)
"""What `--pixels` names; else two triples."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """What a file may leave open; None = as it says."""

    classes: str | None = None
    """Those of the labels: a label space or a table's path."""
    class_map: Path | None = None
    """Table of the teacher's ids (`fleet.model.class_map`)."""
    image_size: tuple[int, int] | None = None
    """Width, height in pixels that the model sees."""
    pixels: str | None = None
    """How float pixels are scaled: a name of `PIXELS`, or `m,m,m/s,s,s` of RGB in [0, 1]."""
    output: str | None = None
    """Name of the output."""
    provider: str = "auto"
    threads: int = 1


class Teacher:
    """A loaded model.

    Attributes:
        name: of its file.
        sha256: of its file.
        label_space: classes of the labels that it makes.
        gives_scores: whether it says how sure it is.
        provider: what it runs on.
    """

    def __init__(self, path: Path, options: TeacherOptions) -> None:
        """Load the file, and look at what comes out for a picture.

        Raises:
            ModelError, OperatorError, SettingError, DatasetError: it can't be used, or not so; what to do.
        """
        self.name = path.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"can't read the model {path}: {error.strerror}") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._session, self.provider = _open(path, content, options)
        properties: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        card = _card(path, properties)
        self.label_space = _classes(path, card, properties, options)
        self._read_input(path, card, properties, options)
        self._train_ids = _identity(self.label_space)
        if options.class_map is not None:
            self._train_ids = read_class_map(options.class_map, self.label_space)
        self._read_output(path, options)
        self.settings: dict[str, Any] = {
            "classes": self.label_space.name,
            "image_size": list(self._size_WH),
            "pixels": [list(self._mean.ravel().tolist()), list(self._std.ravel().tolist())],
            "map": None if options.class_map is None else self._train_ids.tolist(),
            "output": self._output,
        }
        """What, besides the file, its labels follow from."""

    def label(self, image_HWC: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """trainIds of a picture, uint8 [H, W], and how sure it is of each, float32 [H, W], or None."""
        height, width = image_HWC.shape[:2]
        found = self._run(image_HWC)
        if self.gives_scores:
            scores_Khw = found[0] if self._first else np.ascontiguousarray(found[0].transpose(2, 0, 1))
            logits_Khw = as_logits(scores_Khw.astype(np.float32, copy=False))
            return likely_classes(logits_Khw, self._train_ids[: len(logits_Khw)], (height, width))
        ids_hw = found.reshape(found.shape[-2:]) if self._first else found.reshape(found.shape[1:3])
        known_hw = (ids_hw >= 0) & (ids_hw <= 255)
        label_hw = np.where(known_hw, self._train_ids[np.clip(ids_hw, 0, 255).astype(np.uint8)], VOID)
        rows = ((np.arange(height) + 0.5) * label_hw.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * label_hw.shape[1] / width).astype(int)
        return label_hw.astype(np.uint8)[rows[:, None], columns[None]], None

    def _read_input(
        self, path: Path, card: ModelCard | None, properties: dict[str, str], options: TeacherOptions
    ) -> None:
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(
                f"{path} has the inputs {_shown(inputs)}, expected one, a picture; it is no teacher"
            )
        [value] = inputs
        shape = list(value.shape)
        if value.type not in _DTYPES or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ModelError(
                f"{path} takes {_shown(inputs)}, expected a picture: uint8, float or float16 of "
                f"[B, 3, H, W] or [B, H, W, 3]"
            )
        self._input, self._dtype = value.name, _DTYPES[value.type]
        self._channels_first = shape[1] == 3
        height, width = shape[2:] if self._channels_first else shape[1:3]
        size = options.image_size or (card.image_size if card else _from(properties, "image_size"))
        fixed = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        if fixed is not None and size is not None and tuple(size) != fixed:
            raise OperatorError(
                f"{path} takes pictures of {fixed[0]}x{fixed[1]} pixels, got --image-size {size[0]}x{size[1]}"
            )
        size = fixed or size
        if size is None:
            raise OperatorError(
                f"{path} leaves the size of pictures open; say it: --image-size 512x256, for instance"
            )
        self._size_WH = (int(size[0]), int(size[1]))
        mean, std = _SCALES["raw"]
        if self._dtype != np.uint8:
            mean, std = _scale(path, properties, options)
        elif options.pixels not in (None, "raw"):
            raise OperatorError(
                f"{path} takes pixels of 0 to 255 as they are; leave --pixels {options.pixels} out"
            )
        self._mean, self._std = (np.array(values, np.float32) for values in (mean, std))

    def _read_output(self, path: Path, options: TeacherOptions) -> None:
        outputs = self._session.get_outputs()
        names = [value.name for value in outputs]
        if options.output is not None and options.output not in names:
            raise OperatorError(f"{path} has no output {options.output!r}, it has {', '.join(names)}")
        wanted = outputs if options.output is None else [outputs[names.index(options.output)]]
        width, height = self._size_WH
        grey_HWC = np.full((height, width, 3), 127, np.uint8)
        found: list[tuple[str, Any, bool, bool]] = []
        for value in wanted:
            self._output = value.name
            fits = _fit(self._run(grey_HWC), self._most_classes(options))
            if fits is not None:
                found.append((value.name, *fits))
        # Scores say more than ids.
        found = [entry for entry in found if entry[2]] or found
        if len(found) != 1:
            classes = self._classes_told(options)
            raise ModelError(
                f"{path} gives {_shown(wanted)}, expected one output with {classes}, float [B, K, h, w] "
                f"or [B, h, w, K], or with ids of classes, integers [B, h, w] or [B, 1, h, w]"
                + (": name one (--output)" if found else "; --classes and --map say which classes there are")
            )
        [(self._output, _, self.gives_scores, self._first)] = found

    def _most_classes(self, options: TeacherOptions) -> tuple[int, int]:
        """Fewest and most classes that scores may be of."""
        if options.class_map is None:
            return self.label_space.num_classes, self.label_space.num_classes
        return int(np.flatnonzero(self._train_ids != VOID).max()) + 1, 256

    def _classes_told(self, options: TeacherOptions) -> str:
        fewest, most = self._most_classes(options)
        return f"scores of {fewest} classes" if fewest == most else f"scores of {fewest} classes or more"

    def _run(self, image_HWC: NDArray[np.uint8]) -> NDArray[Any]:
        pixels_HWC: NDArray[Any] = resize_image(image_HWC, *self._size_WH)
        if self._dtype != np.uint8:
            scaled = (pixels_HWC.astype(np.float32) / np.float32(255) - self._mean) / self._std
            pixels_HWC = scaled.astype(self._dtype)
        if self._channels_first:
            pixels_HWC = pixels_HWC.transpose(2, 0, 1)
        try:
            [found] = self._session.run([self._output], {self._input: np.ascontiguousarray(pixels_HWC)[None]})
        except Exception as error:  # ONNX Runtime raises whatever the provider's library does
            raise ModelError(
                f"{self.name} does not run on a picture of {self._size_WH[0]}x{self._size_WH[1]}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        return np.asarray(found)


def _open(path: Path, content: bytes, options: TeacherOptions) -> tuple[Any, str]:
    """On the first provider that takes it; the CPU is the last resort of `auto`."""
    reason = ""
    for provider in candidates(options.provider):
        try:
            return open_session(content, provider, options.threads), provider
        except Exception as error:  # ONNX Runtime raises whatever the provider's library does
            reason = " ".join(str(error).split())[:200]
            if provider == CPU:
                break
    raise ModelError(f"{path} is no ONNX model that ONNX Runtime {ort.__version__} loads: {reason}")


def _card(path: Path, properties: dict[str, str]) -> ModelCard | None:
    """None: it is not ours."""
    if "blackfleet.format" not in properties:
        return None
    try:
        card = ModelCard.read(properties)
    except ModelError as error:
        raise ModelError(f"{path} is no model that can be used: it {error}") from error
    if card.part != "model":
        raise ModelError(f"{path} is the {card.part} alone; give the whole model that lies beside it")
    return card


def _from(properties: dict[str, str], name: str) -> Any:
    """An entry of the file's metadata, `blackfleet.NAME`, JSON; None where there is none."""
    try:
        return json.loads(properties[f"blackfleet.{name}"])
    except (KeyError, ValueError):
        return None


def _classes(
    path: Path, card: ModelCard | None, properties: dict[str, str], options: TeacherOptions
) -> LabelSpace:
    if options.classes is not None:
        return label_space(options.classes)
    if card is not None:
        return card.label_space
    named = _from(properties, "label_space")
    if not isinstance(named, str):
        raise OperatorError(
            f"{path} doesn't say what its classes are; say it: --classes camvid, cityscapes or a table"
        )
    return label_space(named)


def _identity(classes: LabelSpace) -> NDArray[np.uint8]:
    table = np.full(256, VOID, np.uint8)
    table[: classes.num_classes] = np.arange(classes.num_classes)
    return table


def _scale(path: Path, properties: dict[str, str], options: TeacherOptions) -> tuple[Any, Any]:
    if options.pixels is None:
        told = _from(properties, "pixel_mean"), _from(properties, "pixel_std")
        if None in told:
            raise OperatorError(
                f"{path} takes float pixels, and nothing says how they are scaled: --pixels "
                f"{', '.join(PIXELS)}, or mean and deviation of RGB in [0, 1], like 0.5,0.5,0.5/0.5,0.5,0.5"
            )
        return told
    if options.pixels in _SCALES:
        return _SCALES[options.pixels]
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in options.pixels.split("/"))
        if len(mean) == len(std) == 3 and min(std) > 0:
            return mean, std
    except ValueError:
        pass
    raise OperatorError(
        f"--pixels must be {', '.join(PIXELS)}, or mean and deviation like 0.5,0.5,0.5/0.5,0.5,0.5, got "
        f"{options.pixels!r}"
    )


def _fit(found: NDArray[Any], classes: tuple[int, int]) -> tuple[Any, bool, bool] | None:
    """(shape, whether these are scores, whether classes or nothing come before rows); None: neither."""
    shape = found.shape
    if np.issubdtype(found.dtype, np.floating):
        if len(shape) != 4:
            return None
        fewest, most = classes
        fitting = [axis for axis in (1, 3) if fewest <= shape[axis] <= most and shape[axis] > 1]
        # Rows or columns may be as many as classes may be.
        axis = min(fitting, key=lambda axis: int(shape[axis]), default=None)
        return None if axis is None else (shape, True, axis == 1)
    if np.issubdtype(found.dtype, np.integer) and (
        len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3]))
    ):
        return shape, False, len(shape) == 3 or shape[1] == 1
    return None


def _shown(values: list[Any]) -> str:
    return ", ".join(f"{value.name} {value.type.removeprefix('tensor')}{value.shape}" for value in values)
