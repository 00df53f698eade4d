"""A table of classes to fill in, drawn up from what lies in a folder's label images."""

from __future__ import annotations

import colorsys
from collections import Counter
from pathlib import Path

import numpy as np

from datasets.frame import DatasetError
from datasets.labels import Rgb
from datasets.readers.image_files import decode_ids, decode_rgb
from datasets.readers.tabled import TABLE_NAME, label_files
from protocol.atomic import write_bytes_atomic

_MOST_FILES = 100
"""That are looked at, evenly spaced: a launch names what is in others alone."""
_MOST_CLASSES = 100
_IGNORED_ID, _IGNORED_RGB = 255, (0, 0, 0)
"""What is taken for void until somebody says otherwise."""
_COUNTED = {"ids": "grey PNGs of 8 bits with an id a pixel", "colors": "RGB PNGs with a colour a pixel"}


def write_class_draft(root: Path) -> tuple[Path, int]:
    """Write `dataset.yaml` into a folder of images and labels; returns it, and how many classes it has.

    Raises:
        DatasetError: there is one already, there are no labels, or they are no label images.
        OSError: it can't be written.
    """
    path = root / TABLE_NAME
    if path.exists():
        raise DatasetError(f"{path} is there already; edit it, or remove it first")
    files = label_files(root)
    looked_at = [files[place * len(files) // _MOST_FILES] for place in range(_MOST_FILES)]
    kind, pixels = _count(looked_at if len(files) > _MOST_FILES else files)
    if len(pixels) > _MOST_CLASSES:
        raise DatasetError(
            f"the labels in {root} hold over {_MOST_CLASSES} {kind}: those are no classes; write labels "
            f"with one value a class, without smoothing and without JPEG's losses"
        )
    void = _IGNORED_ID if kind == "ids" else _IGNORED_RGB
    classes = [value for value in sorted(pixels) if value != void]
    whole = sum(pixels.values())
    lines = [
        f"# The classes of the frames in this folder, as found in {min(len(files), _MOST_FILES)} of "
        f"{len(files)} labels. Give each its name; what",
        "# nobody should learn or be scored on goes to `ignore`. Two rows of one `category` (optional) are",
        "# scored together, too: {name: car, id: 1, color: [0, 0, 142], category: vehicle}.",
        "name: folder",
        f"labels: {kind}   # {_COUNTED[kind]}",
        "classes:",
    ]
    for number, value in enumerate(classes):
        colour = list(value) if isinstance(value, tuple) else _colour(number, len(classes))
        row = f"name: class-{number}, " + (f"id: {value}, " if kind == "ids" else "") + f"color: {colour}"
        lines.append(f"  - {{{row}}}   # {100 * pixels[value] / whole:.1f} % of the pixels")
    lines.append(f"ignore: [{list(void) if isinstance(void, tuple) else void}]")
    write_bytes_atomic(path, ("\n".join(lines) + "\n").encode())
    return path, len(classes)


def _count(files: list[Path]) -> tuple[str, Counter[int | Rgb]]:
    """(`ids` or `colors`, pixels of each)."""
    pixels: Counter[int | Rgb] = Counter()
    try:
        decode_ids(files[0])
        kind = "ids"
    except DatasetError:
        kind = "colors"
    for path in files:
        if kind == "ids":
            values, counts = np.unique(decode_ids(path), return_counts=True)
            pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        else:
            colours, counts = np.unique(
                decode_rgb(path, labelled=True).reshape(-1, 3), axis=0, return_counts=True
            )
            pixels.update(dict(zip(map(tuple, colours.tolist()), counts.tolist(), strict=True)))
        if len(pixels) > _MOST_CLASSES:
            break
    return kind, pixels


def _colour(number: int, count: int) -> list[int]:
    """Of a class whose labels have none: hues all around, every other one darker."""
    red, green, blue = colorsys.hsv_to_rgb(number / max(1, count), 0.75, 0.95 if number % 2 else 0.65)
    return [round(255 * part) for part in (red, green, blue)]
