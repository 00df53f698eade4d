"""Generated frames that are drawn when they are first read, and kept on disk like all others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.frame import DatasetError, Frame, FrameRef
from datasets.generated.render import city_name, render_frame
from datasets.generated.settings import GeneratorSettings
from datasets.generated.write import GENERATED_JSON
from datasets.labels import LabelSpace
from datasets.readers.cityscapes import (
    IMAGE_SUFFIX,
    IMAGES,
    INSTANCE_SUFFIX,
    LABEL_SUFFIX,
    LABELS,
    write_cityscapes_frame,
)
from datasets.readers.folder import FrameFolder


class DrawnFrames(FrameFolder):
    """All frames that `generated.json` describes, whether their files are there yet or not.

    Several processes may read one folder: a frame that two of them draw is the same, and written whole.
    """

    def __init__(self, root: Path, label_space: LabelSpace) -> None:
        """Of the folder that holds the file.

        Raises:
            DatasetError: the file is damaged.
        """
        path = root / GENERATED_JSON
        try:
            said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            names = ("cities", "sequences_per_city", "frames_per_sequence", "seed")
            size = tuple(said["image_size"])
            self._settings = GeneratorSettings(image_size=size, **{name: said[name] for name in names})
            self._split = str(said["split"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path} is damaged ({error}); remove {root} and generate again") from error
        self._lock = threading.Lock()
        super().__init__(root, label_space, self._described(root))

    def load_image(self, ref: FrameRef) -> NDArray[np.uint8]:
        """See `FrameFolder.load_image`."""
        self._draw_missing(ref)
        return super().load_image(ref)

    def load_label(self, ref: FrameRef) -> NDArray[np.uint8]:
        """See `FrameFolder.load_label`."""
        self._draw_missing(ref)
        return super().load_label(ref)

    def load(self, ref: FrameRef) -> Frame:
        """See `FrameFolder.load`."""
        self._draw_missing(ref)
        return super().load(ref)

    def _described(self, root: Path) -> Iterator[FrameRef]:
        settings, self._places = self._settings, dict[str, tuple[int, int, int]]()
        for city in range(settings.cities):
            name = city_name(city)
            images, labels = (root / kind / self._split / name for kind in (IMAGES, LABELS))
            for sequence in range(settings.sequences_per_city):
                for frame in range(settings.frames_per_sequence):
                    key = f"{name}_{sequence:06d}_{frame:06d}"
                    self._places[key] = (city, sequence, frame)
                    yield FrameRef(
                        key=key,
                        city=name,
                        sequence=f"{sequence:06d}",
                        frame_id=f"{frame:06d}",
                        image_path=images / f"{key}{IMAGE_SUFFIX}",
                        label_path=labels / f"{key}{LABEL_SUFFIX}",
                        instance_path=labels / f"{key}{INSTANCE_SUFFIX}",
                    )

    def _draw_missing(self, ref: FrameRef) -> None:
        paths = (ref.image_path, ref.label_path, ref.instance_path)
        if all(path is None or path.exists() for path in paths):
            return
        with self._lock:  # the street of a drive is built once, by whoever comes first
            frame = render_frame(self._settings, *self._places[ref.key])
        write_cityscapes_frame(self.root, self._split, frame)
