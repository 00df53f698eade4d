"""The world around a fleet in one process: its clock, its bus, each vehicle's link, device and absences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from fleet.simulation.availability import Timeline, timelines
from fleet.simulation.budget import Budget
from fleet.simulation.bus import LinkedTransport
from fleet.simulation.line import Line, Shared
from fleet.simulation.settings import SimulationPart
from fleet.simulation.spent import Spent
from fleet.simulation.throttle import ThrottledClock
from fleet.simulation.virtual_clock import VirtualClock
from protocol.noise import derive_seed
from protocol.session.memory import MemoryBus
from protocol.session.topics import CLOUD_ID
from protocol.session.transport import Transport, Will


def host_name(number: int) -> str:
    """What a host of the fleet is called."""
    return f"host-{number}"


class World:
    """One run's simulation; every draw is from the scenario's seed."""

    def __init__(
        self,
        part: SimulationPart,
        *,
        fleet: str,
        vehicles: tuple[str, ...],
        seed: int,
        hosts: int = 1,
        start_s: float = 0.0,
        bus: MemoryBus | None = None,
        tell: Callable[[str, Mapping[str, Any]], None] = lambda name, values: None,
    ) -> None:
        """`start_s`: when a run that goes on was interrupted; `tell` is told of events of the simulation.

        Raises:
            SettingError: a profile is unknown, or a trace doesn't fit.
        """
        self._part = part
        self._prefix = f"{fleet}-"
        self._vehicles = vehicles
        self._seed = seed
        self._bus = bus or MemoryBus()
        self.devices = part.device_names(vehicles, seed)
        self.links = part.link_names(vehicles)
        self._timelines = timelines(part.availability, vehicles, seed)
        found = {name: part.find_device(name) for name in set(self.devices.values())}
        self._spent = Spent(
            {CLOUD_ID: part.cloud_device, **{name: found[device] for name, device in self.devices.items()}}
        )
        kind = VirtualClock if part.time == "virtual" else ThrottledClock
        self.clock: VirtualClock | ThrottledClock = kind(
            (CLOUD_ID, *map(host_name, range(hosts))), self._spent, start_s=start_s
        )
        self._tell = tell
        self._budgets: dict[str, Budget] = {}
        """By vehicle that has one."""
        self._cells: dict[tuple[str, str], Shared] = {}
        """By name and direction."""
        self._lines: dict[str, tuple[Line, Line]] = {}
        self._transports: dict[str, LinkedTransport] = {}

    def connect(self, client_id: str, will: Will, on_connect: Callable[[], None]) -> Transport:
        """The cloud's session, beside the bus, or a vehicle's over its link."""
        vehicle = client_id.removeprefix(self._prefix).rpartition("-")[0]
        if vehicle == CLOUD_ID:
            return self._bus.client(client_id, will=will, on_connect=on_connect)
        profile = self._part.find_link(self.links[vehicle])
        budget_mb = self._part.budget_mb_of(vehicle, profile)
        if budget_mb is not None:
            self._budgets[vehicle] = Budget(budget_mb)
        up, down = (
            Line(
                mbit_s=mbit_s,
                latency_ms=profile.latency_ms,
                jitter_ms=profile.jitter_ms,
                loss=profile.loss,
                random=self._random("link", vehicle, way),
                shared=self._cell(vehicle, way),
                spend=partial(self._spend, vehicle),
            )
            for way, mbit_s in (("up", profile.up_mbit_s), ("down", profile.down_mbit_s))
        )
        transport = LinkedTransport(
            self._bus.client(client_id, will=will),
            on_connect,
            times=self.clock,
            up=up,
            down=down,
            round_trip_s=2 * profile.latency_ms / 1000,
            next_there=partial(self._next_there, vehicle),
        )
        self._lines[vehicle], self._transports[vehicle] = (up, down), transport
        timeline = self._timelines.get(vehicle)
        if timeline is not None:
            self._plan_change(transport, timeline)
        return transport

    def stamp(self) -> Mapping[str, Any]:
        """What every event tells besides."""
        return {"virtual_s": round(self.clock.now(), 3)}

    def kept(self) -> Mapping[str, Any]:
        """What has been counted so far, for a run that is killed and goes on from here."""
        self.clock.catch_up()
        return {
            "busy_s": dict(self._spent.busy_s),
            "vehicles": {
                vehicle: {
                    "transport": (transport.away_s, transport.absences, transport.packets_again),
                    "bytes": [line.bytes for line in self._lines[vehicle]],
                    "budget": budget.kept() if (budget := self._budgets.get(vehicle)) else None,
                }
                for vehicle, transport in self._transports.items()
            },
        }

    def go_on(self, kept: Mapping[str, Any]) -> None:
        """Count on from what was `kept`; what it took to come together again is none of the run's."""
        self._spent.busy_s.clear()
        self._spent.busy_s.update(kept["busy_s"])
        for vehicle, counted in kept["vehicles"].items():
            if vehicle not in self._transports:
                continue
            self._transports[vehicle].go_on(*counted["transport"])
            for line, sent in zip(self._lines[vehicle], counted["bytes"], strict=True):
                line.bytes = sent
            if counted["budget"] is not None and (budget := self._budgets.get(vehicle)):
                budget.go_on(*counted["budget"])
                if budget.out_until > self.clock.now():
                    self._run_out(vehicle, budget)

    def add_to(self, result: dict[str, Any]) -> None:
        """Put into the result when it was there, what each vehicle's time went into, and bytes by link."""
        now = self.clock.now()
        by_link: dict[str, dict[str, int]] = {}
        for vehicle, transport in self._transports.items():
            busy_s = self._spent.busy_s[vehicle]
            result["vehicles"].get(vehicle, {}).update(
                device=self.devices[vehicle],
                link=self.links[vehicle],
                busy_s=round(busy_s, 3),
                waiting_s=round(max(0.0, now - busy_s), 3),
                away_s=round(transport.away_s, 3),
                absences=transport.absences,
                packets_again=transport.packets_again,
            )
            if budget := self._budgets.get(vehicle):
                result["vehicles"].get(vehicle, {}).update(
                    budget_mb=budget.month_mb, out_of_data=budget.times_out
                )
            up, down = self._lines[vehicle]
            entry = by_link.setdefault(self.links[vehicle], {"up": 0, "down": 0})
            entry["up"] += up.bytes
            entry["down"] += down.bytes
        result["virtual_s"] = round(now, 3)
        result["cloud_busy_s"] = round(self._spent.busy_s[CLOUD_ID], 3)
        result["bytes_by_link"] = by_link

    def close(self) -> None:
        """Nothing is planned any more."""
        if isinstance(self.clock, ThrottledClock):
            self.clock.close()

    def _cell(self, vehicle: str, way: str) -> Shared | None:
        name = self._part.cell_name(vehicle)
        if name is None:
            return None
        profile = self._part.find_cell(name)
        mbit_s = profile.up_mbit_s if way == "up" else profile.down_mbit_s
        return self._cells.setdefault((name, way), Shared(mbit_s))

    def _next_there(self, vehicle: str, now: float) -> float:
        """`now`, or when the vehicle has a link again, as far as is known now."""
        timeline, budget = self._timelines.get(vehicle), self._budgets.get(vehicle)
        now = max(now, budget.out_until) if budget else now
        return timeline.next_there(now) if timeline else now

    def _spend(self, vehicle: str, packet_bytes: int) -> None:
        budget, now = self._budgets.get(vehicle), self.clock.now()
        if budget is not None and budget.spend(now, packet_bytes):
            self.clock.at(now, partial(self._run_out, vehicle, budget))

    def _run_out(self, vehicle: str, budget: Budget) -> None:
        transport = self._transports[vehicle]
        transport.drop()
        self.clock.at(budget.out_until, partial(self._come_back, vehicle))
        self._tell(
            "out_of_data",
            {"vehicle": vehicle, "budget_mb": budget.month_mb, "until_s": budget.out_until, **self.stamp()},
        )

    def _come_back(self, vehicle: str) -> None:
        if self._next_there(vehicle, self.clock.now()) <= self.clock.now():
            self._transports[vehicle].come_back()

    def _random(self, *parts: str) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=derive_seed(self._seed, *parts)))

    def _plan_change(self, transport: LinkedTransport, timeline: Timeline) -> None:
        change = timeline.next_change(self.clock.now())
        if change is not None:
            self.clock.at(change, partial(self._change, transport, timeline, change))

    def _change(self, transport: LinkedTransport, timeline: Timeline, at_s: float) -> None:
        if timeline.is_there(at_s):
            transport.come_back()  # which looks again whether anything else keeps it away
        else:
            transport.drop()
        following = timeline.next_change(at_s)
        if following is not None:
            self.clock.at(following, partial(self._change, transport, timeline, following))
