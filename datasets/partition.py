"""Which vehicle owns which frames, and which of them it trains on, validates on and is tested on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets import allotment
from datasets.allotment import MIN_FRAMES, Allotment, Frames, group_frames
from datasets.draws import StableDraws
from datasets.frame import DatasetError, FrameRef, FrameSource
from datasets.natural import natural_key
from protocol.errors import SettingError

PARTS = ("train", "val", "test")

METHODS: dict[str, Callable[[Allotment], list[Frames]]] = {
    "city": allotment.allot_cities,
    "sequence": allotment.allot_sequences,
    "small-shares": allotment.allot_small_shares,
    "uniform": allotment.allot_uniform,
    "dirichlet": allotment.allot_dirichlet,
    "class-imbalance": allotment.allot_class_imbalance,
}
"""The ways of giving frames to vehicles, by name; each is described where it is defined."""

READ_LABELS = frozenset({"dirichlet", "class-imbalance"})
"""Those that look into every label."""


@dataclass(frozen=True, slots=True)
class FrameSplit:
    """The keys of one vehicle's frames, each part in key order; no frame is in two of them."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VehicleSummary:
    """What one vehicle's frames hold."""

    frames: dict[str, int]
    """Number of frames by part: train, val, test."""
    pixels: dict[str, dict[str, int]]
    """Number of pixels by part and class name, at the size of the label files; void isn't counted."""


def partition_frames(
    source_or_refs: FrameSource | Sequence[FrameRef],
    vehicles: Sequence[str],
    *,
    method: str,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int,
    alpha: float = 0.5,
) -> dict[str, FrameSplit]:
    """Give every frame to exactly one vehicle, and divide each vehicle's frames into train, val and test.

    Methods: `city` and `sequence` give whole places, divided where there are more vehicles; `small-shares`
    gives 10 to 45 frames of one city; `uniform` deals single frames at random; `dirichlet` (with `alpha`) and
    `class-imbalance` skew the classes, and need a source, as they read every label.

    A vehicle's parts are contiguous blocks of each of its sequences in temporal order, train first; sequences
    too short to divide by `fractions` are joined and divided as one. Every vehicle gets at least one frame of
    each part. The result depends on the frames, the number and order of `vehicles`, and the options alone.

    Raises:
        SettingError: no vehicles, a vehicle twice, too few frames for them, an unknown method, fractions that
            are not positive or don't sum to 1, alpha not positive, a seed out of range, shares of the size
            that the method wants don't add up, or no source for a method that reads labels.
        DatasetError: a label can't be read.
    """
    if isinstance(source_or_refs, Sequence):
        source, refs = None, sorted(source_or_refs)
    else:
        source, refs = source_or_refs, sorted(source_or_refs.refs)
    _check_request(len(refs), vehicles, method, fractions, alpha)

    def count_classes() -> NDArray[np.int64]:
        if source is None:
            raise ValueError(f"partition by {method} reads the labels: give a frame source, not references")
        return class_histograms(source, refs)

    request = Allotment(
        refs=refs,
        vehicles=len(vehicles),
        draws=StableDraws(seed),
        alpha=alpha,
        count_classes=count_classes,
    )
    shares = METHODS[method](request)
    return {vehicle: _divide_parts(share, fractions) for vehicle, share in zip(vehicles, shares, strict=True)}


def parse_parts(text: str) -> tuple[float, float, float]:
    """Shares of train, validation and test frames of `70/10/20`.

    Raises:
        SettingError: it is not three positive percentages that sum to 100.
    """
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)/(\d{1,3}(?:\.\d+)?)/(\d{1,3}(?:\.\d+)?)", text)
    percent = [float(number) for number in match.groups()] if match else []
    if not percent or min(percent) <= 0 or abs(sum(percent) - 100) > 1e-6:
        raise SettingError(
            f"parts must be TRAIN/VAL/TEST in percent, each above 0, 100 in all, for instance "
            f"70/10/20, got {text!r}"
        )
    train, val, test = (number / 100 for number in percent)
    return train, val, test


