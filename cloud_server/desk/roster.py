"""Who takes part in a run, on disk: what each vehicle declared when it joined, and who has failed since.

A file of its own beside the checkpoints: a failure must outlive a cloud that crashes before the next commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from cloud_server.desk.declaration import Declaration
from cloud_server.errors import CloudError
from protocol.atomic import write_bytes_atomic

ROSTER_NAME = "vehicles.json"


class _Content(msgspec.Struct, kw_only=True):
    declared: dict[str, Declaration] = {}
    failed: dict[str, str] = {}


class Roster:
    """`vehicles.json` of one run's cloud folder."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Read what is there; a run that has committed nothing begins with an empty one.

        Raises:
            CloudError: the file is damaged.
            OSError: it can't be read.
        """
        self._path = folder / ROSTER_NAME
        self._content = _Content()
        if resume and self._path.exists():
            try:
                self._content = msgspec.json.decode(self._path.read_bytes(), type=_Content)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise CloudError(f"{self._path} is damaged ({error}); start a new run") from error

    @property
    def declared(self) -> Mapping[str, Declaration]:
        """By vehicle."""
        return self._content.declared

    @property
    def failed(self) -> Mapping[str, str]:
        """By vehicle: why the run goes on without it."""
        return self._content.failed

    def declare(self, declared: Mapping[str, Declaration]) -> None:
        """Keep what the vehicles of this run have declared.

        Raises:
            OSError: it can't be written.
        """
        if declared != self._content.declared:
            self._content.declared = dict(declared)
            self._write()

    def fail(self, vehicle: str, reason: str) -> None:
        """The run goes on without a vehicle.

        Raises:
            OSError: it can't be written.
        """
        self.fail_all({vehicle: reason})

    def fail_all(self, reasons: Mapping[str, str]) -> None:
        """The run goes on without some vehicles.

        Raises:
            OSError: it can't be written.
        """
        if reasons:
            self._content.failed |= reasons
            self._write()

    def take_back(self, vehicle: str) -> None:
        """The run goes on with a vehicle that had failed.

        Raises:
            OSError: it can't be written.
        """
        del self._content.failed[vehicle]
        self._write()

    def _write(self) -> None:
        write_bytes_atomic(self._path, msgspec.json.format(msgspec.json.encode(self._content), indent=2))
