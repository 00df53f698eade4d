"""A vehicle host: one process with one vehicle, or many that share encoder sessions, frames and network loop.

Every vehicle keeps its own connection, presence and state; threads they have in common (`edge_client.crew`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from datasets.catalog import label_space
from datasets.divided import open_frames, owned_frames
from datasets.frame import FrameSource
from datasets.labels import LabelSpace
from datasets.partition import partition_frames
from edge_client.conversation import Finished, Patience, Stopped
from edge_client.crew import MOST_WORKERS, Crew, Seat
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.sessions import CPU
from edge_client.frames import DEFAULT_CAPACITY_BYTES, FrameCache, Sight, VehicleFrames, limit_opencv_threads
from edge_client.health import MachineHealth
from edge_client.host_config import HostConfig, SightConfig, VehicleConfig, read_host_config
from edge_client.learners.own import find_learner
from edge_client.metrics import VehicleNow
from edge_client.opening import Openings
from edge_client.own_frames import check_own_frames
from edge_client.permission import Permission
from edge_client.recent import Seeing
from edge_client.updates.pull import Pulled
from edge_client.vehicle import Vehicle, VehicleSettings, new_session
from protocol.errors import MENDABLE
from protocol.local_model import largest_message_bytes
from protocol.messages import Health, Status
from protocol.seal_files import vehicle_seal
from protocol.session.clock import REAL_CLOCK, Clock
from protocol.session.link import Connect, VehicleLink, encode_status
from protocol.session.presence import Presence, heartbeat
from protocol.session.topics import STATUS, client_id, topic
from protocol.session.transport import Will
from protocol.watchdog import Watchdog

__all__ = ["Host", "HostConfig", "SightConfig", "VehicleConfig", "read_host_config"]

log = logging.getLogger(__name__)

_OWN_SPLITS = ("train", "val", "test")
_FEW = 16
_CAPACITY_OF_MANY_BYTES = 16 * 1024 * 1024
"""Of the frames that more vehicles share: those of the turns under way, not of the whole fleet."""
_LOOK_S = 0.5
"""How often a vehicle is looked at for which nothing arrives."""


class ShowsCloud(Protocol):
    """What shows the cloud what the host's vehicle sees now."""

    def attach(self, link: VehicleLink, session: str, encoder: Encoder, label_space: LabelSpace) -> None:
        """There is a way to the cloud."""

    def follow(self, theta: NDArray[np.float32]) -> None:
        """The vehicle's encoder is this θ from now on."""


