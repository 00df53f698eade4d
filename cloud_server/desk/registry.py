"""Who is in the fleet: sessions, presence, declarations and byte counts of every vehicle."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cloud_server.desk.agreement import Agreement
from cloud_server.desk.answers import Told
from cloud_server.desk.declaration import Declaration
from cloud_server.desk.ledger import UploadCounts
from cloud_server.desk.served import ServedCounts
from cloud_server.desk.versions import UsedVersion, with_turn
from cloud_server.desk.work import WorkCounts
from cloud_server.errors import CloudError, RequestError
from protocol.messages import (
    SPLITS,
    Health,
    Hello,
    LabelOffer,
    Labels,
    Recall,
    Request,
    SplitScores,
    Status,
    Upload,
    Version,
)
from protocol.seldom import is_logged
from protocol.session.clock import REAL_CLOCK, Clock

log = logging.getLogger(__name__)

Entry = TypeVar("Entry")

_LOGGED = 1000
"""Times: more than a bad link brings in weeks, and no more than a disk can take."""
_HEALTH_TOLD_EVERY_S = 300.0
_MOST_SESSIONS = 8
"""Of one vehicle, remembered at a time."""


@dataclass(kw_only=True)
class VehicleRecord:
    """What the cloud knows of one vehicle."""

    hello: Hello | None = None
    declared: Declaration | None = None
    """Its bundle and frames, in whatever process it joined first."""
    failed: str = ""
    """Why the run goes on without it; empty while it takes part."""
    refused: str = ""
    """Why its latest hello was turned away; empty where it was not."""
    session: str = ""
    """Of the process that has been taken in."""
    sessions: dict[str, bool] = field(default_factory=dict)
    """Whether a process of this vehicle is online, by session, as the broker and they themselves say."""
    former: list[str] = field(default_factory=list)
    """Sessions that another one has succeeded."""
    displaced: Hello | None = None
    """Of the process whose place the present one took because nothing was heard of it, not because it was
    known to be gone; None once the present one has finished a turn."""
    pending: dict[str, Counter[str]] = field(default_factory=dict)
    """PUBLISH bytes of processes that have not been taken in, by session and message type."""
    last_seen: float = 0.0
    """By the registry's clock: its latest sign of life."""
    uplink: Counter[str] = field(default_factory=Counter)
    """PUBLISH bytes from this vehicle by message type."""
    downlink: Counter[str] = field(default_factory=Counter)
    """PUBLISH bytes to this vehicle by message type."""
    round_trip_ms: int | None = None
    """Between the vehicle and the broker, as its latest status says."""
    reconnects: int = 0
    """Of the process that has been taken in, as its latest status says."""
    health: Health | None = None
    """Of its machine, as it says; for people to see."""
    health_told_at: float | None = None
    """By the registry's clock."""
    certificate_days: int | None = None
    """Until the vehicle's certificate ends, as its latest status says; None: far off."""
    told_gone: bool = False
    """Whether the latest that was told of its connection is that it ended."""
    warned_of_days: int = 30
    """The fewest that have been warned of; in the beginning, what is soon."""
    queries: int = 0
    answers_per_frame: int = 0
    """Most answers that queries have brought about any one frame in one turn."""
    told: Told = field(default_factory=Told)
    repeated_bytes: int = 0
    """PUBLISH bytes that came again, after a lost acknowledgement or a lost answer; not part of `uplink`."""
    rejects: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    """How often each thing has happened that the vehicle can make happen as often as it likes."""
    fleet_bytes: Counter[str] = field(default_factory=Counter)
    """PUBLISH bytes, `up` and `down`, about frames of the fleet's test split; not part of `uplink` and
    `downlink`, which are what a run costs that is not scored on one."""
    using: dict[str, Version] = field(default_factory=dict)
    """Updates that the vehicle runs, by kind, as it says."""
    update_notes: dict[str, str] = field(default_factory=dict)
    """What has become of updates on the vehicle, as it says, by digest."""
    versions: tuple[UsedVersion, ...] = ()
    """What it has finished turns with."""
    uploads: UploadCounts = field(default_factory=UploadCounts)
    work: WorkCounts = field(default_factory=WorkCounts)
    served: ServedCounts = field(default_factory=ServedCounts)
    """Not part of `uplink` and `downlink`: what a run costs does not depend on who drives."""

    @property
    def online(self) -> bool:
        """Whether any process of this vehicle is there."""
        return any(self.sessions.values())

    @property
    def is_paused(self) -> bool:
        """Whether its car does not allow it to work now, as its latest status says."""
        return self.health is not None and self.health.is_paused

    @property
    def is_gone(self) -> bool:
        """Whether the process that was taken in has left, or the broker has published its will."""
        return self.sessions.get(self.session) is False

    def is_news(self, what: str) -> bool:
        """Count that it has happened; whether it is logged: the first times, then ever more rarely."""
        self.repeated[what] += 1
        return is_logged(self.repeated[what], first=_LOGGED)

    def health_is_due(self, health: Health, now: float) -> bool:
        """Take in what it says of its machine; whether to tell of it: every few minutes, or if it changes."""
        before, self.health = self.health, health
        now_is = (health.is_paused, health.is_throttled)
        changes = before is not None and (before.is_paused, before.is_throttled) != now_is
        since_s = None if self.health_told_at is None else now - self.health_told_at
        if since_s is None or since_s >= _HEALTH_TOLD_EVERY_S or (changes and self.is_news("health")):
            self.health_told_at = now
            return True
        return False

    def note_turn(self, turn: int) -> None:
        """A turn was finished, with what the vehicle runs now."""
        declared, self.displaced = self.declared, None
        assert declared is not None, "a vehicle with a turn has joined"
        self.versions = with_turn(
            self.versions,
            turn,
            self.using,
            encoder=declared.encoder,
            bundle_digest=declared.bundle_digest,
        )

    def count_up(self, session: str, kind: str, packet_bytes: int) -> None:
        """Count what a process says in this vehicle's name: as its uplink, once it has been taken in."""
        if session == self.session:
            self.uplink[kind] += packet_bytes
        else:
            _newest(self.pending, session, Counter())[kind] += packet_bytes

    def take_in(self, hello: Hello, now: float, *, is_bound: bool = True) -> None:
        """From now on the vehicle is the process that says this hello, and what it declared when it joined
        binds it, unless it is not bound yet."""
        if self.session not in ("", hello.session):
            if self.displaced is None and not self.is_gone:
                self.displaced = self.hello
            self.former = [*self.former, self.session][-_MOST_SESSIONS:]
            self.health = None
        if hello.session in self.former:
            self.former.remove(hello.session)
        self.hello, self.session, self.last_seen = hello, hello.session, now
        if not is_bound or self.declared is None:
            self.declared = Declaration.of(hello)
        self.refused = ""
        self.sessions = {hello.session: True}
        self.uplink += self.pending.get(hello.session, Counter())
        self.pending.clear()

    def traffic(self) -> dict[str, int | None]:
        """What has crossed and over which link, as events tell of it."""
        return {
            "uplink_bytes": sum(self.uplink.values()),
            "downlink_bytes": sum(self.downlink.values()),
            "round_trip_ms": self.round_trip_ms,
            "reconnects": self.reconnects,
            "certificate_days": self.certificate_days,
        }

    def note_certificate(self, days: int | None) -> bool:
        """Whether it is time to warn of its end: with each day fewer, so that nobody can fill a log."""
        self.certificate_days = days
        if days is None or days >= self.warned_of_days:
            return False
        self.warned_of_days = days
        return True

    def note(self, session: str, *, online: bool) -> None:
        """A process says that it is there, or the broker that it is not."""
        _newest(self.sessions, session, online)
        self.sessions[session] = online


