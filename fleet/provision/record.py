"""What an authority remembers: which names it knows, and every certificate that it has signed."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import msgspec

from fleet.errors import OperatorError
from fleet.provision.names import Identity
from protocol.atomic import write_bytes_atomic

RECORD_NAME = "authority.json"


class Issued(msgspec.Struct, kw_only=True, frozen=True):
    """A certificate that was signed."""

    fleet: str
    """Empty: the broker's."""
    name: str
    serial: str
    """Hexadecimal: longer than the numbers of JSON."""
    until: datetime
    by_request: bool = False
    """Its key was made elsewhere, and stays there."""
    handed_out: bool = False
    """Its files are written, whoever may have taken them away since."""
    revoked: datetime | None = None

    @property
    def identity(self) -> Identity:
        """Whose it is."""
        return Identity(self.fleet, self.name)


class Record(msgspec.Struct, kw_only=True, frozen=True):
    """The whole record; a new one for each change."""

    fleets: tuple[str, ...]
    hosts: tuple[str, ...]
    """Names under which clients reach the broker."""
    port: int
    broker_folder: str | None = None
    """Where the broker's files will lie on its machine; None: where they are written."""
    issued: tuple[Issued, ...] = ()
    """In the order of signing."""

    def latest(self, whose: Identity) -> Issued | None:
        """The certificate that a client is to use; None: it has none, or its last one was revoked."""
        mine = [each for each in self.issued if each.identity == whose]
        return mine[-1] if mine and mine[-1].revoked is None else None

    def known(self, fleet: str) -> tuple[Identity, ...]:
        """Who of a fleet may talk, in the order of their first certificates."""
        names = dict.fromkeys(each.identity for each in self.issued if each.fleet == fleet)
        return tuple(each for each in names if self.latest(each) is not None)

    def with_issued(self, whose: Identity, serial: int, until: datetime, *, by_request: bool) -> Record:
        """And one more."""
        more = Issued(
            fleet=whose.fleet, name=whose.name, serial=f"{serial:x}", until=until, by_request=by_request
        )
        return msgspec.structs.replace(self, issued=(*self.issued, more))

    def with_latest_handed_out(self) -> Record:
        """With the files of the latest certificate written."""
        latest = msgspec.structs.replace(self.issued[-1], handed_out=True)
        return msgspec.structs.replace(self, issued=(*self.issued[:-1], latest))

    def with_revoked(self, whose: Identity) -> Record:
        """With all certificates of a client revoked, that of today and those before it."""
        now = datetime.now(timezone.utc).replace(microsecond=0)
        return msgspec.structs.replace(
            self,
            issued=tuple(
                msgspec.structs.replace(each, revoked=now)
                if each.identity == whose and each.revoked is None
                else each
                for each in self.issued
            ),
        )


def read_record(folder: Path) -> Record | None:
    """None where the folder holds no authority.

    Raises:
        OperatorError: its record is damaged.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.MsgspecError as error:
        raise OperatorError(
            f"{path} is no record of an authority: {error}; restore it from a copy"
        ) from error


def write_record(folder: Path, record: Record) -> None:
    """Keep it, atomically.

    Raises:
        OSError: the folder can't be written.
    """
    write_bytes_atomic(
        folder / RECORD_NAME, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    )
