"""The run's story on disk: one JSON line an event, and the curves as TensorBoard events."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from cloud_server.events import Recorder

LOG_NAME = "log.jsonl"


class RunLog(Recorder):
    """Appends each event to `<run folder>/log.jsonl`."""

    def __init__(self, run_folder: Path) -> None:
        """Open it for appending.

        Raises:
            OSError: the folder is unwritable or full.
        """
        self._file = _open_to_append(run_folder / LOG_NAME)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        _write_line(self._file, name, values)


def append_event(run_folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Add an event to the log of a run whose cloud is another process.

    Raises:
        OSError: the folder is unwritable or full.
    """
    with _open_to_append(run_folder / LOG_NAME) as file:
        _write_line(file, name, values)


def _open_to_append(path: Path) -> FileIO:
    return path.open("ab+", buffering=0)


def _write_line(file: FileIO, name: str, values: Mapping[str, Any]) -> None:
    """Alone: cloud and launcher write to one log, and a long line grows by pieces."""
    record = {"event": name, "time": round(time.time(), 3), **values}
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    with _alone(file):
        if _ends_torn(file):
            line = b"\n" + line
        while line:  # a disk that is almost full takes a part, and refuses the next one
            line = line[file.write(line) :]


@contextmanager
def _alone(file: FileIO) -> Iterator[None]:
    """Keep other processes' lines out in the body. The kernel lets go of it for a process that dies there."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _ends_torn(file: FileIO) -> bool:
    """Whether the last line is only half there: its process was killed, the next one must stand alone."""
    end = file.seek(0, os.SEEK_END)
    return end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"


class Board(Recorder):
    """Appends each point of a curve to `<run folder>/tensorboard/`."""

    def __init__(self, run_folder: Path) -> None:
        """Open a new file of events.

        Raises:
            OSError: the folder is unwritable or full.
        """
        # Here, because others read this file's names, and torch takes seconds to load.
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_folder / "tensorboard"))

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(tag, value, step)

    def picture(self, tag: str, png: bytes, step: int) -> None:
        """Add a picture as it is: an RGB PNG, whose header says its size."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
