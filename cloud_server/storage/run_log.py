"""The run's story: one JSON line an event, the same numbers as TensorBoard events."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

LOG_NAME = "log.jsonl"


class RunLog:
    """Appends to `<run folder>/log.jsonl` and `<run folder>/tensorboard/`."""

    def __init__(self, run_folder: Path) -> None:
        """Open both for appending.

        Raises:
            OSError: the folder is unwritable or full.
        """
        _end_torn_line(run_folder / LOG_NAME)
        self._file = (run_folder / LOG_NAME).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_folder / "tensorboard"))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()

    def event(self, name: str, **values: Any) -> None:
        """Append one event; NaN and infinity become null, so that every JSON parser reads the line."""
        record = {"event": name, "time": round(time.time(), 3), **{k: _plain(v) for k, v in values.items()}}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a TensorBoard curve."""
        if math.isfinite(value):
            self._board.add_scalar(tag, value, step)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _end_torn_line(path: Path) -> None:
    """A process killed while writing leaves half a line: close it, so that the next one stands alone."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
