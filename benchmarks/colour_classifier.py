"""How far colour alone goes: a per-pixel colour classifier, trained on some frames, tested on others.

`python -m benchmarks.colour_classifier` prints a table and one JSON line. A data set is hard enough to mean
something where this stays below 0.35 mIoU. The classifier counts RGB colours of each class in the training
frames of all vehicles and answers with the likeliest class (maximum a posteriori), or with the one whose
share of its own pixels is largest (all classes taken as equally frequent). The best of all variants counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.catalog import open_dataset
from datasets.frame import Frame, FrameSource, resize_frame
from datasets.generated import GeneratorSettings, generate_dataset
from datasets.labels import VOID
from datasets.partition import partition_frames
from evaluation.scores import ConfusionMatrix

MIOU_LIMIT = 0.35
_BINS = (8, 16, 32)
_PRIORS = ("counted", "equal")
_SIZE = (256, 192)


class ColourClassifier:
    """Counts of colours by class; a colour cube of `bins` a side."""

    def __init__(self, num_classes: int, bins: int) -> None:
        self.num_classes = num_classes
        self.bins = bins
        self.counts = np.zeros((num_classes, bins**3))

    def fit(self, frame: Frame) -> None:
        """Count the pixels of one frame; void is left out."""
        label = frame.label_HW.ravel()
        known = label != VOID
        joint = label[known].astype(np.int64) * self.bins**3 + self._cells(frame.image_HWC).ravel()[known]
        self.counts += np.bincount(joint, minlength=self.counts.size).reshape(self.counts.shape)

    def answers(self, prior: str) -> NDArray[np.uint8]:
        """The class of every colour cell, uint8 [bins ** 3]; unseen colours get the most frequent class."""
        pixels = self.counts.sum(axis=1, keepdims=True)
        scores = self.counts if prior == "counted" else self.counts / np.maximum(pixels, 1)
        likeliest = np.where(self.counts.any(axis=0), scores.argmax(axis=0), pixels.argmax())
        return likeliest.astype(np.uint8)

    def predict(self, image_HWC: NDArray[np.uint8], prior: str) -> NDArray[np.uint8]:
        """TrainIds of every pixel, uint8 [H, W]."""
        label_HW: NDArray[np.uint8] = self.answers(prior)[self._cells(image_HWC)]
        return label_HW

    def _cells(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.int64]:
        channels = image_HWC.astype(np.int64) * self.bins // 256
        cells: NDArray[np.int64] = (channels * (self.bins**2, self.bins, 1)).sum(axis=2)
        return cells


def measure(source: FrameSource, vehicles: int, method: str, seed: int) -> list[dict[str, float | int | str]]:
    """Test every variant on the vehicles' test frames, fitted on their training frames."""
    parts = partition_frames(source, [f"v{n}" for n in range(vehicles)], method=method, seed=seed)
    train = {key for frames in parts.values() for key in frames.train}
    test = {key for frames in parts.values() for key in frames.test}
    space = source.label_space
    classifiers = [ColourClassifier(space.num_classes, bins) for bins in _BINS]
    for frame in _frames(source, train):
        for classifier in classifiers:
            classifier.fit(frame)
    scores = {(c.bins, prior): ConfusionMatrix(space) for c in classifiers for prior in _PRIORS}
    for frame in _frames(source, test):
        for classifier in classifiers:
            for prior in _PRIORS:
                prediction = classifier.predict(frame.image_HWC, prior)
                scores[classifier.bins, prior].add(frame.label_HW, prediction)
    return [
        {
            "bins": bins,
            "prior": prior,
            "miou": _miou(matrix.counts),
            "pixel_accuracy": _accuracy(matrix.counts),
        }
        for (bins, prior), matrix in scores.items()
    ]


def _frames(source: FrameSource, keys: set[str]) -> Iterable[Frame]:
    for ref in source.refs:
        if ref.key in keys:
            yield resize_frame(source.load(ref), *_SIZE)


def _miou(counts: NDArray[np.int64]) -> float:
    """Mean IoU over the classes that the ground truth holds."""
    hits = np.diag(counts)
    true = counts.sum(axis=1)
    union = true + counts[:, :-1].sum(axis=0) - hits
    return float((hits[true > 0] / union[true > 0]).mean())


def _accuracy(counts: NDArray[np.int64]) -> float:
    return float(np.trace(counts) / counts.sum())


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    defaults = GeneratorSettings()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.colour_classifier", description=__doc__)
    parser.add_argument("--dataset", choices=("generated", "camvid", "cityscapes"), default="generated")
    parser.add_argument("--data-root", type=Path, help="folder of camvid or cityscapes")
    parser.add_argument("--vehicles", type=int, default=defaults.cities)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    options = parser.parse_args()
    if options.dataset == "generated":
        with tempfile.TemporaryDirectory(prefix="blackfleet-bench-") as folder:
            settings = GeneratorSettings(**{**asdict(defaults), "seed": options.seed})
            generate_dataset(folder, settings)
            rows = measure(open_dataset("cityscapes", Path(folder)), options.vehicles, "city", options.seed)
    elif options.data_root is None:
        parser.error(f"--data-root is needed for {options.dataset}")
    else:
        source = open_dataset(options.dataset, options.data_root)
        rows = measure(source, options.vehicles, "sequence", options.seed)
    best = max(float(row["miou"]) for row in rows)
    print(f"per-pixel colour classifier, {options.dataset}, {_SIZE[0]}x{_SIZE[1]}, mIoU of the test frames")
    print(f"{'bins':>5} {'prior':>8} {'mIoU':>7} {'accuracy':>9}")
    for row in rows:
        print(f"{row['bins']:>5} {row['prior']:>8} {row['miou']:>7.3f} {row['pixel_accuracy']:>9.3f}")
    print(f"best {best:.3f}, limit {MIOU_LIMIT}")
    result = {"benchmark": "colour_classifier", "dataset": options.dataset, "best_miou": best, "rows": rows}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
