"""The run's story on disk: one JSON line an event, and the curves as TensorBoard events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
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
    """Add an event to the log of a run whose cloud is another process: a whole line at once, at the end.

    Raises:
        OSError: the folder is unwritable or full.
    """
    with _open_to_append(run_folder / LOG_NAME) as file:
        _write_line(file, name, values)


def _open_to_append(path: Path) -> FileIO:
    _end_torn_line(path)
    return path.open("ab", buffering=0)


def _write_line(file: FileIO, name: str, values: Mapping[str, Any]) -> None:
    """In one piece: cloud and launcher write to one log, and neither may see half a line of the other."""
    record = {"event": name, "time": round(time.time(), 3), **values}
    rest = (json.dumps(record, allow_nan=False) + "\n").encode()
    while rest:  # a disk that is almost full takes a part, and refuses the next one
        rest = rest[file.write(rest) :]


class Board(Recorder):
    """Appends each point of a curve to `<run folder>/tensorboard/`."""

    def __init__(self, run_folder: Path) -> None:
        """Open a new file of events.

        Raises:
            OSError: the folder is unwritable or full.
        """
        # Here, because others read this file's names, and torch takes seconds to load.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_folder / "tensorboard"))

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

    def picture(self, tag: str, image_HWC: Any, step: int) -> None:
        """Add a picture, uint8 RGB."""
        self._writer.add_image(tag, image_HWC, step, dataformats="HWC")


def _end_torn_line(path: Path) -> None:
    """A process killed while writing leaves half a line: close it, so that the next one stands alone."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