class Host:
    """Builds the vehicles of a process and runs them until the last has left."""

    def __init__(
        self,
        config: HostConfig,
        connect: Connect,
        stop: threading.Event,
        recorded: FrameSource | None = None,
        *,
        watchdog: Watchdog | None = None,
        seeing: Callable[[], Seeing] = Seeing,
        clock: Clock = REAL_CLOCK,
        most_workers: int = MOST_WORKERS,
        through_cloud: ShowsCloud | None = None,
        pulled: Callable[[], Pulled | None] = lambda: None,
    ) -> None:
        """Open data set and bundles; `connect` makes each vehicle's transport, `recorded` are the frames of
        the config's source, `watchdog` hears of each vehicle's loop, `seeing` tells how its camera comes on;
        at most `most_workers` turns are under way at once; `through_cloud` shows the cloud what is seen;
        `pulled` is the update that was fetched last by other means than the cloud.

        Raises:
            VehicleError, BundleError, DatasetError, OSError: something is missing or does not fit.
            Stopped: the process was asked to stop.
        """
        limit_opencv_threads(config.threads)
        for name in config.allowed_learners:
            find_learner(name)
        self._config = config
        self._stop = stop
        if recorded is not None:
            self._source = recorded
        else:
            assert config.data_root is not None, "a source has brought its frames"
            self._source = open_frames(
                config.dataset, Path(config.data_root), config.test_split, label_space(config.label_space)
            )
        if not config.frames_checked:
            keys = [
                key for vehicle in config.vehicles for part in self._splits(vehicle).values() for key in part
            ]
            # What is remembered lies in the user's cache folder; a camera's frames leave nothing there.
            check_own_frames(self._source, keys, stop, threads=config.threads, remember=config.source is None)
        self._openings = Openings(config, self._source.label_space)
        self._caches: dict[tuple[int, int], FrameCache] = {}
        self._failures: list[Exception] = []
        self._left: set[str] = set()
        """Vehicles that have come to their end."""
        self._connect = connect
        self._clock = clock
        self._most_workers = most_workers
        self._through_cloud = through_cloud
        self._pulled = pulled
        self._watchdog = watchdog or Watchdog()
        self._permission = Permission(config.when, poll_s=config.when_poll_s)
        self.health: MachineHealth | None = None
        """How the machine is; None: nobody wants to know."""
        if config.health:
            self.health = MachineHealth(
                Path(config.vehicles[0].state), lambda: self._permission.is_refused, seeing=seeing
            )
        self._vehicles = [self._build(vehicle) for vehicle in config.vehicles]
        self._presences = [presence for *_, presence in self._vehicles]
        self._wakes: list[Callable[[], None]] = []
        """What tells that something has arrived for a vehicle; once they run."""

    def run(self) -> None:
        """Run all vehicles.

        Raises:
            Exception: a vehicle's failure, after the others have left: the first bug, else the first mistake.
            Stopped: the process was asked to stop.
        """
        seats = [
            Seat(name, vehicle, partial(self._leave, place))
            for place, (name, vehicle, *_) in enumerate(self._vehicles)
        ]
        crew = Crew(
            seats,
            self._clock,
            connect_timeout_s=self._config.connect_timeout_s,
            look_every_s=min(self._config.retry_s, _LOOK_S),
            most_workers=self._most_workers,
            must_stop=self._stop.is_set,
        )
        self._wakes = [partial(crew.wake, seat) for seat in seats]
        for wake, (_, _, link, _) in zip(self._wakes, self._vehicles, strict=True):
            link.on_arrival(wake)
        with heartbeat(self._presences, self._config.heartbeat_s, self._clock):
            crew.run()
        self._openings.close()
        if self._failures:
            bugs = [failure for failure in self._failures if not isinstance(failure, MENDABLE)]
            raise (bugs or self._failures)[0]
        if self._stop.is_set():
            raise Stopped

    def states(self) -> list[VehicleNow]:
        """What each of its vehicles does now; from any thread."""
        return [
            VehicleNow(name, link.transport.connected, vehicle.in_turn, vehicle.turns_done)
            for name, vehicle, link, _ in self._vehicles
        ]

    def _build(self, config: VehicleConfig) -> tuple[str, Vehicle, VehicleLink, Presence]:
        opening = self._openings.of(config)
        opened = opening.open()
        if opened.encoder.provider != CPU:
            opened.encoder.warm_up(self._config.warm_up)
            if opened.local_head is not None:
                opened.local_head.warm_up(self._config.warm_up)
        bundle, host = opened.bundle, msgspec.structs.replace(self._config, **opened.settings)
        splits = self._splits(config)
        frames = VehicleFrames(
            self._cache(bundle.spec.image_size),
            splits,
            _sights(config, splits),
            names=config.names,
            label_square=config.label_square,
        )
        session = new_session()
        seal = None if host.seals is None else vehicle_seal(Path(host.seals), host.fleet, config.id, session)
        gone = encode_status(Status(vehicle=config.id, session=session, online=False, beat=0), seal)

        def connected() -> None:
            link.resume()
            presence.announce()

        transport = self._connect(
            client_id(host.fleet, config.id, session),
            Will(topic(STATUS, host.fleet, config.id), gone),
            connected,
        )
        folder = None if config.local_model is None else Path(config.local_model)
        link = VehicleLink(
            transport,
            host.fleet,
            config.id,
            payload_limit_bytes=host.payload_limit_bytes,
            limit_bytes=largest_message_bytes(folder),
            stall_s=host.retry_s,
            clock=self._clock,
            seal=seal,
        )
        presence = Presence(
            link.announce,
            config.id,
            session,
            step_s=host.step_s,
            stamped=self._watchdog.watch(config.id),
            health=partial(self._told_by, config.id),
            clock=self._clock.now,
        )
        if self._through_cloud is not None:
            encoder = opened.models.encoder_alone(bundle)
            self._through_cloud.attach(link, session, encoder, self._source.label_space)
        vehicle = Vehicle(
            VehicleSettings(
                vehicle=config.id,
                allowed_learners=host.allowed_learners,
                spool_bytes=host.spool_mb * 1_000_000,
                patience=Patience(retry_s=host.retry_s, give_up_s=host.give_up_s, offline_s=host.offline_s),
            ),
            link=link,
            session=session,
            bundle=bundle,
            encoder=opened.encoder,
            frames=frames,
            label_space=self._source.label_space.name,
            states=opening.states(opened),
            updates=opening.intake(link, frames, retry_s=host.retry_s, pulled=self._pulled),
            local_model=opened.models.local_model(
                config.local_model, bundle, config.predictions, config.latest, config.update
            ),
            local_head=opened.local_head,
            against_decoder=opened.models.against_decoder(config.decoder, bundle, config.decoder_weight),
            follow=None if self._through_cloud is None else self._through_cloud.follow,
            stop=self._stop,
            alive=presence.stamp,
            may_work=self._permission.holds,
        )
        return config.id, vehicle, link, presence

    def _told_by(self, name: str) -> Health | None:
        """What a vehicle tells of the machine: of those that share it, the first that is there tells all;
        that the car allows no work, each does."""
        there = (vehicle.id for vehicle in self._config.vehicles if vehicle.id not in self._left)
        if self.health is not None and name == next(there, None):
            return self.health.now()
        return None if self._config.when is None else Health(is_paused=self._permission.is_refused)

    def _cache(self, image_size: tuple[int, int]) -> FrameCache:
        if image_size not in self._caches:
            few = len(self._config.vehicles) <= _FEW
            capacity_bytes = DEFAULT_CAPACITY_BYTES if few else _CAPACITY_OF_MANY_BYTES
            self._caches[image_size] = FrameCache(self._source, image_size, capacity_bytes)
        return self._caches[image_size]

    def _splits(self, config: VehicleConfig) -> dict[str, tuple[str, ...]]:
        if config.frames:
            return dict(config.frames)
        owned = owned_frames(self._source).refs
        frames = partition_frames(owned, [config.id], method="uniform", seed=0)[config.id]
        return {"train": frames.train, "val": frames.val, "test": frames.test}

    def _leave(self, place: int, error: Exception) -> Vehicle | None:
        """A vehicle has come to its end, and why; gives the one that takes its place after an update."""
        name, vehicle, link, presence = self._vehicles[place]
        try:
            is_renewed = vehicle.is_renewed(error)
        except OSError as fault:
            is_renewed, error = False, fault
        if is_renewed:
            log.info("the vehicle is opened anew: %s", error)
        else:
            self._note_end(error)
            self._watchdog.leave(name)
            self._left.add(name)
        _say_goodbye(link, presence)
        if is_renewed:
            try:
                return self._renew(place)
            except Exception as fault:  # it ends this vehicle, not its neighbours
                self._note_end(fault)
                self._watchdog.leave(name)
                self._left.add(name)
        return None

    def _renew(self, place: int) -> Vehicle:
        turns_done = self._vehicles[place][1].turns_done
        self._vehicles[place] = self._build(self._config.vehicles[place])
        _, vehicle, link, presence = self._vehicles[place]
        self._presences[place], vehicle.turns_done = presence, turns_done
        link.on_arrival(self._wakes[place])
        return vehicle

    def _note_end(self, error: Exception) -> None:
        if isinstance(error, Finished | Stopped):
            log.info("finished" if isinstance(error, Finished) else "stopped")
            return
        is_bug = not isinstance(error, MENDABLE)
        log.error("%s", error, exc_info=error if is_bug or log.isEnabledFor(logging.DEBUG) else None)
        self._failures.append(error)


def _say_goodbye(link: VehicleLink, presence: Presence) -> None:
    if link.transport.connected:
        presence.announce(online=False)
    link.close()


def _sights(config: VehicleConfig, splits: Mapping[str, Sequence[str]]) -> dict[str, Sight]:
    """What each frame that is not clear is seen through, by key."""
    sights = {key: sight.sight() for key, sight in config.ood_sights.items()}
    if config.sight is not None:
        own = config.sight.sight()
        sights |= {key: own for split in _OWN_SPLITS for key in splits.get(split, ())}
    return sights
