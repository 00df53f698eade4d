"""Tiny data sets in the Cityscapes layout, of any number of cities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.frame import Frame
from datasets.labels import CITYSCAPES
from datasets.readers.cityscapes import write_cityscapes_frame


def write_cities(
    root: Path, frames: Mapping[str, Mapping[str, int]], *, size_WH: tuple[int, int] = (64, 48)
) -> Path:
    """Write `frames[split][city]` frames: road below sky, a car, noise; returns `root`."""
    random = np.random.default_rng(3)
    width, height = size_WH
    road, sky, car = (CITYSCAPES.by_name(name) for name in ("road", "sky", "car"))
    for split, cities in frames.items():
        for city, count in cities.items():
            for number in range(count):
                label_HW = np.full((height, width), sky.train_id, np.uint8)
                label_HW[height // 2 :] = road.train_id
                instance_HW = CITYSCAPES.to_ids(label_HW).astype(np.int32)
                left = int(random.integers(0, width // 2))
                label_HW[height // 2 : height // 2 + 8, left : left + 12] = car.train_id
                instance_HW[label_HW == car.train_id] = car.label_id * 1000
                noise_HWC = random.integers(-40, 40, (height, width, 3), dtype=np.int16)
                image_HWC = noise_HWC + 90 + 12 * label_HW[..., None].astype(np.int16)
                frame = Frame(
                    image_HWC=np.clip(image_HWC, 0, 255).astype(np.uint8),
                    label_HW=label_HW,
                    instance_HW=instance_HW,
                    city=city,
                    sequence="000000",
                    frame_id=f"{number:06d}",
                )
                write_cityscapes_frame(root, split, frame)
    return root
