"""A vehicle host as numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from protocol.messages import Health
from protocol.metrics import PREFIX, Family, bytes_of, seconds_of, single


class VehicleNow(NamedTuple):
    """What a vehicle of this host does."""

    vehicle: str
    connected: bool
    """Whether it has a session with the broker."""
    in_turn: bool
    turns_done: int


def host_families(states: Callable[[], Sequence[VehicleNow]]) -> Iterator[Family]:
    """One series of each for every vehicle of the host, whose names its own settings say."""
    now = states()
    kinds: tuple[tuple[str, str, Literal["counter", "gauge"], list[float]], ...] = (
        (
            "connected",
            "1 while a vehicle of this host has a session with the broker.",
            "gauge",
            [float(each.connected) for each in now],
        ),
        (
            "in_turn",
            "1 while a vehicle of this host does a turn.",
            "gauge",
            [float(each.in_turn) for each in now],
        ),
        (
            "turns_total",
            "Turns that a vehicle of this host has done.",
            "counter",
            [float(each.turns_done) for each in now],
        ),
    )
    for name, text, kind, values in kinds:
        yield Family(
            name=f"{PREFIX}host_{name}",
            help=text,
            kind=kind,
            labels=("vehicle",),
            samples=[((each.vehicle,), value) for each, value in zip(now, values, strict=True)],
        )


def machine_families(health: Callable[[], Health]) -> Iterator[Family]:
    """How the machine of the host is, and its camera; what it does not tell has no series."""
    now = health()
    for name, text, value in (
        ("temperature_celsius", "Of the hottest part of the host's machine.", now.temperature_c),
        ("throttled", "1 while heat or current slows the host's machine down.", now.is_throttled),
        ("free_memory_bytes", "Memory that the host's machine can still give.", bytes_of(now.free_memory_mb)),
        ("free_disk_bytes", "Room for what its vehicles learn.", bytes_of(now.free_disk_mb)),
        ("paused", "1 while the car does not allow the host's vehicles to work.", now.is_paused),
        ("camera_rate_hertz", "Frames that the host's camera gives.", now.camera_hz),
        ("served_rate_hertz", "Class maps of what its camera sees.", now.served_hz),
        (
            "served_age_seconds",
            "How old a frame is when its class map is there, of 95 in 100 at most.",
            seconds_of(now.served_ms),
        ),
    ):
        yield single(f"{PREFIX}host_{name}", text, None if value is None else float(value))
    yield single(
        f"{PREFIX}host_camera_dropped_total",
        "Frames of the host's camera that nobody has looked at, because newer ones were there.",
        now.camera_dropped,
        kind="counter",
    )
