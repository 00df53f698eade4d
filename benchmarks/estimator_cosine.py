"""How good gradient estimates are: the cosine of each estimator's to the exact gradient along a training run.

`python -m benchmarks.estimator_cosine` trains encoder and network with exact gradients on CamVid's train
frames (on generated ones where CamVid is absent), stops at checkpoints, and lets every estimator of the
product estimate what is known there exactly. It prints tables and a JSON line, and draws a picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.camvid import camvid_folder, camvid_is_here
from benchmarks.cosine_charts import draw
from benchmarks.cosine_study import DEFAULTS, Measurement, Setting, measure
from benchmarks.joint_training import JointTraining, Study
from datasets.catalog import open_dataset
from datasets.frame import DatasetError, FrameSource
from datasets.generated import GeneratorSettings, generate_dataset
from datasets.partition import partition_frames
from edge_client.frames import FrameCache, VehicleFrames, limit_opencv_threads

_DEFAULT_PICTURE = Path("docs/pictures/cosine.png")
_PARTITION_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Over batches: the median, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), least=min(values), greatest=max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One estimator with its setting at one checkpoint."""

    setting: Setting
    step: int
    subspace: str
    cosine: Spread
    training_cosine: Spread
    uplink_bytes: float
    """For each frame, the median over batches."""
    downlink_bytes: float


Key = tuple[Setting, int, str]
Table = Mapping[Key, Row]
"""(setting, step, subspace) → row."""


def run(
    study: Study, source: FrameSource, folder: Path, *, say: Callable[[str], None] = lambda text: None
) -> list[Measurement]:
    """Train and measure on the train frames that a fleet with one vehicle for each city would have."""
    vehicles = sorted({ref.city for ref in source.refs})
    parts = partition_frames(source.refs, vehicles, method="city", seed=_PARTITION_SEED)
    keys = [key for part in parts.values() for key in part.train]
    frames = VehicleFrames(FrameCache(source, study.image_size), {"train": keys})
    training = JointTraining(study, frames, source.label_space.name, source.label_space.num_classes, folder)
    measurements: list[Measurement] = []
    start = time.monotonic()
    for step in study.checkpoints:
        training.advance(step)
        say(f"step {step} of {study.steps} after {time.monotonic() - start:.0f} s")
        measurements += measure(training)
    return measurements


def tabulate(measurements: Iterable[Measurement]) -> dict[Key, Row]:
    """Summarise over batches."""
    groups: defaultdict[Key, list[Measurement]] = defaultdict(list)
    for each in measurements:
        groups[each.setting, each.step, each.subspace].append(each)
    return {
        key: Row(
            setting=key[0],
            step=key[1],
            subspace=key[2],
            cosine=Spread.of([each.cosine for each in group]),
            training_cosine=Spread.of([each.training_cosine for each in group]),
            uplink_bytes=statistics.median(each.uplink_bytes for each in group),
            downlink_bytes=statistics.median(each.downlink_bytes for each in group),
        )
        for key, group in groups.items()
    }


def title(setting: Setting) -> str:
    """How a row is called."""
    if setting.estimator == "spsa-gc":
        return f"`spsa-gc`, q = {setting.count}"
    if setting.estimator.startswith("activation"):
        stride = f", map stride {setting.map_stride}" if setting.map_stride > 1 else ""
        name, _, kind = setting.estimator.partition(", ")
        return f"`{name}`, K = {setting.count}{stride}" + (f", {kind}" if kind else "")
    if setting.estimator == "white-box":
        return f"white-box, gradients of {setting.gradient_bits} bits"
    return {
        "split": "white-box, batch statistics (`split`)",
        "local-loss": "local head (`local-loss`)",
    }.get(setting.estimator, setting.estimator)


def is_default(setting: Setting) -> bool:
    """Whether everything but K or q, and the map's stride, is as in a scenario that says nothing."""
    return not setting.estimator.startswith("activation") or (
        setting.scale == DEFAULTS.scale
        and setting.two_sided == DEFAULTS.two_sided
        and setting.box_width == DEFAULTS.box_width
    )


def main_table(table: Table, study: Study) -> str:
    """Every estimator as it is by default, checkpoint by checkpoint."""
    settings = list(dict.fromkeys(setting for setting, _, _ in table if is_default(setting)))
    steps = study.checkpoints
    head = ["estimator", *(f"step {step}" for step in steps), "film", "to `split`", "up", "down"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for setting in settings:
        rows = [table[setting, step, "all"] for step in steps]
        film = [table[setting, step, "film"] for step in steps]
        cells = [title(setting), *(str(row.cosine) for row in rows)]
        cells += [f"{statistics.median(row.cosine.median for row in film):.2f}"]
        cells += [f"{statistics.median(row.training_cosine.median for row in rows):.2f}"]
        cells += [f"{statistics.median(row.uplink_bytes for row in rows) / 1000:.1f} kB"]
        cells += [f"{statistics.median(row.downlink_bytes for row in rows) / 1000:.1f} kB"]
        lines.append(_line(cells))
    return "\n".join(lines)


def sweep_table(table: Table, study: Study, seeds: int, subspace: str) -> str:
    """`activation` by scale, sidedness and window; medians over batches, then over checkpoints."""
    lines = [_line(["scale", "sides", *(f"box {width}" for width in study.box_widths)])]
    lines.append(_line(["---:"] * (2 + len(study.box_widths))))
    for scale in study.scales:
        for two_sided in (False, True):
            cells = [f"{scale:g}", "2" if two_sided else "1"]
            for width in study.box_widths:
                setting = Setting(
                    estimator="activation",
                    count=seeds,
                    scale=scale,
                    two_sided=two_sided,
                    box_width=width,
                    map_stride=1,
                )
                cells.append(f"{over_run(table, study, setting, subspace):.3f}")
            lines.append(_line(cells))
    return "\n".join(lines)


def over_run(table: Table, study: Study, setting: Setting, subspace: str) -> float:
    """The median over checkpoints of the medians over batches."""
    return statistics.median(table[setting, step, subspace].cosine.median for step in study.checkpoints)


def as_json(table: Table, study: Study, data: str) -> dict[str, Any]:
    """The content of the last line: every setting, its medians checkpoint by checkpoint."""
    rows = []
    for setting, step, subspace in table:
        if step == study.checkpoints[0]:
            along = [table[setting, each, subspace] for each in study.checkpoints]
            rows.append(
                {
                    **{name: value for name, value in asdict(setting).items() if value},
                    "subspace": subspace,
                    "cosine": [round(row.cosine.median, 4) for row in along],
                    "training_cosine": [round(row.training_cosine.median, 4) for row in along],
                    "uplink_bytes": round(statistics.median(row.uplink_bytes for row in along)),
                    "downlink_bytes": round(statistics.median(row.downlink_bytes for row in along)),
                }
            )
    return {
        "benchmark": "estimator_cosine",
        "data": data,
        "steps": study.steps,
        "batches": study.batches,
        "checkpoints": study.checkpoints,
        "rows": rows,
    }


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


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
