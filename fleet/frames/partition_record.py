"""What a run begins with and goes on with whatever becomes of the data set: its frames and their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from datasets.class_file import is_class_file, read_class_file, write_class_file
from datasets.frame import FrameRef, FrameSource
from datasets.partition import FrameSplit, describe_partition
from fleet.errors import OperatorError
from fleet.frames.allocation import Share, allocate, vehicle_encoder, vehicle_sight
from fleet.scenario import Scenario
from protocol.atomic import write_json_atomic

PARTITION_NAME = "partition.json"
_MOST_LABELS_READ = 2000
"""Frames up to which every label is read to report class pixels."""
_NAMED = 5
"""Frames that a message names; the rest is counted."""


class _Frames(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is resumed by of a vehicle's entry."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    ood: tuple[str, ...]
    source: tuple[str, ...] = ()
    fleet: tuple[str, ...] = ()


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is resumed by of `partition.json`."""

    vehicles: dict[str, _Frames]
    image_bytes: dict[str, int] = {}
    """Size of each frame's picture file by key; empty in records of earlier versions."""
    label_bytes: dict[str, int] = {}


def settle_shares(
    scenario: Scenario, run_folder: Path, source: FrameSource, *, source_keys: tuple[str, ...] = ()
) -> dict[str, Share]:
    """Each vehicle's frames: those that the run began with, or, for a new run, newly given.

    `source_keys` are those of `fleet.frames.allocation.source_test_frames`.

    Raises:
        OperatorError: a frame that the run began with is gone, or is another one; or the record is damaged.
        SettingError, DatasetError: see `allocate`.
    """
    path = run_folder / PARTITION_NAME
    if path.exists():
        return _recorded(scenario, path, source)
    if any((run_folder / "cloud" / "checkpoints").glob("*")):
        raise OperatorError(
            f"{path} is missing: nobody knows which frames the run began with; put it back, or begin a new "
            f"run"
        )
    return allocate(scenario, source, source_keys=source_keys)


def settle_classes(scenario: Scenario, run_folder: Path, source: FrameSource) -> None:
    """Keep the classes in the run folder, where the data set's folder says what they are.

    Raises:
        OperatorError: they are others than the run began with.
        DatasetError, OSError: the file that is there is damaged, or none can be written.
    """
    name = scenario.dataset.classes_name
    if not is_class_file(name):
        return
    path = run_folder / name
    if not path.exists():
        write_class_file(path, source.label_space)
    elif read_class_file(path) != source.label_space:
        raise OperatorError(
            f"the classes in {scenario.dataset.root} are not those that the run began with ({path}); put "
            f"them back, or begin a new run in another folder"
        )


def record_shares(run_folder: Path, source: FrameSource, shares: Mapping[str, Share]) -> None:
    """Write down frames, condition, encoder and class pixels of each vehicle, and the size of frames' files.

    Class pixels are those of all its train, val and test labels, void left out; null for each vehicle of a
    data set so large that reading them would hold up the launch. A record that is there stays.

    Raises:
        DatasetError: a label can't be read.
        OSError: the folder can't be written.
    """
    path = run_folder / PARTITION_NAME
    if path.exists():
        return
    used = {key for share in shares.values() for keys in share.splits().values() for key in keys}
    refs = [ref for ref in source.refs if ref.key in used]
    there = [ref for ref in refs if ref.image_path.exists()]
    # Of frames that are yet to be drawn nobody knows the size, or the classes.
    pixels = _class_pixels(source, shares) if len(there) == len(refs) else dict.fromkeys(shares)
    vehicles = {
        vehicle: {
            **share.splits(),
            "condition": share.sight.condition if share.sight else None,
            "encoder": share.encoder,
            "frames": {split: len(keys) for split, keys in share.splits().items()},
            "class_pixels": pixels[vehicle],
        }
        for vehicle, share in shares.items()
    }
    image_bytes = {ref.key: ref.image_path.stat().st_size for ref in there}
    label_bytes = {ref.key: ref.label_path.stat().st_size for ref in there if ref.label_path is not None}
    write_json_atomic(path, {"vehicles": vehicles, "image_bytes": image_bytes, "label_bytes": label_bytes})


def _recorded(scenario: Scenario, path: Path, source: FrameSource) -> dict[str, Share]:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
        if tuple(record.vehicles) != scenario.vehicle_ids:
            raise ValueError("its vehicles are not those of the run")
    except (ValueError, msgspec.DecodeError) as error:
        raise OperatorError(
            f"damaged {path}: {error}; put the intact one back, or begin a new run"
        ) from error
    _check_frames(record, path, source)
    return {
        vehicle: Share(
            train=frames.train,
            val=frames.val,
            test=frames.test,
            ood=frames.ood,
            encoder=vehicle_encoder(scenario, vehicle),
            sight=vehicle_sight(scenario, vehicle),
            source=frames.source,
            fleet=frames.fleet,
        )
        for vehicle, frames in record.vehicles.items()
    }


def _check_frames(record: _Record, path: Path, source: FrameSource) -> None:
    """Every frame of the record is in the data set, in files of the sizes that they had."""
    refs = {ref.key: ref for ref in source.refs}
    keys = sorted({key for frames in record.vehicles.values() for key in _keys(frames)})
    gone = [key for key in keys if key not in refs]
    changed = [key for key in keys if key in refs and not _is_same(record, refs[key])]
    for what, found in (("not in the data set any more", gone), ("not the same any more", changed)):
        if found:
            raise OperatorError(
                f"{_some(found)}, with which the run began ({path}): {what}; put back what was there, or "
                f"begin a new run in another folder"
            )


def _keys(frames: _Frames) -> Iterator[str]:
    for split in msgspec.structs.astuple(frames):
        yield from split


def _is_same(record: _Record, ref: FrameRef) -> bool:
    sizes = {ref.image_path: record.image_bytes.get(ref.key)}
    if ref.label_path is not None:
        sizes[ref.label_path] = record.label_bytes.get(ref.key)
    return all(size is None or path.stat().st_size == size for path, size in sizes.items())


def _some(keys: Sequence[str]) -> str:
    """For instance `frame a`, or the first few of several and how many more there are."""
    named, more = ", ".join(keys[:_NAMED]), len(keys) - _NAMED
    return f"frame{'s' if len(keys) > 1 else ''} {named}{f' and {more} more' if more > 0 else ''}"


def _class_pixels(source: FrameSource, shares: Mapping[str, Share]) -> dict[str, dict[str, int] | None]:
    owned = {vehicle: FrameSplit(share.train, share.val, share.test) for vehicle, share in shares.items()}
    if sum(len(share.train + share.val + share.test) for share in shares.values()) > _MOST_LABELS_READ:
        return dict.fromkeys(shares)
    return {
        vehicle: {name: sum(part[name] for part in parts) for name in source.label_space.train_names}
        for vehicle, summary in describe_partition(source, owned).items()
        for parts in [summary.pixels.values()]
    }
