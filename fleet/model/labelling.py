"""A teacher at work on a source: labels where it is sure, a manifest, and how good they are.

Shapes: H height, W width.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.labels import VOID, LabelSpace
from edge_client.predict.sources import Source, open_source
from edge_client.source.snapshot import MANIFEST_NAME as SNAPSHOT_NAME
from evaluation.scores import ConfusionMatrix
from fleet.errors import OperatorError
from fleet.model.labelled_folder import TEACHER_DIGITS, Counts, LabelledFolder
from fleet.model.teacher import Teacher, TeacherOptions
from protocol.atomic import write_json_atomic

MANIFEST_NAME = "labels.json"
DEFAULT_CONFIDENCE = 0.9
_REPORT_S = 5.0
_THRESHOLDS = (0.0, 0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What is to be labelled, and how."""

    source: Path
    output: Path | None = None
    """Folder for frames and labels; None: labels go beside the frames."""
    dataset: str | None = None
    confidence: float | None = None
    """Below it a pixel is void; None: `DEFAULT_CONFIDENCE` where the model says how sure it is."""
    replaces: bool = False
    limit: int | None = None
    against: bool = False
    """Only compare with the data set's own labels: nothing is written."""


def label(model: Path, options: TeacherOptions, asked: Labelling) -> None:
    """Label, and print what was done.

    Raises:
        Mistake: model, source or options don't fit; the message says what to do.
        OSError: the disk is full, or a folder can't be written.
    """
    if asked.confidence is not None and not 0 <= asked.confidence <= 1:
        raise OperatorError(f"--confidence must be 0 to 1, got {asked.confidence:g}")
    if asked.limit is not None and asked.limit < 1:
        raise OperatorError(f"--limit must be at least 1, got {asked.limit}")
    if asked.against and asked.dataset is None:
        raise OperatorError("--against compares with a data set's own labels: name it, too (--dataset)")
    teacher = Teacher(model, options)
    confidence = _confidence(model, teacher, asked)
    source = open_source(_frames_of(asked.source), teacher.label_space, dataset=asked.dataset)
    if asked.against:
        _compare(teacher, source, asked, confidence)
        return
    if asked.output is None and (source.rate_hz is not None or asked.dataset is not None):
        what = "a video's frames" if source.rate_hz is not None else "a data set's frames"
        raise OperatorError(f"{what} need a folder to lie in beside their labels: -o DIR")
    words = _words(teacher, confidence)
    folder = LabelledFolder(asked.output, teacher.label_space, words, replaces=asked.replaces)
    counts = _label_all(teacher, source, folder, asked.limit, confidence)
    where = asked.output or _folder_of(asked.source)
    write_json_atomic(where / MANIFEST_NAME, _manifest(teacher, confidence, counts), sync=False)
    _print_summary(teacher, confidence, counts, where)


def _confidence(model: Path, teacher: Teacher, asked: Labelling) -> float:
    if teacher.gives_scores:
        return DEFAULT_CONFIDENCE if asked.confidence is None else asked.confidence
    if asked.confidence:
        raise OperatorError(
            f"{model} gives classes without scores, so nothing says how sure it is: leave --confidence "
            f"{asked.confidence:g} out, and all pixels are labelled"
        )
    print(f"{model} does not say how sure it is: all pixels are labelled", file=sys.stderr)
    return 0.0


def _frames_of(source: Path) -> Path:
    """A vehicle's recording keeps its frames in a folder of its own."""
    frames = source / "frames"
    is_recording = frames.is_dir() and ((source / SNAPSHOT_NAME).exists() or (frames / ".lock").exists())
    return frames if is_recording else source


def _folder_of(source: Path) -> Path:
    source = _frames_of(source)
    return source if source.is_dir() else source.parent


def _words(teacher: Teacher, confidence: float) -> dict[str, Any]:
    """What each label says of itself."""
    settings = json.dumps(teacher.settings, sort_keys=True)
    return {
        "teacher": teacher.sha256[:TEACHER_DIGITS],
        "confidence": confidence,
        "settings": hashlib.sha256(settings.encode()).hexdigest()[:TEACHER_DIGITS],
    }


