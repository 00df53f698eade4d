"""Updates for vehicles: what lies in the run's folder `updates` is offered, given out, and followed.

The cloud signs nothing and checks no signature: vehicles do, with the operator's key. That an update lies
here is how the operator announces it: a vehicle may come back with its bundle.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cloud_server.desk.desk import Desk
from cloud_server.desk.registry import Registry, VehicleRecord
from cloud_server.events import Events
from protocol.messages import FetchUpdate, UpdateNews, UpdateOffer, UpdatePart, Version
from protocol.messages.updates import PART_BYTES
from protocol.session.clock import Clock
from protocol.update_file import SUFFIX, Manifest, UpdateError, digest_of, read_update

log = logging.getLogger(__name__)

FOLDER_NAME = "updates"
"""In a run folder: who puts a file there offers it to the vehicles that it is for."""
_LOOK_S = 1.0
_MOST_DIGESTS = 64


@dataclass(frozen=True, kw_only=True)
class _Shelved:
    path: Path
    stamp: tuple[int, int]
    version: Version
    manifest: Manifest
    size_bytes: int


class Updates:
    """The updates of one run; used by the server's thread."""

    def __init__(
        self,
        folder: Path,
        *,
        fleet: str,
        desk: Desk,
        registry: Registry,
        events: Events,
        clock: Clock,
        offer_every_s: float,
    ) -> None:
        """An offer that has not been answered is made again after `offer_every_s`."""
        self._folder = folder
        self._fleet = fleet
        self._desk = desk
        self._registry = registry
        self._events = events
        self._clock = clock
        self._offer_every_s = offer_every_s
        self._looked_at = float("-inf")
        self._shelf: dict[str, _Shelved] = {}
        """By digest."""
        self._seen: dict[Path, tuple[int, int]] = {}
        self._told_of: set[tuple[str, str]] = set()
        """Vehicles and digests of offers that are in the log."""
        self._held_back: set[str] = set()
        self._offered: dict[tuple[str, str, str], float] = {}
        """When, by vehicle, its session, and digest."""

    def look_after(self) -> None:
        """Look what lies there, now and then, and offer it to who has not heard of it."""
        now = self._clock.now()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        try:
            self._look()
        except OSError as error:
            log.warning("%s can't be looked at: %s", self._folder, error)
        for digest, shelved in self._shelf.items():
            for vehicle, record in self._registry.vehicles.items():
                if (
                    record.hello is not None
                    and record.online
                    and shelved.manifest.is_for(self._fleet, vehicle)
                ):
                    self._offer(vehicle, record, digest, shelved, now)

    def heed(self, message: FetchUpdate | UpdateNews) -> None:
        """A vehicle asks for bytes, or tells."""
        if isinstance(message, UpdateNews):
            self._take_news(message)
            return
        shelved = self._shelf.get(message.digest)
        if shelved is None or not shelved.manifest.is_for(self._fleet, message.vehicle):
            return  # it was taken away; the vehicle asks until it has another offer
        try:
            with shelved.path.open("rb") as file:
                file.seek(message.offset)
                data = file.read(PART_BYTES)
        except (OSError, OverflowError) as error:
            log.warning("%s can't be read: %s", shelved.path, error)
            return
        part = UpdatePart(vehicle=message.vehicle, digest=message.digest, offset=message.offset, data=data)
        self._desk.send(message.vehicle, part)

    def _look(self) -> None:
        if not self._folder.is_dir():
            return
        found = {path: _stamp(path) for path in sorted(self._folder.glob(f"[!.]*{SUFFIX}"))}
        self._shelf = {
            digest: shelved
            for digest, shelved in self._shelf.items()
            if found.get(shelved.path) == shelved.stamp
        }
        for path, stamp in found.items():
            if self._seen.get(path) != stamp:
                self._seen[path] = stamp
                self._shelve(path, stamp)
        self._registry.announced = {
            shelved.manifest.bundle_digest: shelved.version
            for shelved in self._shelf.values()
            if shelved.manifest.kind == "bundle"
        }

    def _shelve(self, path: Path, stamp: tuple[int, int]) -> None:
        try:
            update = read_update(path)
            digest = digest_of(path)
        except (UpdateError, OSError) as error:
            log.warning("not offered: %s", error)
            self._events.event("update", state="not offered", reason=str(error))
            return
        manifest = update.manifest
        version = Version(kind=manifest.kind, name=manifest.name, version=manifest.version, digest=digest)
        if reason := self._why_not(manifest):
            log.warning("%s is not offered: %s", path, reason)
            self._events.event("update", state="not offered", reason=reason, **_told(version))
            return
        self._shelf[digest] = _Shelved(
            path=path, stamp=stamp, version=version, manifest=manifest, size_bytes=update.size_bytes
        )
        log.info("update %s: %s %s, version %d", path.name, version.kind, version.name, version.version)

    def _why_not(self, manifest: Manifest) -> str:
        if manifest.fleet != self._fleet:
            return f"it is for fleet {manifest.fleet}, this one is {self._fleet}"
        return ""

    def _offer(self, vehicle: str, record: VehicleRecord, digest: str, shelved: _Shelved, now: float) -> None:
        if digest in record.update_notes or not self._may_be_offered(shelved):
            return
        key = (vehicle, record.session, digest)
        if now - self._offered.get(key, float("-inf")) < self._offer_every_s:
            return
        self._offered[key] = now
        offer = UpdateOffer(vehicle=vehicle, update=shelved.version, size_bytes=shelved.size_bytes)
        is_sent = self._desk.send(vehicle, offer) is not None
        if is_sent and (vehicle, digest) not in self._told_of:
            self._told_of.add((vehicle, digest))
            self._events.event("update", vehicle=vehicle, state="offered", **_told(shelved.version))

    def _may_be_offered(self, shelved: _Shelved) -> bool:
        """Whether the run can go on with it: not with another bundle, where vehicles share their encoders."""
        shares = self._registry.shares_encoder
        if shelved.version.kind != "bundle" or shares is False:
            return True
        if shares and shelved.version.digest not in self._held_back:
            self._held_back.add(shelved.version.digest)
            reason = "the vehicles of this run share their encoders; put it into the folder of the next run"
            log.warning("%s is not offered: %s", shelved.path, reason)
            self._events.event("update", state="not offered", reason=reason, **_told(shelved.version))
        return False

    def _take_news(self, news: UpdateNews) -> None:
        record = self._registry.vehicles[news.vehicle]
        self._offered = {key: at for key, at in self._offered.items() if key[0] != news.vehicle}
        record.using = {version.kind: version for version in news.versions}
        for note in news.notes:
            digest, state = note.update.digest, note.state
            if record.update_notes.get(digest) == state or not record.is_news("update"):
                continue
            record.update_notes[digest] = state
            for oldest in list(record.update_notes)[:-_MOST_DIGESTS]:
                del record.update_notes[oldest]
            log.log(
                logging.INFO if state in ("trial", "used") else logging.WARNING,
                "%s: update %s %s, version %d: %s%s",
                *(news.vehicle, note.update.kind, note.update.name, note.update.version, state),
                f": {note.reason}" if note.reason else "",
            )
            told = {**_told(note.update), "reason": note.reason}
            self._events.event("update", vehicle=news.vehicle, state=state, **told)


def _told(version: Version) -> dict[str, object]:
    """An update as events tell of it."""
    return {
        "kind": version.kind,
        "update": version.name,
        "version": version.version,
        "digest": version.digest,
    }


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
