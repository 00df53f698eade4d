"""A private authority in a folder, and what it hands out.

    authority.json, ca.key      the record and the key that signs: they stay here
    update.key                  what signs updates (`blackfleet update sign`): it stays here, too
    ca.crt                      whom everybody trusts
    broker/                     what the broker reads: configuration, access list, certificate, revoked ones
    FLEET/                      what `?identity=` names: of each client NAME.crt and NAME.key, ca.crt, and
                                update.pub, by which a vehicle knows its operator's updates; NAME.seal, by
                                which cloud and vehicle know each other, and cloud.seal, of which those are

All files are their owner's alone. A certificate stands in the record before its file appears, so that none is
ever valid that can't be revoked; the same command again makes what a crash has left unmade.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from fleet.errors import OperatorError
from fleet.provision import access, openssl
from fleet.provision.names import BROKERS, Identity, parse_common_name
from fleet.provision.record import RECORD_NAME, Record, read_record, write_record
from protocol.atomic import write_bytes_atomic
from protocol.mqtt.certificates import CertificateFault, certificates_in, validity
from protocol.seal_files import SUFFIX, make_seals
from protocol.update_signature import PRIVATE_NAME, PUBLIC_NAME, make_key, public_key

AUTHORITY_DAYS = 3650
DAYS = 365
_LOCK_NAME = ".lock"
_SERIAL_BITS = 120
BROKER_FOLDER = "broker"


class Authority:
    """An authority at work; only one process has it open."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record
        self.until = _end(folder / "ca.crt")
        if self.until <= datetime.now(timezone.utc):
            raise OperatorError(
                f"the authority {folder}/ca.crt ended on {self.until:%Y-%m-%d}; make one in another folder, "
                "and give everybody certificates of it"
            )

    def fleet_folder(self, fleet: str) -> Path:
        """Where certificates and keys of a fleet lie."""
        return self.folder / fleet

    def issue(self, whose: Identity, days: int) -> None:
        """A new key and a certificate for it, in place of what there is.

        Raises:
            OperatorError, OSError: it can't be made.
        """
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as made:
            place = Path(made)
            openssl.make_request(place, str(whose))
            certificate = self._sign(whose, place / f"{whose}.csr", days, by_request=False)
            key = (place / f"{whose}.key").read_bytes()
        target = self._files_of(whose)
        _write(target.with_suffix(".key"), key)
        _write(target.with_suffix(".crt"), certificate)
        self._keep(self.record.with_latest_handed_out())

    def sign(self, request: Path, whose: Identity, days: int) -> Path:
        """A certificate for a key that stays where it was made; gives its file.

        Raises:
            OperatorError, OSError: it can't be made.
        """
        certificate = self._sign(whose, request, days, by_request=True)
        target = self._files_of(whose).with_suffix(".crt")
        target.with_suffix(".key").unlink(
            missing_ok=True
        )  # of an earlier certificate; it doesn't fit this one
        _write(target, certificate)
        self._keep(self.record.with_latest_handed_out())
        return target

    def revoke(self, whose: Identity) -> None:
        """Take back all certificates of a client; its files go."""
        self._keep(self.record.with_revoked(whose))
        for suffix in (".key", ".crt", SUFFIX):
            self._files_of(whose).with_suffix(suffix).unlink(missing_ok=True)

    def has(self, whose: Identity) -> bool:
        """Whether a client has a certificate that was handed out: not where a crash came before its files."""
        latest = self.record.latest(whose)
        return latest is not None and latest.handed_out

    def keeps_its_key(self, whose: Identity) -> bool:
        """Whether its key was made elsewhere."""
        latest = self.record.latest(whose)
        return latest is not None and latest.by_request

    def change(self, record: Record) -> None:
        """Keep other hosts, another port, one fleet more."""
        self._keep(record)

    def write_out(self) -> None:
        """What the broker reads, and the authority's certificate for every fleet."""
        trusted, update_key = (self.folder / "ca.crt").read_bytes(), self._public_update_key()
        clients = [each for fleet in self.record.fleets for each in self.record.known(fleet)]
        broker = self.folder / BROKER_FOLDER
        for folder in (broker, *map(self.fleet_folder, self.record.fleets)):
            _make_folder(folder)
            _write(folder / "ca.crt", trusted)
            if folder != broker:
                _write(folder / PUBLIC_NAME, update_key)
                of_fleet = [each for each in clients if each.fleet == folder.name and each.role == "vehicle"]
                make_seals(folder, folder.name, [each.name for each in of_fleet])
        elsewhere = self.record.broker_folder
        configuration = access.mosquitto_configuration(
            elsewhere or str(broker.absolute()), self.record.port, None if elsewhere else getpass.getuser()
        )
        _write(broker / "mosquitto.conf", configuration.encode())
        _write(broker / "access.acl", access.mosquitto_access(clients).encode())
        _write(broker / "emqx-acl.conf", access.emqx_access(clients).encode())
        revoked = [
            (int(each.serial, 16), each.revoked, str(each.identity))
            for each in self.record.issued
            if each.revoked is not None
        ]
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as made:
            # For as long as the authority: with a list that has ended, a broker takes nobody.
            days = max(1, (self.until - datetime.now(timezone.utc)).days)
            openssl.make_revoked_list(self.folder, Path(made) / "list", revoked, days)
            _write(broker / "revoked.crl", (Path(made) / "list").read_bytes())

    def _sign(self, whose: Identity, request: Path, days: int, *, by_request: bool) -> bytes:
        end = datetime.now(timezone.utc) + timedelta(days=days)
        if end > self.until:
            left = (self.until - datetime.now(timezone.utc)).days
            raise OperatorError(
                f"--days {days} would outlive the authority, whose last day is {self.until:%Y-%m-%d}; "
                f"{left} at most"
            )
        serial = secrets.randbits(_SERIAL_BITS) | 1 << _SERIAL_BITS
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as made:
            out = Path(made) / "certificate"
            hosts = self.record.hosts if whose == BROKERS else ()
            openssl.sign(self.folder, request, out, serial=serial, days=days, hosts=hosts)
            self._keep(self.record.with_issued(whose, serial, _end(out), by_request=by_request))
            return out.read_bytes()

    def _public_update_key(self) -> bytes:
        """Of the key that signs updates, which is made where there is none."""
        if not (self.folder / PRIVATE_NAME).exists():
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as made:
                make_key(Path(made))
                _write(self.folder / PRIVATE_NAME, (Path(made) / PRIVATE_NAME).read_bytes())
        return public_key(self.folder / PRIVATE_NAME)

    def _files_of(self, whose: Identity) -> Path:
        """Without a suffix, which it takes by `with_suffix`: a name has no full stop in it."""
        folder = self.folder / (whose.fleet or BROKER_FOLDER)
        _make_folder(folder)
        return folder / whose.name

    def _keep(self, record: Record) -> None:
        write_record(self.folder, record)
        self.record = record


