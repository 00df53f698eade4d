"""The frames that a run works on: a manifest fixed at its start, whatever is recorded in the meantime.

A process that starts again in the run finds the same frames, by name and by content; so the same seed gives
the same bits.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from datasets.frame import FrameRef
from datasets.label_files import label_beside
from datasets.labels import LabelSpace
from datasets.readers.folder import FrameFolder
from edge_client.errors import VehicleError
from edge_client.source.ring import Ring, RingFrame, digest, place_of
from edge_client.source.settings import FEWEST_FRAMES
from protocol.atomic import sync_folder, write_bytes_atomic

MANIFEST_NAME = "snapshot.json"
"""In the folder of a recording, beside that of its frames."""
_VERSION = 1


class ManifestFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One frame of a run."""

    file: str
    """In the ring's folder; it holds the content's digest."""
    label_digest: str | None
    """SHA-256 of the label file beside it; None: it has no label."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run works on; on disk as JSON."""

    version: int = _VERSION
    fleet: str
    """Whose run it is."""
    source: str
    """URI, without user and password."""
    is_over: bool = False
    """Whether the cloud has ended the run."""
    frames: tuple[ManifestFrame, ...]
    """In the order in which they were taken."""


def read_manifest(path: Path) -> Manifest | None:
    """Read one; None: there is none.

    Raises:
        VehicleError: it is damaged.
        OSError: it can't be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
        if manifest.version != _VERSION or any(place_of(frame.file) is None for frame in manifest.frames):
            raise msgspec.ValidationError("it is of another version, or names files that are no frames")
    except msgspec.DecodeError as error:
        raise VehicleError(
            f"damaged manifest {path}: {error}; --snapshot new takes other frames, for a new run"
        ) from error
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write one, atomically and durably.

    Raises:
        OSError: the disk is full or gone.
    """
    write_bytes_atomic(path, msgspec.json.format(msgspec.json.encode(manifest)))


def take_snapshot(ring: Ring, *, most: int, fleet: str, source: str) -> Manifest:
    """The newest frames of a ring, `most` of them, read once more and forced to the disk.

    Where at least three have labels, only such are taken: those without would teach nothing beside them.

    Raises:
        VehicleError: there are fewer than three.
        OSError: they can't be read.
    """
    frames = ring.frames
    labelled = [frame for frame in frames if frame.has_label]
    candidates = labelled if len(labelled) >= FEWEST_FRAMES else frames
    taken: list[ManifestFrame] = []
    for frame in reversed(candidates):
        if len(taken) == most:
            break
        if _is_intact(frame):
            taken.append(ManifestFrame(frame.path.name, _label_digest(frame.label_path)))
        else:
            ring.forget(frame.key)
    if len(taken) < FEWEST_FRAMES:
        raise VehicleError(
            f"{source} gave {len(taken)} frames worth keeping, {FEWEST_FRAMES} are needed at least: keep "
            f"more of them (--keep-every, --keep-changed)"
        )
    sync_folder(ring.folder)
    return Manifest(fleet=fleet, source=source, frames=tuple(reversed(taken)))


class SnapshotFrames(FrameFolder):
    """A manifest's frames as a data set; its label files hold ids of the label space."""

    def __init__(self, folder: Path, label_space: LabelSpace, manifest: Manifest) -> None:
        """Read every file once.

        Raises:
            VehicleError: one is gone or has changed.
        """
        refs = []
        for frame in manifest.frames:
            path = folder / frame.file
            place = place_of(frame.file)
            assert place is not None, "read_manifest has looked"
            label_path = label_beside(path) if frame.label_digest else None
            if _digest_of(path) != frame.file.rpartition("_")[2].partition(".")[0] or (
                label_path is not None and _label_digest(label_path) != frame.label_digest
            ):
                raise VehicleError(
                    f"frame {path}, which this run works on, or its label is gone or has changed; put it "
                    f"back, or begin a new run with other frames (--snapshot new)"
                )
            refs.append(FrameRef(path.stem, place[0], place[0], place[1], path, label_path))
        super().__init__(folder, label_space, refs)
        self.labelled = sum(frame.label_digest is not None for frame in manifest.frames)
        """How many have labels."""


def _is_intact(frame: RingFrame) -> bool:
    """Whether the file still holds what its name says; if so, it is on the disk afterwards."""
    try:
        with frame.path.open("rb") as file:
            intact = digest(file.read()) == frame.digest
            os.fsync(file.fileno())
    except FileNotFoundError:
        return False
    return intact


def _digest_of(path: Path) -> str | None:
    try:
        return digest(path.read_bytes())
    except FileNotFoundError:
        return None


def _label_digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            content = file.read()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return None
    return hashlib.sha256(content).hexdigest()
