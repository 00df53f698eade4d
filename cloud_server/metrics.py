"""A run's events as numbers for Prometheus: what the cloud and its vehicles have done so far.

Names of vehicles are those of the run, never what a stranger says; each has series of its own as long as it
takes part, and up to a number of vehicles above which sums have to do.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cloud_server.events import Recorder
from protocol.metrics import PREFIX, Durations, Family, bytes_of, seconds_of, single

MOST_VEHICLES = 500
"""That have series of their own: some ten each."""
EXPIRY_S = 300.0
"""After so long away, or failed, a vehicle has no series any more."""
_TURN_BOUNDS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_KINDS = ("initial", "learn", "train", "final")
"""Of turns: labels are these and no others."""
_SPLITS = ("test", "ood", "fleet", "source")


@dataclass
class _Vehicle:
    heard_at: float = 0.0
    """In seconds since 1970; 0 = never."""
    online: bool = False
    left: bool = False
    """Whether its connection ended, and it has not come back."""
    changed_at: float = 0.0
    """When it came or left, or failed."""
    failed: bool = False
    in_turn: bool = False
    turns: int = 0
    loss: float | None = None
    val_miou: float | None = None
    best_val_miou: float | None = None
    test_miou: dict[str, float] = field(default_factory=dict)
    """By split."""
    queries: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    rejects: int = 0
    round_trip_s: float | None = None
    reconnects: int = 0
    health: Mapping[str, Any] = field(default_factory=dict)
    """As its latest event of this name says."""
    certificate_days: int | None = None

    @property
    def state(self) -> str:
        if self.failed:
            return "failed"
        if not self.heard_at:
            return "missing"
        if not self.online:
            return "away"
        return "working" if self.in_turn else "waiting"


_RETURNS = ("joined", "back")
_STATES = ("missing", "waiting", "working", "away", "failed")


class RunMetrics(Recorder):
    """Takes in a run's events in one thread, and gives families in any other."""

    def __init__(self, labels: Mapping[str, str], *, clock: Callable[[], float] = time.time) -> None:
        """`labels` say which run it is, in the one metric that has them."""
        self._labels = dict(labels)
        self._clock = clock
        self._lock = threading.Lock()
        self._vehicles: dict[str, _Vehicle] = {}
        self._numbers: dict[str, float] = {}
        """Of the whole run, by the metric's name without its prefix."""
        self._turns: Counter[str] = Counter()
        self._durations = Durations(_TURN_BOUNDS_S)
        self._scores: dict[tuple[str, str, str], float] = {}
        """By kind of stage, split and vehicle."""

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        with self._lock:
            self._take(name, values)

    def _take(self, name: str, values: Mapping[str, Any]) -> None:
        now = float(values.get("time", self._clock()))
        self._numbers["last_event_timestamp_seconds"] = now
        vehicle = self._vehicle(name, values, now)
        match name:
            case "run":
                for other in values["vehicles"]:
                    self._vehicles.setdefault(other, _Vehicle())
                self._numbers["rounds_planned"] = values["rounds"]
                self._numbers["stages_planned"] = values["stages"]
                self._numbers["stages_committed"] = values["first"]
                self._numbers["run_complete"] = 0
            case "committed":
                self._numbers["stages_committed"] = values["stage"] + 1
            case "curve":
                for key, said in (("training_loss", "loss"), ("validation_miou_ratio", "val_miou")):
                    self._note(key, values.get(said))
                self._note("training_steps_total", values.get("steps"))
            case "result":
                self._numbers["run_complete"] = 1
            case "repeated":
                self._numbers["stages_repeated_total"] = self._numbers.get("stages_repeated_total", 0) + 1
            case "processes" | "stopped":
                for each in self._vehicles.values():
                    each.online = each.in_turn = each.left = False
                    each.changed_at = now
            case "reject" if vehicle is None:
                self._numbers["stranger_rejects_total"] = values["count"]
        if vehicle is not None:
            self._take_of(vehicle, name, values, now)

    def _vehicle(self, name: str, values: Mapping[str, Any], now: float) -> _Vehicle | None:
        """Whom it is about: who has joined, or is told to be of the run; nobody else has a name here."""
        said = values.get("vehicle")
        if not isinstance(said, str):
            return None
        if name in ("joined", "learning", "validation", "evaluation"):
            vehicle = self._vehicles.setdefault(said, _Vehicle())
        elif (known := self._vehicles.get(said)) is not None:
            vehicle = known
        else:
            return None
        if name in _RETURNS:
            vehicle.left = False
        # The cloud works for a vehicle that has left, too: what it tells of that is no sign of life.
        if not vehicle.left and name not in ("left", "failed", "dropped", "reject", "undelivered"):
            if not vehicle.online:
                vehicle.online, vehicle.changed_at = True, now
            vehicle.heard_at = now
        return vehicle

    def _take_of(self, vehicle: _Vehicle, name: str, values: Mapping[str, Any], now: float) -> None:
        match name:
            case "left":
                vehicle.online, vehicle.left, vehicle.changed_at = False, True, now
            case "failed":
                vehicle.failed, vehicle.in_turn, vehicle.changed_at = True, False, now
            case "readmitted":
                vehicle.failed = False
            case "turn":
                vehicle.in_turn = True
                self._numbers["round"] = values["round"]
            case "dropped":
                vehicle.in_turn = False
                self._turns["dropped"] += 1
            case "restarted":
                self._turns["restarted"] += 1
            case "reject":
                vehicle.rejects = values["count"]
            case "learning":
                vehicle.loss = values["loss"] if values["loss"] is not None else vehicle.loss
            case "validation":
                vehicle.val_miou, vehicle.best_val_miou = values["miou"], values["best"]
            case "evaluation" if values["miou"] is not None:
                vehicle.test_miou[values["split"]] = values["miou"]
                self._scores[values["kind"], values["split"], values["vehicle"]] = values["miou"]
            case "health":
                vehicle.health = values
            case "turn_done":
                vehicle.in_turn = False
                vehicle.turns += 1
                self._turns[values["kind"]] += 1
                vehicle.loss = values["loss"] if values.get("loss") is not None else vehicle.loss
                self._durations.add(values["vehicle_s"])
        if name in ("turn_done", "traffic"):
            vehicle.queries = values["queries"]
            vehicle.uplink_bytes, vehicle.downlink_bytes = values["uplink_bytes"], values["downlink_bytes"]
            vehicle.reconnects, took_ms = values.get("reconnects", 0), values.get("round_trip_ms")
            vehicle.round_trip_s = None if took_ms is None else took_ms / 1000
            vehicle.certificate_days = values.get("certificate_days")

    def _note(self, key: str, value: float | None) -> None:
        if value is not None:
            self._numbers[key] = value

    # Families ---------------------------------------------------------------------------------------------

    def families(self) -> Iterator[Family]:
        """All of it, as it is now."""
        with self._lock:
            yield from [*self._of_run(), *self._of_vehicles()]

    def _of_run(self) -> Iterator[Family]:
        names, values = tuple(self._labels), tuple(self._labels.values())
        yield Family(
            name=f"{PREFIX}run_info", help="Which run this is.", labels=names, samples=[(values, 1.0)]
        )
        for name, text, kind in _OF_RUN:
            yield single(f"{PREFIX}{name}", text, self._numbers.get(name), kind)
        for name, text in _SUMS.items():
            total = sum(getattr(vehicle, name) for vehicle in self._vehicles.values())
            yield single(f"{PREFIX}{name}_total", f"{text}, all vehicles.", total, "counter")
        yield Family(
            name=f"{PREFIX}turns_total",
            help="Turns that vehicles have finished, by kind of stage.",
            kind="counter",
            labels=("kind",),
            samples=[((kind,), self._turns[kind]) for kind in _KINDS],
        )
        yield single(
            f"{PREFIX}turns_restarted_total", "Turns started over.", self._turns["restarted"], "counter"
        )
        yield single(
            f"{PREFIX}turns_dropped_total", "Turns past their deadline.", self._turns["dropped"], "counter"
        )
        yield Family(
            name=f"{PREFIX}turn_duration_seconds",
            help="From a turn's grant to its end.",
            kind="histogram",
            samples=[((), self._durations.histogram())],
        )
        yield Family(
            name=f"{PREFIX}test_miou_ratio",
            help="Mean IoU on test frames, mean over vehicles, from 0 to 1.",
            labels=("kind", "split"),
            samples=list(self._mean_scores()),
        )
        states = Counter(vehicle.state for vehicle in self._vehicles.values())
        yield Family(
            name=f"{PREFIX}vehicles",
            help="Vehicles of the run, by what they do.",
            labels=("state",),
            samples=[((state,), states[state]) for state in _STATES],
        )

    def _mean_scores(self) -> Iterator[tuple[tuple[str, str], float]]:
        failed = {name for name, vehicle in self._vehicles.items() if vehicle.failed}
        for kind in _KINDS:
            for split in _SPLITS:
                found = [
                    miou
                    for (of_kind, of_split, vehicle), miou in self._scores.items()
                    if (of_kind, of_split) == (kind, split) and vehicle not in failed
                ]
                if found:
                    yield (kind, split), sum(found) / len(found)

    def _of_vehicles(self) -> Iterator[Family]:
        now = self._clock()
        there = {
            name: vehicle
            for name, vehicle in self._vehicles.items()
            if vehicle.heard_at
            if (vehicle.online and not vehicle.failed) or now - vehicle.changed_at <= EXPIRY_S
        }
        shown = dict(list(there.items())[:MOST_VEHICLES])
        yield single(
            f"{PREFIX}vehicles_without_series",
            f"Vehicles that take part and have no series of their own, beyond {MOST_VEHICLES}.",
            len(there) - len(shown),
        )
        for name, text, kind, read in _OF_A_VEHICLE:
            read_all = [((vehicle,), read(state)) for vehicle, state in shown.items()]
            yield Family(
                name=f"{PREFIX}vehicle_{name}",
                help=text,
                kind=kind,
                labels=("vehicle",),
                samples=[(label, float(value)) for label, value in read_all if value is not None],
            )
        yield Family(
            name=f"{PREFIX}vehicle_test_miou_ratio",
            help="Mean IoU on a vehicle's test frames at its last evaluation, from 0 to 1.",
            labels=("vehicle", "split"),
            samples=[
                ((name, split), vehicle.test_miou[split])
                for name, vehicle in shown.items()
                for split in _SPLITS
                if split in vehicle.test_miou
            ],
        )


