"""Side-by-side pictures of a frame, its ground truth and its prediction, with a legend.

Shapes: H height, W width, C = 3 (RGB).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.labels import VOID, LabelSpace
from evaluation.predictions import write_png

_PANEL_WIDTH = 420
"""Narrower frames are drawn at the smallest whole multiple that reaches this width, in pixels."""
_BACKGROUND_RGB = (24, 26, 30)
_TEXT_RGB = (226, 228, 232)
_GAP = 8
_TITLE_HEIGHT = 26
_LEGEND_ROW = 24
_SWATCH = 13
_LEGEND_SPACING = 18
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TITLE_SCALE = 0.5
_LEGEND_SCALE = 0.43
_CLASS_OPACITY = 0.62


def write_overlay(
    path: Path,
    image_HWC: NDArray[np.uint8],
    label_HW: NDArray[np.uint8] | None,
    prediction_HW: NDArray[np.uint8],
    label_space: LabelSpace,
) -> None:
    """Write `draw_overlay` as a PNG, atomically, into a folder that is made if missing.

    Raises:
        ValueError: the three shapes don't agree.
        OSError: the folder can't be written.
    """
    picture = draw_overlay(image_HWC, label_HW, prediction_HW, label_space)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, picture)


def draw_overlay(
    image_HWC: NDArray[np.uint8],
    label_HW: NDArray[np.uint8] | None,
    prediction_HW: NDArray[np.uint8],
    label_space: LabelSpace,
) -> NDArray[np.uint8]:
    """Return frame | ground truth | prediction as one RGB picture, labels as class colours over the frame.

    Labels are uint8 trainIds; void is black. Without a ground truth its panel is left out. The legend names
    the classes that occur in either label map.

    Raises:
        ValueError: the three shapes don't agree.
    """
    height, width = prediction_HW.shape
    if image_HWC.shape != (height, width, 3) or (label_HW is not None and label_HW.shape != (height, width)):
        shapes = f"{image_HWC.shape}, {None if label_HW is None else label_HW.shape}, {prediction_HW.shape}"
        raise ValueError(f"image, label and prediction must have one height and width, got {shapes}")
    scale = max(1, -(-_PANEL_WIDTH // width))
    size_WH = (width * scale, height * scale)
    frame = np.asarray(cv2.resize(image_HWC, size_WH, interpolation=cv2.INTER_CUBIC), np.uint8)
    panels = [("frame", frame)]
    if label_HW is not None:
        panels.append(("ground truth", paint(frame, label_HW, label_space)))
    panels.append(("prediction", paint(frame, prediction_HW, label_space)))

    shown = np.unique(
        prediction_HW if label_HW is None else np.concatenate([label_HW.ravel(), prediction_HW.ravel()])
    )
    total_width = len(panels) * (size_WH[0] + _GAP) + _GAP
    legend = _legend([int(i) for i in shown], label_space, total_width)
    canvas = np.empty((_TITLE_HEIGHT + size_WH[1] + legend.shape[0], total_width, 3), np.uint8)
    canvas[:] = _BACKGROUND_RGB
    for index, (title, panel) in enumerate(panels):
        left = _GAP + index * (size_WH[0] + _GAP)
        canvas[_TITLE_HEIGHT : _TITLE_HEIGHT + size_WH[1], left : left + size_WH[0]] = panel
        _text(canvas, title, (left, _TITLE_HEIGHT - 8), _TITLE_SCALE)
    canvas[_TITLE_HEIGHT + size_WH[1] :] = legend
    return canvas


def paint(
    frame: NDArray[np.uint8], label_HW: NDArray[np.uint8], label_space: LabelSpace
) -> NDArray[np.uint8]:
    """Lay the class colours over a frame, uint8 RGB [H, W, 3], with a thin dark line along class borders.

    Labels are uint8 trainIds of any size; void is black.
    """
    size_WH = (frame.shape[1], frame.shape[0])
    label = np.asarray(cv2.resize(label_HW, size_WH, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.float32)[:, :, None]
    painted = _CLASS_OPACITY * label_space.colorize(label) + (1 - _CLASS_OPACITY) * grey
    border = np.zeros(label.shape, bool)
    border[:, 1:] |= label[:, 1:] != label[:, :-1]
    border[1:, :] |= label[1:, :] != label[:-1, :]
    painted[border] *= 0.6
    painted[label == VOID] = 0
    return painted.round().clip(0, 255).astype(np.uint8)


def _legend(train_ids: list[int], label_space: LabelSpace, width: int) -> NDArray[np.uint8]:
    """A strip with one swatch and name per class, in as many rows as it takes."""
    names = label_space.train_names
    places: list[tuple[int, int, int]] = []
    row, left = 0, _GAP
    for train_id in train_ids:
        name = names[train_id] if train_id < len(names) else "void"
        text_width = cv2.getTextSize(name, _FONT, _LEGEND_SCALE, 1)[0][0]
        needed = _SWATCH + 6 + text_width
        if left > _GAP and left + needed > width - _GAP:
            row, left = row + 1, _GAP
        places.append((train_id, row, left))
        left += needed + _LEGEND_SPACING
    strip = np.empty(((row + 1) * _LEGEND_ROW + _GAP, width, 3), np.uint8)
    strip[:] = _BACKGROUND_RGB
    for train_id, row, left in places:
        top = row * _LEGEND_ROW + (_LEGEND_ROW - _SWATCH) // 2 + _GAP // 2
        name = names[train_id] if train_id < len(names) else "void"
        color_rgb = label_space.palette_rgb[train_id]
        strip[top : top + _SWATCH, left : left + _SWATCH] = (120, 120, 120)
        strip[top + 1 : top + _SWATCH - 1, left + 1 : left + _SWATCH - 1] = color_rgb
        _text(strip, name, (left + _SWATCH + 6, top + _SWATCH - 2), _LEGEND_SCALE)
    return strip


def _text(canvas: NDArray[np.uint8], text: str, origin_XY: tuple[int, int], scale: float) -> None:
    cv2.putText(canvas, text, origin_XY, _FONT, scale, _TEXT_RGB, 1, cv2.LINE_AA)
