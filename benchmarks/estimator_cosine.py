"""How good gradient estimates are: the cosine of each estimator's to the exact gradient along a training run.

`python -m benchmarks.estimator_cosine` trains encoder and network with exact gradients on CamVid's train
frames (on generated ones where CamVid is absent), stops at checkpoints, and lets every estimator of the
product estimate what is known there exactly. It prints tables and a JSON line, and draws a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.camvid import camvid_folder, camvid_is_here
from benchmarks.cosine_charts import draw
from benchmarks.cosine_study import Measurement, measure
from benchmarks.cosine_tables import as_json, main_table, sweep_table, tabulate
from benchmarks.joint_training import JointTraining, Study
from datasets.catalog import open_dataset
from datasets.frame import DatasetError, FrameSource
from datasets.generated import GeneratorSettings, generate_dataset
from datasets.partition import partition_frames
from edge_client.frames import FrameCache, VehicleFrames, limit_opencv_threads

_DEFAULT_PICTURE = Path("docs/pictures/cosine.png")
_PARTITION_SEED = 0


def run(
    study: Study, source: FrameSource, folder: Path, *, say: Callable[[str], None] = lambda text: None
) -> list[Measurement]:
    """Train and measure on the train frames that a fleet with one vehicle for each city would have."""
    vehicles = sorted({ref.city for ref in source.refs})
    parts = partition_frames(source.refs, vehicles, method="city", seed=_PARTITION_SEED)
    keys = [key for part in parts.values() for key in part.train]
    frames = VehicleFrames(FrameCache(source, study.image_size), {"train": keys})
    training = JointTraining(study, frames, source.label_space, folder)
    measurements: list[Measurement] = []
    start = time.monotonic()
    for step in study.checkpoints:
        training.advance(step)
        say(f"step {step} of {study.steps} after {time.monotonic() - start:.0f} s")
        measurements += measure(training)
    return measurements


def main() -> None:
    """Run the benchmark: tables and a JSON line to standard output, the picture to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimator_cosine", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="folder of CamVid (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--steps", type=int, default=Study.steps, help=f"default {Study.steps}")
    parser.add_argument("--batches", type=int, default=Study.batches, help=f"default {Study.batches}")
    parser.add_argument("--out", type=Path, default=_DEFAULT_PICTURE, help=f"default {_DEFAULT_PICTURE}")
    options = parser.parse_args()
    for name in ("steps", "batches"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    torch.set_num_threads(1)
    limit_opencv_threads(1)
    study = Study(steps=options.steps, batches=options.batches)
    root: Path | None = options.data_root or (camvid_folder() if camvid_is_here() else None)
    with tempfile.TemporaryDirectory(prefix="blackfleet-bench-") as name:
        folder = Path(name)
        if root is None:
            generate_dataset(folder / "data", GeneratorSettings(image_size=study.image_size))
        try:
            source = open_dataset("camvid", root) if root else open_dataset("cityscapes", folder / "data")
        except DatasetError as error:
            parser.error(str(error))
        table = tabulate(run(study, source, folder, say=lambda text: print(text, file=sys.stderr)))
    data = "camvid" if root else "generated"
    width, height = study.image_size
    print(f"Cosine to the exact gradient of θ: {data}, {width}x{height}, {study.encoder}, batches of")
    print(f"{study.batch_size}, median (least to greatest) of {study.batches} batches; bytes a frame\n")
    print(main_table(table, study), end="\n\n")
    for subspace in ("all", "film"):
        for seeds in study.swept_seeds[1:]:
            print(f"`activation` with K = {seeds}, {subspace}, median over the checkpoints\n")
            print(sweep_table(table, study, seeds, subspace), end="\n\n")
    draw(table, study, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes")
    print(json.dumps(as_json(table, study, data)))


if __name__ == "__main__":
    main()