def describe_partition(source: FrameSource, partition: Mapping[str, FrameSplit]) -> dict[str, VehicleSummary]:
    """Count each vehicle's frames, and the pixels of each class in them; reads every label.

    Raises:
        DatasetError: the partition names a frame that the source doesn't have, or a label can't be read.
    """
    names = source.label_space.train_names
    refs = {ref.key: ref for ref in source.refs}
    summaries = {}
    for vehicle, frames in partition.items():
        keys_by_part: dict[str, tuple[str, ...]] = {part: getattr(frames, part) for part in PARTS}
        unknown = [key for keys in keys_by_part.values() for key in keys if key not in refs]
        if unknown:
            raise DatasetError(
                f"the data set has no frame {unknown[0]!r}, which vehicle {vehicle} should own"
            )
        totals = {
            part: class_histograms(source, [refs[key] for key in keys]).sum(axis=0).tolist()
            for part, keys in keys_by_part.items()
        }
        summaries[vehicle] = VehicleSummary(
            frames={part: len(keys) for part, keys in keys_by_part.items()},
            pixels={part: dict(zip(names, total, strict=True)) for part, total in totals.items()},
        )
    return summaries


def class_histograms(source: FrameSource, refs: Sequence[FrameRef]) -> NDArray[np.int64]:
    """Count each frame's pixels by trainId: int64 [frames, classes], void left out.

    Raises:
        DatasetError: a label can't be read.
    """
    classes = source.label_space.num_classes
    histogram_NK = np.zeros((len(refs), classes), np.int64)
    for row_K, ref in zip(histogram_NK, refs, strict=True):
        row_K[:] = np.bincount(source.load_label(ref).ravel(), minlength=256)[:classes]
    return histogram_NK


def _check_request(
    frames: int, vehicles: Sequence[str], method: str, fractions: tuple[float, float, float], alpha: float
) -> None:
    if method not in METHODS:
        raise SettingError(f"unknown partition method {method!r}, expected one of: {', '.join(METHODS)}")
    if not vehicles:
        raise SettingError("the number of vehicles must be at least 1, got 0")
    if len(set(vehicles)) != len(vehicles):
        twice = next(vehicle for vehicle in vehicles if list(vehicles).count(vehicle) > 1)
        raise SettingError(f"vehicle ids must differ, got {twice!r} twice")
    if frames < MIN_FRAMES * len(vehicles):
        raise SettingError(
            f"more vehicles than frames for them: {len(vehicles)} vehicles need at least "
            f"{MIN_FRAMES * len(vehicles)} frames (one each to train, validate and test), got {frames}"
        )
    if not (min(fractions) > 0 and math.isclose(sum(fractions), 1.0, abs_tol=1e-6)):
        raise SettingError(
            "train, val and test fractions must be positive and sum to 1, got "
            + ", ".join(f"{fraction:g}" for fraction in fractions)
        )
    if not (alpha > 0 and math.isfinite(alpha)):
        raise SettingError(f"alpha must be positive, got {alpha:g}")


def _divide_parts(frames: Frames, fractions: tuple[float, float, float]) -> FrameSplit:
    """Divide one vehicle's frames into contiguous blocks of each of its sequences."""
    shortest = 1.0 / min(fractions)
    sequences = group_frames(frames, lambda ref: (ref.city, ref.sequence))
    runs = [sequence for sequence in sequences if len(sequence) >= shortest]
    joined = [ref for sequence in sequences if len(sequence) < shortest for ref in sequence]
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for run in [*runs, joined]:
        # A rest of one or two frames beside runs that already fill all parts.
        lengths = _part_lengths(len(run), fractions) if len(run) >= MIN_FRAMES else (len(run), 0, 0)
        start = 0
        for part, length in zip(parts, lengths, strict=True):
            part += [ref.key for ref in run[start : start + length]]
            start += length
    train, val, test = (tuple(sorted(part, key=natural_key)) for part in parts)
    return FrameSplit(train, val, test)


def _part_lengths(count: int, fractions: Iterable[float]) -> list[int]:
    """Round `count` times each fraction so that the sum stays and no part is empty."""
    exact = [count * fraction for fraction in fractions]
    lengths = [math.floor(length) for length in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: exact[i] - lengths[i], reverse=True)
    for i in by_remainder[: count - sum(lengths)]:
        lengths[i] += 1
    while 0 in lengths:
        lengths[lengths.index(max(lengths))] -= 1
        lengths[lengths.index(0)] += 1
    return lengths
