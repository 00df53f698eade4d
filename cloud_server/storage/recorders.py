"""The run's story on disk: one JSON line an event, and the curves as TensorBoard events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
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
        _end_torn_line(run_folder / LOG_NAME)
        self._file = (run_folder / LOG_NAME).open("a", encoding="utf-8")

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
        self._file.write(_line(name, values))
        self._file.flush()


def append_event(run_folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Add an event to the log of a run whose cloud is another process: a whole line at once, at the end.

    Raises:
        OSError: the folder is unwritable or full.
    """
    path = run_folder / LOG_NAME
    _end_torn_line(path)
    with path.open("ab", buffering=0) as file:
        file.write(_line(name, values).encode())


def _line(name: str, values: Mapping[str, Any]) -> str:
    record = {"event": name, "time": round(time.time(), 3), **values}
    return json.dumps(record, allow_nan=False) + "\n"


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
