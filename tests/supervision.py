"""Tiny fleets whose processes are killed at chosen messages, and started again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection

from fleet_fixtures import TinyFleet, tag

from cloud_server.errors import Stopped as CloudStopped
from cloud_server.run.service import serve
from edge_client.conversation import Stopped as VehicleStopped
from edge_client.host import Host
from protocol.session.memory import MemoryBus, MemoryTransport
from protocol.session.transport import BrokerUnreachable, Traffic, Transport, Will


class _Process:
    """What stands for one operating-system process: killed, it says nothing more."""

    def __init__(self, bus: MemoryBus) -> None:
        self.stop = threading.Event()
        self._bus = bus
        self.transports: list[MemoryTransport] = []

    def connect(self, client_id: str, will: Will, on_connect: Callable[[], None]) -> Transport:
        transport = self._bus.client(client_id, will=will, on_connect=on_connect)
        self.transports.append(transport)
        return transport

    @property
    def traffic(self) -> Traffic:
        """Of the process's only client."""
        [transport] = self.transports
        return transport.traffic

    def cut(self) -> None:
        """Lose the connections for good, whereupon the bus publishes the wills."""
        for transport in self.transports:
            transport.drop()

    def kill(self) -> None:
        """Lose the connections and end the threads."""
        self.stop.set()
        self.cut()


Saboteur = Callable[["Supervisor", str, str], None]
"""Sees (supervisor, tag of the message, vehicle) of each message at the moment of its publishing."""


class Supervisor:
    """Runs a tiny fleet, one process a vehicle, and starts again what was killed."""

    def __init__(self, fleet: TinyFleet, bus: MemoryBus | None = None, *, give_up_s: float = 30.0) -> None:
        """`give_up_s` is the vehicles' patience."""
        self.fleet = fleet
        self.bus = bus or MemoryBus()
        self._give_up_s = give_up_s
        self.kills: list[str] = []
        self._over = threading.Event()
        self._cloud = _Process(self.bus)
        self._hosts: dict[str, _Process] = {}
        self.failures: list[Exception] = []
        """What has ended vehicles, kills apart."""
        self._buried: set[str] = set()
        self._before: dict[str, Callable[[], None]] = {}

    def before_vehicle(self, car: str, act: Callable[[], None]) -> None:
        """Do something in the vehicle's place before its process first starts."""
        self._before[car] = act

    def sabotage(self, saboteur: Saboteur) -> None:
        """Let `saboteur` see every message and kill what it likes."""
        self.bus.record(lambda topic, payload, qos: saboteur(self, tag(payload), topic.split("/")[3]))

    def kill_at(
        self, points: set[tuple[str, str, int]], of_the_cloud: Collection[tuple[str, str, int]]
    ) -> None:
        """Kill the car concerned, or the cloud where the point is one `of_the_cloud`, at each point.

        A point is (car, message tag, how many of these so far); one that the run has come by is taken out of
        `points`.
        """
        seen: Counter[tuple[str, str]] = Counter()

        def kill(supervisor: Supervisor, message_tag: str, car: str) -> None:
            seen[car, message_tag] += 1
            point = (car, message_tag, seen[car, message_tag])
            if point in points:
                points.remove(point)
                if point in of_the_cloud:
                    supervisor.kill_cloud()
                else:
                    supervisor.kill_vehicle(car)

        self.sabotage(kill)

    def run_with_kills(self, points: set[tuple[str, str, int]], victim: str | None = None) -> None:
        """`kill_at`, then `run`; the run must have come by every point.

        Without a `victim` the car and the cloud are killed by turns, at one point after the other as sorted.
        """
        ahead = set(points)
        of_the_cloud = set(sorted(points)[1::2]) if victim is None else points if victim == "cloud" else set()
        self.kill_at(ahead, of_the_cloud)
        self.run()
        assert not ahead, "the run must have come by every point"

    def kill_cloud(self) -> None:
        self.kills.append("cloud")
        self._cloud.kill()

    def kill_vehicle(self, car: str, *, for_good: bool = False) -> None:
        self.kills.append(car)
        if for_good:
            self._buried.add(car)
        self._hosts[car].kill()

    def cut_everyone(self) -> None:
        """Take the broker away for good."""
        for process in (self._cloud, *self._hosts.values()):
            process.cut()

    def transports(self, car: str) -> list[MemoryTransport]:
        """Those of the vehicle's present process."""
        return self._hosts[car].transports

    def traffic(self, car: str) -> Traffic:
        """What the bus has counted for the vehicle's present process."""
        return self._hosts[car].traffic

    def run(self) -> None:
        """Run until the cloud has written its result.

        Raises:
            Exception: what ended the cloud, or else a vehicle, other than a kill.
        """
        threads = [
            threading.Thread(target=self._keep_vehicle, args=(car,), name=car)
            for car in self.fleet.config.vehicles
        ]
        for thread in threads:
            thread.start()
        try:
            self._keep_cloud()
        except BrokerUnreachable:
            raise  # the vehicles notice by themselves
        except Exception:
            self._over.set()
            for host in list(self._hosts.values()):
                host.stop.set()
            raise
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        if self.failures:
            raise self.failures[0]

    def _keep_cloud(self) -> None:
        resume = False
        while True:
            try:
                serve(
                    self.fleet.config,
                    self._cloud.connect,
                    run_folder=self.fleet.run_folder,
                    resume=resume,
                    stop=self._cloud.stop,
                )
                return
            except CloudStopped:
                self._cloud = _Process(self.bus)
                resume = True

    def _keep_vehicle(self, car: str) -> None:
        self._before.get(car, lambda: None)()
        while not self._over.is_set() and car not in self._buried:
            try:
                self.run_vehicle(car)
                return
            except VehicleStopped:
                continue
            except Exception as error:
                self.failures.append(error)
                return

    def run_vehicle(self, car: str) -> None:
        """One life of a vehicle's process.

        Raises:
            Exception: what ended it.
        """
        process = self._hosts[car] = _Process(self.bus)
        Host(self.fleet.host(car, give_up_s=self._give_up_s), process.connect, process.stop).run()
