"""A generated data set on disk, in the Cityscapes layout; unfinished ones go on where they stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from datasets.generated.render import city_name, render_frame
from datasets.generated.settings import GeneratorSettings
from datasets.readers.cityscapes import IMAGES, LABELS, write_cityscapes_frame
from protocol.errors import Mistake, SettingError

GENERATED_JSON = "generated.json"
GENERATOR_VERSION = 1
"""Counts changes of the pictures; folders of another version are not continued."""
_CHUNK = 8
_VAL_FRAMES = "val_frames"
WHEN_READ = "drawn_when_read"
"""In `generated.json`: frames that are not there yet are drawn when they are read."""

Index = tuple[int, int, int]


class GeneratorFolderError(Mistake):
    """The folder holds something else than this data set."""


def generate_dataset(
    root: Path | str,
    settings: GeneratorSettings,
    *,
    split: str = "train",
    val_frames: int = 0,
    workers: int = 1,
    when_read: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write every frame to `root` in the Cityscapes layout, and `generated.json` with the settings.

    Frames that are already there are kept: a finished data set of equal settings is left as it is, one that
    was interrupted is completed.

    Args:
        root: folder of the data set, made where it is missing.
        settings: what to generate.
        split: "train", "val" or "test", the folder that the frames go to.
        val_frames: besides, so many frames of one more drive through each city go to "val".
        workers: number of processes that render.
        when_read: write no frame now: each is drawn when it is first read (`datasets.generated.on_demand`).
        progress: called with (frames done, frames in all) after each frame.

    Raises:
        SettingError: `workers`, `split` or `val_frames` is out of range.
        GeneratorFolderError: `root` holds a data set of other settings, or files of something else.
        OSError: `root` is not writable or full.
    """
    root = Path(root)
    if workers < 1:
        raise SettingError(f"workers must be at least 1, got {workers}")
    if split not in ("train", "val", "test"):
        raise SettingError(f"split must be train, val or test, got {split!r}")
    if val_frames < 0 or (val_frames and split == "val"):
        raise SettingError(f"val_frames must be at least 0, and 0 with split val, got {val_frames}")
    description = {
        "version": GENERATOR_VERSION,
        "split": split,
        **asdict(settings),
        "image_size": list(settings.image_size),
        _VAL_FRAMES: val_frames,
    }
    _claim(root, {**description, WHEN_READ: True} if when_read else description, when_read=when_read)
    for kind in (IMAGES, LABELS):
        for folder in ("train", "val"):  # readers of both splits find both, even if one is empty
            (root / kind / folder).mkdir(parents=True, exist_ok=True)
    if when_read:
        return
    drives = range(settings.sequences_per_city)
    parts = [(split, settings, _indices(settings, drives))]
    if val_frames:
        last = settings.sequences_per_city
        longer = replace(settings, sequences_per_city=last + 1, frames_per_sequence=val_frames)
        parts.append(("val", longer, _indices(longer, range(last, last + 1))))
    total = sum(len(indices) for _, _, indices in parts)
    missing = [[i for i in indices if not _is_written(root, to, i)] for to, _, indices in parts]
    done = total - sum(map(len, missing))
    if progress and done == total:
        progress(done, done)
    for (to, drawn, _), indices in zip(parts, missing, strict=True):
        for _ in _write_all(partial(_write_one, root, to, drawn), indices, workers):
            done += 1
            if progress:
                progress(done, total)


def _indices(settings: GeneratorSettings, sequences: range) -> list[Index]:
    return [
        (city, sequence, frame)
        for city in range(settings.cities)
        for sequence in sequences
        for frame in range(settings.frames_per_sequence)
    ]


def _claim(root: Path, description: dict[str, Any], *, when_read: bool) -> None:
    """Mark the folder as this data set's, or check that it is."""
    path = root / GENERATED_JSON
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any((root / kind).exists() for kind in (IMAGES, LABELS)):
            raise GeneratorFolderError(
                f"{root} holds frames but no {GENERATED_JSON}, so they are not generated ones; "
                "choose another folder"
            ) from None
        root.mkdir(parents=True, exist_ok=True)
        _write_json(path, description)
        return
    except ValueError as exc:
        raise GeneratorFolderError(f"{path} is damaged ({exc}); remove {root} and generate again") from exc
    if not isinstance(found, dict):
        raise GeneratorFolderError(f"{path} is damaged (no object); remove {root} and generate again")
    found.setdefault(_VAL_FRAMES, 0)  # of earlier versions, which drew none
    changed = [
        f"{key} {found.get(key)!r} instead of {value!r}"
        for key, value in description.items()
        if key != WHEN_READ and found.get(key) != value
    ]
    if changed:
        raise GeneratorFolderError(
            f"{root} holds a generated data set of other settings ({', '.join(changed)}); choose another "
            "folder or remove this one"
        )
    if when_read and WHEN_READ not in found:
        _write_json(path, {**found, WHEN_READ: True})


def _is_written(root: Path, split: str, index: Index) -> bool:
    city, sequence, frame = index
    name = city_name(city)
    stem = f"{name}_{sequence:06d}_{frame:06d}"
    labels = root / LABELS / split / name
    return all(
        path.exists()
        for path in (
            root / IMAGES / split / name / f"{stem}_leftImg8bit.png",
            labels / f"{stem}_gtFine_labelIds.png",
            labels / f"{stem}_gtFine_instanceIds.png",
        )
    )


def _write_one(root: Path, split: str, settings: GeneratorSettings, index: Index) -> None:
    write_cityscapes_frame(root, split, render_frame(settings, *index))


def _write_all(write: Callable[[Index], None], indices: list[Index], workers: int) -> Iterator[None]:
    if workers == 1 or len(indices) < 2 * _CHUNK:
        yield from map(write, indices)
        return
    # Spawned, not forked: the caller may have threads (MQTT, ONNX Runtime) that a fork would break.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_signals)
    try:
        yield from pool.map(write, indices, chunksize=_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    """Ctrl-C reaches every process of a terminal's group; the one that handed out the work decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