_Kind = Literal["counter", "gauge"]
_OF_RUN: tuple[tuple[str, str, _Kind], ...] = (
    ("rounds_planned", "Rounds of the run.", "gauge"),
    ("round", "Round under way; the last evaluation is one more.", "gauge"),
    ("stages_planned", "Stages of the run.", "gauge"),
    ("stages_committed", "Stages that are done and will not be done again.", "gauge"),
    ("stages_repeated_total", "Stages that no vehicle finished in time.", "counter"),
    ("run_complete", "1 when the result is written.", "gauge"),
    ("training_loss", "Mean loss of the round, as its loss function counts.", "gauge"),
    ("training_steps_total", "First-order steps of the cloud's network.", "counter"),
    ("validation_miou_ratio", "Mean IoU on validation frames, mean over vehicles, from 0 to 1.", "gauge"),
    ("stranger_rejects_total", "Messages of nobody in the fleet, rejected.", "counter"),
    ("last_event_timestamp_seconds", "When something happened in the run.", "gauge"),
)
_SUMS = {
    "uplink_bytes": "What vehicles have sent in PUBLISH packets",
    "downlink_bytes": "What vehicles were sent in PUBLISH packets",
    "queries": "Queries that vehicles have asked",
    "rejects": "Messages of vehicles that were rejected",
}
_OF_A_VEHICLE: tuple[tuple[str, str, _Kind, Callable[[_Vehicle], float | None]], ...] = (
    ("online", "1 while a vehicle is there.", "gauge", lambda v: v.online),
    ("in_turn", "1 while a vehicle has a turn.", "gauge", lambda v: v.in_turn),
    ("last_event_timestamp_seconds", "When a vehicle was last heard of.", "gauge", lambda v: v.heard_at),
    ("turns_total", "Turns that a vehicle has finished.", "counter", lambda v: v.turns),
    ("training_loss", "Latest loss of a vehicle's learning.", "gauge", lambda v: v.loss),
    (
        "validation_miou_ratio",
        "Mean IoU on its validation frames, from 0 to 1.",
        "gauge",
        lambda v: v.val_miou,
    ),
    ("best_validation_miou_ratio", "The best of these so far.", "gauge", lambda v: v.best_val_miou),
    ("uplink_bytes_total", "What a vehicle has sent.", "counter", lambda v: v.uplink_bytes),
    ("downlink_bytes_total", "What a vehicle was sent.", "counter", lambda v: v.downlink_bytes),
    ("queries_total", "Queries that a vehicle has asked.", "counter", lambda v: v.queries),
    ("rejects_total", "Messages of a vehicle that were rejected.", "counter", lambda v: v.rejects),
    (
        "round_trip_seconds",
        "From a vehicle to the broker and back, of a small packet.",
        "gauge",
        lambda v: v.round_trip_s,
    ),
    ("reconnects_total", "Sessions of a vehicle after its first one.", "counter", lambda v: v.reconnects),
    (
        "temperature_celsius",
        "Of the hottest part of a vehicle's machine, as it says.",
        "gauge",
        lambda v: v.health.get("temperature_c"),
    ),
    (
        "throttled",
        "1 while heat or current slows a vehicle's machine down.",
        "gauge",
        lambda v: v.health.get("is_throttled"),
    ),
    (
        "free_memory_bytes",
        "Memory that a vehicle's machine can still give.",
        "gauge",
        lambda v: bytes_of(v.health.get("free_memory_mb")),
    ),
    (
        "free_disk_bytes",
        "Room for what a vehicle learns.",
        "gauge",
        lambda v: bytes_of(v.health.get("free_disk_mb")),
    ),
    (
        "paused",
        "1 while a vehicle's car does not allow it to work.",
        "gauge",
        lambda v: v.health.get("is_paused"),
    ),
    (
        "camera_rate_hertz",
        "Frames that a vehicle's camera gives, as it says.",
        "gauge",
        lambda v: v.health.get("camera_hz"),
    ),
    (
        "camera_dropped_total",
        "Frames of a vehicle's camera that nobody has looked at, because newer ones were there.",
        "counter",
        lambda v: v.health.get("camera_dropped"),
    ),
    (
        "served_rate_hertz",
        "Class maps of what a vehicle's camera sees, as it says.",
        "gauge",
        lambda v: v.health.get("served_hz"),
    ),
    (
        "served_age_seconds",
        "How old a vehicle's frame is when its class map is there, of 95 in 100 at most.",
        "gauge",
        lambda v: seconds_of(v.health.get("served_ms")),
    ),
    (
        "certificate_days",
        "Until a vehicle's certificate ends, where that is fewer than 30.",
        "gauge",
        lambda v: v.certificate_days,
    ),
)
