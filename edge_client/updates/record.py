"""What a vehicle knows of its updates: one small file, replaced at once by each step."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_client.errors import StateError
from protocol.atomic import write_bytes_atomic
from protocol.messages import UpdateNote, Version
from protocol.update_file import Kind

RECORD_NAME = "record.json"
_MOST_NOTES = 32


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """An update that is unpacked."""

    kind: Kind
    name: str
    version: int
    digest: str
    folder: str
    """Its name below `versions`."""
    weights: str = "learnt"

    @property
    def identity(self) -> Version:
        """As the cloud is told of it."""
        return Version(kind=self.kind, name=self.name, version=self.version, digest=self.digest)


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """An update that waits for its trial inference, or for the end of a turn."""

    installed: Installed
    begun: int = 0
    """Trial inferences that were begun: one may take the whole machine with it."""
    passed: bool = False


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """An update that is in use, and has not finished a turn yet."""

    kind: Kind
    deaths: int = 0
    """Times that the process has ended at work with it, and not because it was told to."""
    at_work: bool = True
    """Whether it is just being opened, or in a turn: who ends then may have died of it."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The whole record; a new one for each step."""

    current: dict[Kind, Installed] = {}
    """What is in use in place of what the vehicle was started with."""
    previous: dict[Kind, Installed | None] = {}
    """What was in use before; None: what the vehicle was started with."""
    taken_back: dict[Kind, Installed] = {}
    """What was rolled back last."""
    staged: Staged | None = None
    trial: Trial | None = None
    highest: dict[Kind, int] = {}
    """Versions that were in use; updates must have higher ones."""
    notes: tuple[UpdateNote, ...] = ()
    """The newest last."""

    def with_note(self, note: UpdateNote, **changes: object) -> Record:
        """With other fields, and one more note in place of an earlier one of the same update."""
        others = [each for each in self.notes if each.update.digest != note.update.digest]
        return msgspec.structs.replace(self, notes=(*others, note)[-_MOST_NOTES:], **changes)

    def note_of(self, digest: str) -> UpdateNote | None:
        """What has become of an update; None: it is not known."""
        return next((each for each in self.notes if each.update.digest == digest), None)


def read_record(folder: Path) -> Record:
    """An empty one where there is none.

    Raises:
        StateError: it is damaged.
        OSError: it can't be read.
    """
    path = folder / RECORD_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(
            f"{path} is damaged ({error}); remove {folder}, and the vehicle runs what it is started with"
        ) from error


def write_record(folder: Path, record: Record) -> None:
    """Keep it, atomically and durably.

    Raises:
        OSError: the folder can't be written; the record before stands.
    """
    write_bytes_atomic(
        folder / RECORD_NAME, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    )