class Registry:
    """The expected vehicles, and what they have to agree on."""

    def __init__(
        self,
        vehicles: Sequence[str],
        *,
        label_space: str,
        feature_shapes: Sequence[tuple[int, int, int]] | None,
        image_size: tuple[int, int] | None = None,
        frame_bytes: int | None = None,
        equipment: Sequence[str] = (),
        clock: Clock = REAL_CLOCK,
    ) -> None:
        """`feature_shapes` are those that vehicles may declare; None = the one that most have when it is
        settled; so is `image_size` (width, height).
        `frame_bytes`: see `CloudConfig`; `equipment` is what every vehicle must have."""
        self.vehicles = {vehicle: VehicleRecord() for vehicle in vehicles}
        self.agreement = Agreement(
            label_space=label_space,
            feature_shapes=None if feature_shapes is None else tuple(feature_shapes),
            image_size=image_size,
            frame_bytes=frame_bytes,
            equipment=tuple(equipment),
        )
        self._clock = clock
        self._bound: set[str] = set()
        """Vehicles that may no longer declare something else than they have."""
        self.announced: dict[str, Version] = {}
        """Updates of bundles, by what the bundle is known by: vehicles may come back with them."""
        self.shares_encoder: bool | None = None
        """Whether vehicles begin their turns at an encoder that they have in common; None: not known yet."""
        self.strangers = 0
        """Rejected messages of ids that are not in the fleet, or of none."""
        self.readmits = False
        """Whether who has failed, or come too late, may say hello again."""

    def know(self, declared: Mapping[str, Declaration], failed: Mapping[str, str]) -> None:
        """What an earlier process of this cloud knew of the vehicles."""
        for vehicle, declaration in declared.items():
            self.vehicles[vehicle].declared = declaration
            self._bound.add(vehicle)
        for vehicle, reason in failed.items():
            self.vehicles[vehicle].failed = reason

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width, height in pixels of all frames; None: not settled yet."""
        return self.agreement.image_size

    @property
    def declared(self) -> dict[str, Declaration]:
        """By vehicle that has ever joined."""
        return {vehicle: r.declared for vehicle, r in self.vehicles.items() if r.declared is not None}

    def record(self, vehicle: str) -> VehicleRecord:
        """The record of a vehicle.

        Raises:
            RequestError: the fleet has no such vehicle.
        """
        try:
            return self.vehicles[vehicle]
        except KeyError:
            some = ", ".join(list(self.vehicles)[:5]) + (", …" if len(self.vehicles) > 5 else "")
            raise RequestError(
                f"vehicle {vehicle!r} is not in this fleet ({len(self.vehicles)} vehicles: {some}); "
                f"add it to the cloud's vehicle list"
            ) from None

    def check(self, hello: Hello) -> None:
        """Look whether a vehicle fits the run.

        Raises:
            RequestError: it doesn't; the reason is for its operator.
        """
        record = self.record(hello.vehicle)
        if record.failed and not self.readmits:
            raise RequestError(f"it has failed in this run, which goes on without it: {record.failed}")
        self.agreement.check(hello)
        declared, announced = record.declared, {} if self.shares_encoder else self.announced
        if declared is not None and hello.vehicle in self._bound:
            difference = declared.difference(Declaration.of(hello), announced)
            if difference:
                raise RequestError(difference)

    def settle(self) -> list[tuple[Hello, str]]:
        """The run begins with those who are there: what they have declared binds them from now on.

        Returns the hellos of those who are turned away, with why: they have other sizes than most.
        """
        turned_away = []
        for vehicle, reason in self.agreement.settle(self.declared).items():
            record = self.vehicles[vehicle]
            hello, record.hello, record.declared, record.refused = record.hello, None, None, reason
            if hello is not None:
                turned_away.append((hello, reason))
        self._bound.update(self.declared)
        return turned_away

    def admit(self, hello: Hello) -> bool:
        """Take a vehicle in; True if this is a process that was not known before.

        Raises:
            RequestError: see `check`.
        """
        self.check(hello)
        record = self.record(hello.vehicle)
        is_new = record.session != hello.session
        record.take_in(hello, self._clock.now(), is_bound=hello.vehicle in self._bound)
        return is_new

    def note_status(self, status: Status) -> None:
        """Follow the presence of a vehicle's processes; each speaks for its own session only."""
        record = self.record(status.vehicle)
        record.note(status.session, online=status.online)
        if status.session == record.session:
            record.last_seen = self._clock.now()
            if status.online:
                record.round_trip_ms, record.reconnects = status.round_trip_ms, status.reconnects
                if record.note_certificate(status.certificate_days):
                    days = status.certificate_days
                    log.warning("%s: its certificate ends in %d days; renew it", status.vehicle, days)

    def count_reject(self, vehicle: str) -> int:
        """Count a rejected message; returns how many there were of this vehicle, or of all strangers."""
        record = self.vehicles.get(vehicle)
        if record is None:
            self.strangers += 1
            return self.strangers
        record.rejects += 1
        return record.rejects

    @property
    def present(self) -> list[str]:
        """Vehicles of which some process is there."""
        return [name for name, record in self.vehicles.items() if record.online]

    def missing(self) -> list[str]:
        """Vehicles of the run that have not introduced themselves."""
        return [v for v, record in self.vehicles.items() if record.hello is None and not record.failed]

    @property
    def failed(self) -> dict[str, str]:
        """By vehicle that the run goes on without: why."""
        return {vehicle: record.failed for vehicle, record in self.vehicles.items() if record.failed}

    def feature_shape(self, vehicle: str) -> tuple[int, int, int]:
        """C, H, W of one frame's features on a vehicle that has introduced itself."""
        return self.declaration(vehicle).feature_shape

    def frames(self, vehicle: str, split: str) -> range:
        """Indices of a split on a vehicle: frames are numbered through the splits in order."""
        frames = self.declaration(vehicle).frames
        first = sum(frames.get(earlier, 0) for earlier in SPLITS[: SPLITS.index(split)])
        return range(first, first + frames.get(split, 0))

    def is_about_fleet_split(self, request: Request | Recall) -> bool:
        """Whether a request brings scores, features or labels of the fleet's test split."""
        if isinstance(request, Upload | SplitScores):
            return request.split == "fleet"
        if self.vehicles[request.vehicle].declared is None:
            return False
        fleet = self.frames(request.vehicle, "fleet")
        if isinstance(request, LabelOffer):
            return any(label.index in fleet for label in request.labels)
        return isinstance(request, Labels) and any(label.index in fleet for label, _ in request.labels)

    def declaration(self, vehicle: str) -> Declaration:
        """What a vehicle said of itself when it joined."""
        declared = self.vehicles[vehicle].declared
        if declared is None:
            raise CloudError(f"vehicle {vehicle!r} has not introduced itself")
        return declared


def _newest(entries: dict[str, Entry], session: str, entry: Entry) -> Entry:
    """The entry of a session, made if need be; the oldest ones go, so that nobody can fill the memory."""
    if session not in entries:
        for oldest in list(entries)[: max(0, len(entries) + 1 - _MOST_SESSIONS)]:
            del entries[oldest]
        entries[session] = entry
    return entries[session]