def _label_all(
    teacher: Teacher, source: Source, folder: LabelledFolder, limit: int | None, confidence: float
) -> Counts:
    counts, total = Counts(), source.count if limit is None else min(limit, source.count or limit)
    began = reported = time.perf_counter()
    for done, shot in enumerate(itertools.islice(source, limit)):
        if time.perf_counter() - reported > _REPORT_S:
            reported = time.perf_counter()
            rate_hz = counts.made / (reported - began)
            print(f"{done} of {total} frames, {rate_hz:.1f} labelled a second", file=sys.stderr)
        if not folder.existing(shot, counts):
            folder.write(shot, _sure(*teacher.label(shot.image_HWC), confidence), counts)
    return counts


def _sure(
    label_HW: NDArray[np.uint8], confidence_HW: NDArray[np.float32] | None, least: float
) -> NDArray[np.uint8]:
    """The label without what the teacher is less sure of."""
    if confidence_HW is None or least <= 0:
        return label_HW
    return np.where(confidence_HW >= least, label_HW, np.uint8(VOID))


def _manifest(teacher: Teacher, confidence: float, counts: Counts) -> dict[str, Any]:
    """The same for the same frames, whenever it is made, and in how many goes."""
    return {
        "teacher": {"name": teacher.name, "sha256": teacher.sha256, **teacher.settings},
        "confidence": confidence,
        "frames": counts.frames,
        "left_to_others": counts.others + counts.theirs,
        "void": _void(counts),
        "classes": _shares(counts, teacher.label_space),
        "void_by_frame": dict(sorted(counts.void.items())),
    }


def _void(counts: Counts) -> float | None:
    total = int(counts.pixels_K.sum())
    return round(float(counts.pixels_K[VOID] / total), 6) if total else None


def _shares(counts: Counts, label_space: LabelSpace) -> dict[str, float]:
    """Of the pixels that have a class, by its name."""
    pixels_K = counts.pixels_K[: label_space.num_classes]
    total = max(1, int(pixels_K.sum()))
    return {
        name: round(float(pixels / total), 6)
        for name, pixels in zip(label_space.train_names, pixels_K, strict=True)
    }


def _print_summary(teacher: Teacher, confidence: float, counts: Counts, where: Path) -> None:
    before = f", {counts.found} of them before" if counts.found else ""
    print(
        f"{counts.frames} frames labelled{before} by {teacher.name} ({teacher.sha256[:TEACHER_DIGITS]}) "
        f"where it is sure by {confidence:g}: {where}"
    )
    if counts.theirs:
        print(f"{counts.theirs} frames have labels that name no model: these stay")
    if counts.others:
        print(
            f"{counts.others} frames have labels by another model or other settings: these stay, or go with "
            f"--replace"
        )
    if counts.frames:
        width = max(map(len, teacher.label_space.train_names))
        for name, share in _shares(counts, teacher.label_space).items():
            print(f"{name:{width}}  {100 * share:5.1f} %")
        print(f"{'void':{width}}  {100 * (_void(counts) or 0):5.1f} % of all pixels")


def _compare(teacher: Teacher, source: Source, asked: Labelling, confidence: float) -> None:
    """Print, at some thresholds, how good labels would be, and how much of the frames would have one."""
    levels = sorted({*_THRESHOLDS, confidence}) if teacher.gives_scores else [0.0]
    matrices = {least: ConfusionMatrix(teacher.label_space) for least in levels}
    void = dict.fromkeys(levels, 0)
    frames = pixels = 0
    for shot in itertools.islice(source, asked.limit):
        if shot.label_HW is None:
            continue
        frames += 1
        pixels += shot.label_HW.size
        label_HW, confidence_HW = teacher.label(shot.image_HWC)
        for least in levels:
            sure_HW = _sure(label_HW, confidence_HW, least)
            void[least] += int((sure_HW == VOID).sum())
            matrices[least].add(np.where(sure_HW == VOID, np.uint8(VOID), shot.label_HW), sure_HW)
    if not frames:
        raise OperatorError(f"no frame of {asked.source} has a label to compare with")
    print(f"{teacher.name} against the labels of {frames} frames, void left out:")
    print("confidence   mIoU   right   void")
    for least, matrix in matrices.items():
        right = float(np.trace(matrix.counts) / max(1, matrix.pixels))
        print(
            f"{least:10g}  {matrix.mean_iou():.4f}  {100 * right:5.1f} %  {100 * void[least] / pixels:4.1f} %"
        )
