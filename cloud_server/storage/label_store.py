"""The labels that vehicles have sent: as received on disk, decoded in memory as far as there is room.

Legend: B frames, H W label rows and columns.

The disk holds one append-only file of records `magic, length, CRC-32, body`; the body is MessagePack. What a
crash or the disk has spoilt is left out when the file is opened, so that the vehicles are asked for it again.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocol.codec.deflate import CodecError
from protocol.codec.labels import content_hash, decode_label
from protocol.errors import Mistake

_log = logging.getLogger(__name__)

_HEAD = struct.Struct("<4sII")
_MAGIC = b"BFL1"
_FILE_NAME = "labels.log"
DEFAULT_MEMORY_BYTES = 512 * 1024 * 1024

_Key = tuple[str, int]


class LabelError(Mistake):
    """A label that is not there, or not what it claims to be."""


class _Record(msgspec.Struct, frozen=True, array_like=True):
    vehicle: str
    index: int
    key: str
    digest: bytes
    height: int
    width: int
    coded: bytes


@dataclass(frozen=True, slots=True)
class _Place:
    key: str
    digest: bytes
    offset: int
    """Of the record's body in the file."""
    length: int


class LabelStore:
    """Labels by vehicle and frame index. Safe for use by several threads of one process."""

    def __init__(self, folder: Path, *, num_classes: int, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        """Open the store in `folder` (created if missing) with the labels that it holds.

        Args:
            num_classes: labels hold trainIds below it and 255.
            memory_bytes: decoded labels kept in memory, at most; 0 decodes each time.

        Raises:
            OSError: the folder can't be written.
        """
        self._num_classes = num_classes
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._places: dict[_Key, _Place] = {}
        self._decoded: OrderedDict[_Key, NDArray[np.uint8]] = OrderedDict()
        self._decoded_bytes = 0
        self.additions = 0
        """How often what is here has changed."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _FILE_NAME
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = self._scan(self._path.read_bytes())
        os.ftruncate(self._file, self._end)

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many frames have a label."""
        return len(self._places)

    def close(self) -> None:
        """Write to disk and give the file back."""
        self.sync()
        os.close(self._file)

    def sync(self) -> None:
        """Make all labels added so far survive a power cut; those of a killed process survive anyway."""
        os.fsync(self._file)

    def add(
        self, vehicle: str, index: int, key: str, digest: bytes, coded: bytes, *, height: int, width: int
    ) -> None:
        """Keep the label of one frame; the same label again is fine, another one takes its place.

        Args:
            key: the frame's name in its data set.
            digest: `protocol.codec.labels.content_hash` of the label.
            coded: what `protocol.codec.labels.encode_label` made of it.

        Raises:
            LabelError: it can't be decoded to that size, or to that digest; nothing is kept.
            OSError: the disk is full; nothing is kept.
        """
        if self.has(vehicle, index, digest):
            return
        record = _Record(vehicle, index, key, digest, height, width, coded)
        label_HW = self._decode(record)
        body = msgspec.msgpack.encode(record)
        with self._lock:
            self._append(_HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body)
            offset = self._end - len(body)
            self._forget(vehicle, index)
            self._places[vehicle, index] = _Place(key, digest, offset, len(body))
            self._remember(vehicle, index, label_HW)
            self.additions += 1

    def digest(self, vehicle: str, index: int) -> bytes | None:
        """The content hash of a frame's label; None: it is not here."""
        place = self._places.get((vehicle, index))
        return None if place is None else place.digest

    def has(self, vehicle: str, index: int, digest: bytes | None = None) -> bool:
        """Whether a label of the frame is here; with a digest, whether it is that very label."""
        place = self._places.get((vehicle, index))
        return place is not None and digest in (None, place.digest)

    def get(self, vehicle: str, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return the labels of these frames, each uint8[H, W] of its own size, read-only.

        Raises:
            LabelError: one of them is not here or its record was spoilt since.
        """
        return [self.full(vehicle, index)[1] for index in indices]

    def batch(self, vehicle: str, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return the labels of these frames in one new array, uint8[B, H, W].

        Raises:
            LabelError: one of them is not here, or they differ in size.
        """
        labels = self.get(vehicle, indices)
        sizes = {label_HW.shape for label_HW in labels}
        if len(sizes) != 1:
            found = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)) or "no labels"
            raise LabelError(f"labels of a batch of {vehicle} must have one size, got {found}")
        return np.stack(labels)

    def full(self, vehicle: str, index: int) -> tuple[str, NDArray[np.uint8]]:
        """Return the frame's name in its data set and its label, uint8[H, W], read-only.

        Raises:
            LabelError: it is not here or its record was spoilt since.
        """
        with self._lock:
            place = self._places.get((vehicle, index))
            if place is None:
                raise LabelError(f"no label of frame {index} of vehicle {vehicle} has been received")
            label_HW = self._decoded.get((vehicle, index))
            if label_HW is None:
                label_HW = self._read(vehicle, index, place)
                self._remember(vehicle, index, label_HW)
            else:
                self._decoded.move_to_end((vehicle, index))
            return place.key, label_HW

    def _decode(self, record: _Record) -> NDArray[np.uint8]:
        frame = f"label of frame {record.index} of vehicle {record.vehicle}"
        try:
            label_HW = decode_label(
                record.coded, height=record.height, width=record.width, num_classes=self._num_classes
            )
        except CodecError as exc:
            raise LabelError(f"{frame}: {exc}") from exc
        if content_hash(label_HW) != record.digest:
            raise LabelError(f"{frame}: its content is not what its digest {record.digest.hex()} says")
        label_HW.setflags(write=False)
        return label_HW

    def _read(self, vehicle: str, index: int, place: _Place) -> NDArray[np.uint8]:
        body = os.pread(self._file, place.length, place.offset)
        try:
            return self._decode(msgspec.msgpack.decode(body, type=_Record))
        except (LabelError, msgspec.DecodeError) as exc:
            raise LabelError(
                f"{self._path} is damaged at the label of frame {index} of vehicle {vehicle}; restart the "
                "cloud, which then asks for what is missing"
            ) from exc

    def _append(self, data: bytes) -> None:
        try:
            written = os.pwrite(self._file, data, self._end)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written to {self._path}")
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)

    def _scan(self, data: bytes) -> int:
        """Take in all sound records of the file; return where the last whole one ends."""
        start = 0
        view = memoryview(data)
        while start + _HEAD.size <= len(data):
            magic, length, checksum = _HEAD.unpack_from(data, start)
            body_start = start + _HEAD.size
            body = view[body_start : body_start + length]
            if magic != _MAGIC or len(body) != length:
                break
            start = body_start + length
            if zlib.crc32(body) != checksum:
                _log.warning("%s: a label is damaged and will be asked for again", self._path)
                continue
            record = msgspec.msgpack.decode(body, type=_Record)
            self._places[record.vehicle, record.index] = _Place(record.key, record.digest, body_start, length)
        if start != len(data):
            _log.warning("%s: dropped %d bytes of an unfinished write", self._path, len(data) - start)
        return start

    def _remember(self, vehicle: str, index: int, label_HW: NDArray[np.uint8]) -> None:
        self._decoded[vehicle, index] = label_HW
        self._decoded_bytes += label_HW.nbytes
        while self._decoded_bytes > self._memory_bytes:
            _, oldest_HW = self._decoded.popitem(last=False)
            self._decoded_bytes -= oldest_HW.nbytes

    def _forget(self, vehicle: str, index: int) -> None:
        label_HW = self._decoded.pop((vehicle, index), None)
        if label_HW is not None:
            self._decoded_bytes -= label_HW.nbytes
