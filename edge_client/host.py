"""A vehicle host: one process with one vehicle, or many that share encoder sessions, frames and network loop.

Every vehicle keeps its own connection, presence and state; threads they have in common (`edge_client.crew`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from datasets.catalog import label_space
from datasets.conditions import Condition
from datasets.divided import open_frames, owned_frames
from datasets.frame import FrameSource
from datasets.partition import partition_frames
from edge_client.conversation import DEFAULT_OFFLINE_S, Finished, Patience, Stopped
from edge_client.crew import Crew, Seat
from edge_client.errors import VehicleError
from edge_client.frames import FrameCache, Sight, VehicleFrames, limit_opencv_threads
from edge_client.health import MachineHealth
from edge_client.learners.own import find_learner
from edge_client.metrics import VehicleNow
from edge_client.opening import Openings
from edge_client.own_frames import check_own_frames
from edge_client.permission import Permission
from edge_client.recent import Seeing
from edge_client.source.settings import SourceConfig
from edge_client.spool import DEFAULT_SPOOL_MB
from edge_client.vehicle import Vehicle, VehicleSettings, new_session
from protocol.errors import MENDABLE, SettingError
from protocol.json_files import decode_json
from protocol.local_model import largest_message_bytes
from protocol.messages import Health, Status
from protocol.session.link import (
    DEFAULT_PAYLOAD_LIMIT_BYTES,
    SMALLEST_PAYLOAD_LIMIT_BYTES,
    Connect,
    VehicleLink,
    encode_status,
)
from protocol.session.presence import DEFAULT_STEP_S, Heartbeat, Presence
from protocol.session.topics import STATUS, check_id, check_vehicle_id, client_id, topic
from protocol.session.transport import Will
from protocol.watchdog import Watchdog

log = logging.getLogger(__name__)

_OWN_SPLITS = ("train", "val", "test")
_LOOK_S = 0.5
"""How often a vehicle is looked at for which nothing arrives."""
_DURATIONS = (
    "heartbeat_s",
    "connect_timeout_s",
    "retry_s",
    "give_up_s",
    "offline_s",
    "step_s",
    "when_poll_s",
)


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read from and written to JSON; unknown keys are refused."""


class SightConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What frames are seen through."""

    condition: str
    """`fog:3`: a row of `datasets.conditions.CONDITIONS` and its severity, 1 to 5."""
    seed: int = 0

    def __post_init__(self) -> None:
        Condition.parse(self.condition)

    def sight(self) -> Sight:
        """The same, to apply."""
        return Sight(Condition.parse(self.condition), self.seed)


class VehicleConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One vehicle of a host."""

    id: str
    bundle: str
    """Folder of its encoder bundle."""
    state: str
    """Folder for what it learns."""
    local_model: str | None = None
    """Folder of the whole network's programs, for federated averaging alone."""
    local_head: str | None = None
    """Folder of its local head, for learning from its own labels alone."""
    predictions: dict[str, str] = {}
    """Folders for what it predicts where nobody else can, in federated averaging: on its own test frames
    (`test`), on the test split of the whole fleet (`fleet`)."""
    latest: str | None = None
    """Folder for the latest predictions of a few frames, where nobody else can make them; None = none."""
    frames: dict[str, tuple[str, ...]] = {}
    """Frame keys by split (train, val, test, ood, source, fleet); empty = the whole data set, split by
    contiguous blocks."""
    sight: SightConfig | None = None
    """What it sees its own frames through; None = clear."""
    ood_sights: dict[str, SightConfig] = {}
    """What its ood frames were seen through by the vehicles that own them, by key; others are clear."""

    def __post_init__(self) -> None:
        check_vehicle_id(self.id)


class HostConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One vehicle process."""

    fleet: str
    dataset: str = "cityscapes"
    """A row of `datasets.catalog.DATASETS`."""
    label_space: str = "cityscapes"
    """Classes of the network that looks at frames without labels (`datasets.catalog.label_space`); others
    bring their own."""
    data_root: str | None = None
    """Folder of the data set; None: frames come from `source`."""
    source: SourceConfig | None = None
    """The camera of the host's one vehicle; None: frames are a data set's."""
    test_split: str | None = None
    """The data set's test split, of which `fleet` frames are (`datasets.divided.open_frames`)."""
    vehicles: tuple[VehicleConfig, ...]
    threads: int = 1
    """ONNX Runtime threads of one inference."""
    provider: str = "auto"
    """What encoders and heads run on: `cpu`, `cuda`, `tensorrt`, or another that this ONNX Runtime has;
    `auto` = CUDA where it gives what the CPU gives, else the CPU."""
    encoder_mode: str = "auto"
    """How a changed θ runs: `bind`, `rebuild`, or `auto` = the faster here, measured at the start."""
    allowed_learners: tuple[str, ...] = ()
    """Estimators and learners that are not ours and that the cloud may name, by `package.module:name`."""
    payload_limit_bytes: int = DEFAULT_PAYLOAD_LIMIT_BYTES
    """Messages are sent in parts of at most this size; brokers have limits of their own."""
    heartbeat_s: float = 10.0
    connect_timeout_s: float = 60.0
    retry_s: float = 5.0
    give_up_s: float = 600.0
    offline_s: float = DEFAULT_OFFLINE_S
    """How long its vehicles wait for a network that is gone; `give_up_s` is for a cloud that is silent."""
    spool_mb: int = DEFAULT_SPOOL_MB
    """How much of a turn may wait on a vehicle's disk while there is no network."""
    frames_checked: bool = False
    """Whether somebody has read every frame already, as the launcher has; else this process does, first."""
    when: str | None = None
    """Whether its vehicles may work: a file with `yes` or `no`, or `command:` and a command line; None =
    always (`edge_client.permission`)."""
    update_key: str | None = None
    """File of the operator's public key, with which updates must be signed; None = no update is taken."""
    when_poll_s: float = 10.0
    """How often that is looked at."""
    health: bool = False
    """Whether it tells how its machine is, in status, log and metrics; one of its vehicles does for all."""
    step_s: float = DEFAULT_STEP_S
    """The longest that one step of a vehicle's work may take, a batch for instance; after that it no longer
    says that it is alive."""

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet id")
        if not self.vehicles:
            raise SettingError("a vehicle host needs at least one vehicle, got none")
        if (self.data_root is None) == (self.source is None):
            raise SettingError("a vehicle host needs a data_root or a source, not both and not neither")
        if self.source is not None and (len(self.vehicles) > 1 or self.vehicles[0].frames or self.test_split):
            raise SettingError("a source has one vehicle, which divides its frames by itself: no test_split")
        if self.payload_limit_bytes < SMALLEST_PAYLOAD_LIMIT_BYTES:
            raise SettingError(
                f"payload_limit_bytes must be at least {SMALLEST_PAYLOAD_LIMIT_BYTES}, "
                f"got {self.payload_limit_bytes}"
            )
        if self.threads < 1:
            raise SettingError(f"threads must be at least 1, got {self.threads}")
        if self.encoder_mode not in ("auto", "bind", "rebuild"):
            raise SettingError(f"encoder_mode must be auto, bind or rebuild, got {self.encoder_mode!r}")
        for name in _DURATIONS:
            if not getattr(self, name) > 0:
                raise SettingError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.spool_mb < 0:
            raise SettingError(f"spool_mb must be at least 0, got {self.spool_mb}")


def read_host_config(path: Path) -> HostConfig:
    """Read a JSON file.

    Raises:
        VehicleError: it is missing or does not describe a host; the message names the key.
    """
    try:
        return decode_json(path.read_bytes(), HostConfig)
    except OSError as error:
        raise VehicleError(f"can't read the vehicle host's settings {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VehicleError(f"{path}: {error}") from error


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
    ) -> None:
        """Open data set and bundles; `connect` makes each vehicle's transport, `recorded` are the frames of
        the config's source, `watchdog` hears of each vehicle's loop, `seeing` tells how its camera comes on.

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
            self._vehicles[0][2].clock,
            connect_timeout_s=self._config.connect_timeout_s,
            look_every_s=min(self._config.retry_s, _LOOK_S),
        )
        self._wakes = [partial(crew.wake, seat) for seat in seats]
        for wake, (_, _, link, _) in zip(self._wakes, self._vehicles, strict=True):
            link.on_arrival(wake)
        with Heartbeat(self._presences, self._config.heartbeat_s):
            crew.run()
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
        bundle, host = opened.bundle, msgspec.structs.replace(self._config, **opened.settings)
        splits = self._splits(config)
        frames = VehicleFrames(self._cache(bundle.spec.image_size), splits, _sights(config, splits))
        session = new_session()
        gone = encode_status(Status(vehicle=config.id, session=session, online=False, beat=0))

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
        )
        presence = Presence(
            link.announce,
            config.id,
            session,
            step_s=host.step_s,
            stamped=self._watchdog.watch(config.id),
            health=partial(self._told_by, config.id),
        )
        vehicle = Vehicle(
            VehicleSettings(
                vehicle=config.id,
                allowed_learners=host.allowed_learners,
                spool_bytes=host.spool_mb * 1_000_000,
                patience=Patience(
                    retry_s=host.retry_s, give_up_s=host.give_up_s, offline_s=host.offline_s
                ),
            ),
            link=link,
            session=session,
            bundle=bundle,
            encoder=opened.encoder,
            frames=frames,
            label_space=self._source.label_space.name,
            states=opening.states(opened),
            updates=opening.intake(link, frames, retry_s=host.retry_s),
            local_model=opened.models.local_model(
                config.local_model, bundle, config.predictions, config.latest
            ),
            local_head=opened.local_head,
            stop=self._stop,
            alive=presence.stamp,
            may_work=self._permission.holds,
        )
        return config.id, vehicle, link, presence

    def _told_by(self, name: str) -> Health | None:
        """What a vehicle tells of the machine: of those that share it, one tells all, the first that is there;
        that the car allows no work, each does."""
        there = (vehicle.id for vehicle in self._config.vehicles if vehicle.id not in self._left)
        if self.health is not None and name == next(there, None):
            return self.health.now()
        return None if self._config.when is None else Health(is_paused=self._permission.is_refused)

    def _cache(self, image_size: tuple[int, int]) -> FrameCache:
        if image_size not in self._caches:
            self._caches[image_size] = FrameCache(self._source, image_size)
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
