"""`blackfleet predict`: its options, and what it prints. It needs ONNX Runtime, numpy and OpenCV alone."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from edge_client.predict.model import Model
from edge_client.predict.outputs import LABELS, OVERLAYS, Pictures, Video
from edge_client.predict.sources import Source, open_source
from evaluation.scores import ConfusionMatrix, summarize
from protocol.atomic import write_json_atomic
from protocol.errors import MENDABLE, MISTAKE_CODE, SettingError
from protocol.output import outlive_readers
from protocol.showing import log_to_stderr

SCORES_NAME = "evaluation.json"
_VIDEO_SUFFIX = ".mp4"
_REPORT_S = 5.0
"""Between two lines about how far it has come."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(MISTAKE_CODE)


def parser() -> argparse.ArgumentParser:
    """The command's arguments and options."""
    made = _Parser(
        prog="blackfleet predict",
        description="Predict pictures, a video or a data set with a model of `blackfleet export`: label "
        "images with the ids of the model's data set, colour overlays, and frames a second.",
    )
    made.add_argument("model", type=Path, metavar="MODEL", help="file of `blackfleet export`")
    made.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a .png or .jpg picture, a folder of them, a video; with --dataset the folder of a data set",
    )
    made.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="folder for what is written, of a video also NAME.mp4; default: below predicted/",
    )
    made.add_argument(
        "--dataset",
        metavar="NAME",
        help="read SOURCE as this data set, and score its labels: camvid, cityscapes, generated, …",
    )
    made.add_argument(
        "--run",
        type=Path,
        metavar="RUN",
        help="with --dataset: only the frames that the model's vehicle was tested on in this run",
    )
    made.add_argument("--limit", type=int, metavar="N", help="only the first N frames")
    made.add_argument("--labels", action="store_true", help="of a video, too: a label image of each frame")
    made.add_argument("--no-overlays", action="store_true", help="no colour overlays of single pictures")
    made.add_argument("--threads", type=int, default=1, metavar="N", help="of ONNX Runtime; default: 1")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 for a mistake, which is told in one line."""
    outlive_readers()
    given = parser().parse_args(arguments)
    log_to_stderr(logging.WARNING, "%(levelname)s %(name)s: %(message)s")
    try:
        _predict(given)
    except MENDABLE as error:
        print(f"blackfleet: {error}", file=sys.stderr)
        return MISTAKE_CODE
    return 0


@dataclass
class _Times:
    """Where the time went, in seconds."""

    frames: int = 0
    model_s: float = 0.0
    all_s: float = 0.0


def _predict(given: argparse.Namespace) -> None:
    for name, value in (("--limit", given.limit), ("--threads", given.threads)):
        if value is not None and value < 1:
            raise SettingError(f"{name} must be at least 1, got {value}")
    model = Model(given.model, threads=given.threads)
    card = model.card
    source = open_source(
        given.source, card.label_space, dataset=given.dataset, run=given.run, vehicle=card.vehicle
    )
    output: Path = given.output or Path("predicted") / (given.source.resolve().stem or "source")
    space = model.card.label_space
    if not model.gives_logits:
        print("the model gives no logits: its class maps are enlarged by nearest pixel", file=sys.stderr)
    confusion = ConfusionMatrix(space)
    with contextlib.ExitStack() as stack:
        writers: list[Pictures | Video] = []
        folder = output
        if source.rate_hz is not None:
            is_file = output.suffix.lower() == _VIDEO_SUFFIX
            folder = output.with_suffix("") if is_file else output
            video = output if is_file else output / f"{given.source.stem}{_VIDEO_SUFFIX}"
            writers.append(stack.enter_context(Video(video, space, source.rate_hz)))
            written = [str(video)]
            if given.labels:
                writers.append(Pictures(folder, space, overlays=False))
                written.append(str(folder / LABELS))
        else:
            writers.append(Pictures(folder, space, overlays=not given.no_overlays))
            written = [str(folder / LABELS), *([] if given.no_overlays else [str(folder / OVERLAYS)])]
        times, scored = _run(model, source, writers, confusion, given.limit)
    print(
        f"{times.frames} {'frame' if times.frames == 1 else 'frames'} in {times.all_s:.1f} s: "
        f"{times.frames / times.all_s:.1f} frames a second, the model alone "
        f"{times.frames / times.model_s:.1f} ({model.provider.removesuffix('ExecutionProvider')})"
    )
    if scored:
        _print_scores(confusion, scored)
        content = {"dataset": space.name, "frames": scored, **summarize(confusion)}
        write_json_atomic(folder / SCORES_NAME, content, sync=False)
        written.append(str(folder / SCORES_NAME))
    print(f"written to {', '.join(written)}")


def _run(
    model: Model,
    source: Source,
    writers: Sequence[Pictures | Video],
    confusion: ConfusionMatrix,
    limit: int | None,
) -> tuple[_Times, int]:
    """Predict, write and score; returns the times, and how many frames had labels."""
    times, scored = _Times(), 0
    began = reported = time.perf_counter()
    total = source.count if limit is None else min(limit, source.count or limit)
    for shot in itertools.islice(source, limit):
        start = time.perf_counter()
        prediction_HW = model.predict(shot.image_HWC)
        times.model_s += time.perf_counter() - start
        for writer in writers:
            writer.add(shot, prediction_HW)
        if shot.label_HW is not None:
            confusion.add(shot.label_HW, prediction_HW)
            scored += 1
        times.frames += 1
        if sys.stderr.isatty() and time.perf_counter() - reported > _REPORT_S:
            reported = time.perf_counter()
            print(f"{times.frames} of {total} frames", file=sys.stderr)
    times.all_s = time.perf_counter() - began
    return times, scored


def _print_scores(confusion: ConfusionMatrix, frames: int) -> None:
    """As `blackfleet evaluate` does, without a table library."""
    summary = summarize(confusion)
    width = max(len(name) for name in summary["classes"])
    print(f"{'class':{width}}  IoU %")
    for name, score in (*summary["classes"].items(), ("mean", summary["mean_iou"])):
        print(f"{name:{width}}  {'-' if score is None else f'{100 * score:.1f}':>5}")
    print(f"mIoU {_text(summary['mean_iou'])} on {frames} labelled frames, {summary['pixels']:,} pixels")


def _text(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.4f}"