@contextlib.contextmanager
def opened(folder: Path, first: Record | None) -> Iterator[Authority]:
    """The authority of a folder; where there is none, a new one with this `first` record.

    Raises:
        OperatorError: it has ended, or another process is at work with it.
        OSError: the folder can't be read or written.
    """
    before = os.umask(0o077)
    try:
        _make_folder(folder)
        with (folder / _LOCK_NAME).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OperatorError(f"another command is at work in {folder}; wait for its end") from error
            _clear_away(folder)
            record = read_record(folder)
            if record is None:
                assert first is not None, f"no authority in {folder}"
                record = _begin(folder, first)
            yield Authority(folder, record)
    finally:
        os.umask(before)


def requested(request: Path) -> Identity:
    """Who asks for a certificate.

    Raises:
        OperatorError: it is no request, or one that nobody of a fleet makes.
    """
    return parse_common_name(openssl.requested_name(request))


def _clear_away(folder: Path) -> None:
    """What commands that were killed have left half made, keys among it."""
    for left in folder.glob(".new-*"):
        shutil.rmtree(left)
    for left in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        left.unlink()


def _begin(folder: Path, first: Record) -> Record:
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    # An authority that a crash left without a record has signed nothing.
    if set(others) - {"ca.key", "ca.crt"}:
        raise OperatorError(
            f"{folder} holds other things ({', '.join(others[:3])}) and no {RECORD_NAME}; choose a new folder"
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as made:
        openssl.make_authority(Path(made), f"blackfleet {first.fleets[0]}"[:64], AUTHORITY_DAYS)
        for name in ("ca.key", "ca.crt"):
            _write(folder / name, (Path(made) / name).read_bytes())
    write_record(folder, first)
    return first


def _end(certificate: Path) -> datetime:
    try:
        return validity(certificates_in(certificate)[0])[1]
    except CertificateFault as error:
        raise OperatorError(f"{certificate} {error}; restore it from a copy") from error


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Where it says something new: a file's time tells who reads it whether to read again."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return
    write_bytes_atomic(path, data)
