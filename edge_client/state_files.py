"""Where the states of vehicles lie: a folder of files each, or one SQLite file for all vehicles of a host.

Either way a state is there as a whole or not at all, and on the disk once it is written: a file by its
renaming, a row by a transaction in the database's write-ahead log.
"""

from __future__ import annotations

import errno
import re
import sqlite3
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from edge_client.errors import StateError
from protocol.atomic import write_bytes_atomic

_NAME = re.compile(r"turn-(\d{8})\.state")
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS states (vehicle TEXT NOT NULL, turn INTEGER NOT NULL, state BLOB NOT NULL, "
    "PRIMARY KEY (vehicle, turn))"
)
_BUSY_S = 60.0


class StateFiles(Protocol):
    """The states of one vehicle, by the turn that they are after."""

    def name(self, turn: int) -> str:
        """What a message calls the state after a turn."""

    def turns(self) -> list[int]:
        """The turns after which there is a state, in order."""

    def read(self, turn: int) -> bytes | None:
        """A state as it was written; None where there is none."""

    def write(self, turn: int, state: bytes) -> None:
        """Keep a state, in the place of an earlier one after the same turn.

        Raises:
            OSError: the disk is full or unwritable; what was there stays.
        """

    def forget(self, turns: Collection[int]) -> None:
        """Those are needed no more."""


class FolderFiles:
    """A file a state."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`, making it if it is missing.

        Raises:
            OSError: it can't be made or read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".turn-*.tmp"):  # by a process that was killed while it wrote
            left_over.unlink(missing_ok=True)
        self._folder = folder

    def name(self, turn: int) -> str:
        """See `StateFiles`."""
        return str(self._path(turn))

    def turns(self) -> list[int]:
        """See `StateFiles`."""
        matches = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def read(self, turn: int) -> bytes | None:
        """See `StateFiles`."""
        try:
            return self._path(turn).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, turn: int, state: bytes) -> None:
        """See `StateFiles`."""
        write_bytes_atomic(self._path(turn), state)

    def forget(self, turns: Collection[int]) -> None:
        """See `StateFiles`."""
        for turn in turns:
            self._path(turn).unlink(missing_ok=True)

    def _path(self, turn: int) -> Path:
        return self._folder / f"turn-{turn:08d}.state"


class StateDatabase:
    """The file of one host; from any thread."""

    def __init__(self, path: Path) -> None:
        """Open the file, making it if it is missing.

        Raises:
            StateError: it is damaged, or something else.
            OSError: its folder can't be made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", _SCHEMA):
            self.ask(statement)

    def of(self, vehicle: str) -> DatabaseFiles:
        """The states of one vehicle."""
        return DatabaseFiles(self, vehicle)

    def close(self) -> None:
        """Nothing more is read or written."""
        with self._lock:
            self._connection.close()

    def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement, a transaction of its own; returns its rows.

        Raises:
            StateError: the file is damaged, or something else.
            OSError: it can't be written; what was there stays.
        """
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                number = errno.ENOSPC if "full" in str(error) else errno.EIO
                raise OSError(number, str(error), str(self.path)) from error
            except sqlite3.DatabaseError as error:
                raise StateError(
                    f"can't use {self.path}: {error}; put an intact one back, or start a new run"
                ) from error


class DatabaseFiles:
    """A row a state."""

    def __init__(self, database: StateDatabase, vehicle: str) -> None:
        self._database = database
        self._vehicle = vehicle

    def name(self, turn: int) -> str:
        """See `StateFiles`."""
        return f"{self._database.path}, {self._vehicle} after turn {turn}"

    def turns(self) -> list[int]:
        """See `StateFiles`."""
        question = "SELECT turn FROM states WHERE vehicle = ? ORDER BY turn"
        return [int(turn) for (turn,) in self._database.ask(question, self._vehicle)]

    def read(self, turn: int) -> bytes | None:
        """See `StateFiles`."""
        question = "SELECT state FROM states WHERE vehicle = ? AND turn = ?"
        rows = self._database.ask(question, self._vehicle, turn)
        return bytes(rows[0][0]) if rows else None

    def write(self, turn: int, state: bytes) -> None:
        """See `StateFiles`."""
        self._database.ask("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", self._vehicle, turn, state)

    def forget(self, turns: Collection[int]) -> None:
        """See `StateFiles`."""
        if turns:
            marks = ", ".join("?" * len(turns))
            statement = f"DELETE FROM states WHERE vehicle = ? AND turn IN ({marks})"
            self._database.ask(statement, self._vehicle, *turns)
