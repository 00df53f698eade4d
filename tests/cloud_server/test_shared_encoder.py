"""Fleets whose vehicles share one encoder by its weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, IMAGE_SIZE, TinyFleet, World, tag
from supervision import Supervisor
from test_local_loss import LOCAL, fleet_of
from turn_fixtures import empty_turn

from cloud_server.algorithms.base import Context
from cloud_server.algorithms.shared_encoder import SharedEncoder
from cloud_server.config import ZerothOrderConfig
from cloud_server.errors import RequestError
from cloud_server.events import Events
from cloud_server.run.combinations import check_combination
from cloud_server.run.ended import EndedRun
from cloud_server.schedule import Kind, Stage
from datasets.catalog import open_dataset
from datasets.labels import CAMVID
from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.subspaces import subspace_of
from edge_client.frames import FrameCache, VehicleFrames
from protocol.codec.tensor import encode
from protocol.codec.weights import WeightTensor, pack, unpack
from protocol.errors import SettingError
from protocol.messages import SendEncoder, Shared, Turn, Up, Upload
from protocol.messages import SharedEncoder as Answered
from protocol.plans.adaptation import Adaptation
from protocol.plans.first_order import FirstOrder
from protocol.plans.sharing import HEAD, PHI, Sharing
from protocol.session import topics
from protocol.session.memory import MemoryBus

WEIGHTS = Sharing(encoder="weights", head=True)
_UP = msgspec.msgpack.Decoder(Up)  # type: ignore[arg-type]


def shared(world: World, folder: Path, **changes: Any) -> TinyFleet:
    """Two rounds, scales and biases, heads as well: all that can be shared."""
    settings = {"sharing": WEIGHTS, "adaptation": Adaptation(subspace="film")}
    return fleet_of(world, folder, **{**settings, **changes})


class Watched:
    """A run, what its vehicles have sent of their encoders, uploaded, and been told."""

    def __init__(self, fleet: TinyFleet, bus: MemoryBus | None = None) -> None:
        self.fleet = fleet
        self.sent: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        self.told: dict[tuple[int, str], tuple[WeightTensor, ...] | None] = {}
        """By turn and vehicle."""
        self.uploads: list[Upload] = []
        bus = bus or MemoryBus()
        bus.record(self._note)
        Supervisor(fleet, bus).run()

    def _note(self, topic: str, payload: bytes, qos: int) -> None:
        if tag(payload) == "send-encoder":
            message = _UP.decode(payload[1:])
            assert isinstance(message, SendEncoder)
            self.sent[message.turn_id, message.vehicle] = unpack(
                message.tensors, {tensor.name: tensor.shape for tensor in message.tensors}
            )
        elif tag(payload) == "shared-encoder":
            answer = msgspec.msgpack.decode(payload[1:], type=Answered)
            self.told[answer.turn_id, answer.vehicle] = answer.tensors
        elif tag(payload) == "upload":
            upload = _UP.decode(payload[1:])
            assert isinstance(upload, Upload)
            self.uploads.append(upload)


@pytest.fixture(scope="module")
def calm(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run without any disturbance."""
    return Watched(shared(tiny_world, tmp_path_factory.mktemp("shared")))


def _mean(arrays: list[np.ndarray], counts: list[int]) -> np.ndarray:
    total = np.sum([array.astype(np.float64) * n for array, n in zip(arrays, counts, strict=True)], axis=0)
    mean: np.ndarray = (total / sum(counts)).astype(np.float32)
    return mean


def test_everyone_gets_the_average_once_and_uploads_with_it(calm: Watched) -> None:
    """Stages: 0 start, 1 and 3 learning, 2 and 4 uploads, 5 final."""
    bundle = EncoderBundle.load(calm.fleet.world.bundle)
    subspace = subspace_of("film", bundle.spec, bundle.theta0)
    encoder = Encoder(bundle, mode="rebuild", threads=1)
    cache = FrameCache(open_dataset("camvid", calm.fleet.world.data_root), IMAGE_SIZE)
    for stage in (1, 3):
        sent = [calm.sent[stage, car] for car in CARS]
        assert set(sent[0]) == {PHI, HEAD} and sent[0][PHI].shape == (subspace.size,)
        assert not np.array_equal(sent[0][PHI], sent[1][PHI])
        average = {name: _mean([one[name] for one in sent], [6, 6]) for name in (PHI, HEAD)}
        assert [calm.told[stage + 1, car] for car in CARS] == [pack(average)] * 2
        theta = subspace.theta_of(average[PHI])
        uploads = [upload for upload in calm.uploads if upload.turn_id == stage + 1]
        assert {(upload.vehicle, upload.split) for upload in uploads} == {
            (car, split) for car in CARS for split in ("train", "val")
        }
        for upload in uploads:
            frames = VehicleFrames(cache, calm.fleet.frames[upload.vehicle])
            features = encode(encoder.forward(theta, frames.images(upload.frames)), bits=8)
            assert upload.features == features
    assert [calm.told[5, car] for car in CARS] == [None, None], "known: it does not cross twice"
    assert [calm.told[1, car] for car in CARS] == [(), ()]
    ended = EndedRun(calm.fleet.config, calm.fleet.run_folder)
    displacement = ended.displacement(CARS[1])
    assert displacement is not None and np.array_equal(displacement, average[PHI])


def test_killed_processes_change_nothing(calm: Watched, tiny_world: World, tmp_path: Path) -> None:
    fleet = shared(tiny_world, tmp_path)
    points = {
        ("car-1", "send-encoder", 1),
        ("car-2", "judged", 2),
        ("car-1", "shared-encoder", 4),
        ("car-2", "done", 4),
    }
    Supervisor(fleet).run_with_kills(points)
    assert fleet.fingerprint() == calm.fleet.fingerprint()
    assert fleet.scores() == calm.fleet.scores()


def test_vehicle_that_was_away_catches_up(tiny_world: World, tmp_path: Path) -> None:
    """The second car finishes neither turn of the first round: it misses the average, the upload, and so the
    loss maps that weight the next round's loss."""
    fleet = shared(
        tiny_world,
        tmp_path,
        sharing=Sharing(encoder="weights", deadline_s=2.5),
        adaptation=Adaptation(subspace="all"),
        local_loss=msgspec.structs.replace(LOCAL, weight_power=0.5),
    )
    bus = MemoryBus()
    bus.set_faults(drop=_says_in_turns(CARS[1], {1, 2}))
    run = Watched(fleet, bus)
    dropped = [(event["vehicle"], event["stage"]) for event in fleet.events("dropped")]
    assert dropped == [(CARS[1], 1), (CARS[1], 2)]
    assert run.told[2, CARS[1]] == pack({PHI: run.sent[1, CARS[0]][PHI]})
    assert run.told[3, CARS[1]] is None, "known from turn 2"
    average = _mean([run.sent[3, car][PHI] for car in CARS], [6, 6])
    assert run.told[4, CARS[1]] == pack({PHI: average})
    assert all(entry["local_miou"] for entry in fleet.result()["vehicles"].values())


@pytest.mark.parametrize(
    ("algorithm", "subspace", "victim"), [("blackfed-v1", "film", "cloud"), ("split", "all", "car")]
)
def test_encoder_goes_from_turn_to_turn(
    algorithm: str, subspace: str, victim: str, tiny_world: World, tmp_path: Path
) -> None:
    """Turns: 1 and 3 of the first car, 2 and 4 of the second, 5 of both."""

    def fleet(name: str) -> TinyFleet:
        return TinyFleet(
            tiny_world,
            tmp_path / name,
            algorithm=algorithm,
            first_order=FirstOrder(epochs=1, batch_size=4),
            sharing=Sharing(encoder="weights"),
            adaptation=Adaptation(subspace=subspace),
        )

    calm = Watched(fleet("calm"))
    assert calm.told[1, CARS[0]] == ()
    before = {turn: (turn - 1, CARS[turn % 2]) for turn in (2, 3, 4)}
    for turn, sender in before.items():
        assert calm.told[turn, CARS[(turn - 1) % 2]] == pack(calm.sent[sender])
    assert [calm.told[5, car] for car in CARS] == [pack(calm.sent[4, CARS[1]])] * 2
    killed = fleet("killed")
    points = {("car-1", "send-encoder", 1), ("car-2", "shared-encoder", 1), ("car-2", "done", 2)}
    Supervisor(killed).run_with_kills(points, victim)
    assert killed.fingerprint() == calm.fleet.fingerprint()
    assert killed.scores() == calm.fleet.scores()


def _says_in_turns(car: str, turns: set[int]) -> Callable[[str, bytes], bool]:
    """Chooses what a car sends or finishes in some turns."""

    def chosen(topic: str, payload: bytes) -> bool:
        if topics.parse(topic).vehicle != car or tag(payload) not in ("send-encoder", "done"):
            return False
        return int(msgspec.msgpack.decode(payload[1:])[3]) in turns

    return chosen


# What is taken ----------------------------------------------------------------------------------------


def turn_of(vehicle: str, shares: Shared | None = None) -> Turn:
    return empty_turn(vehicle=vehicle, grant="0" * 8, turn_id=1, sharing=shares)


def context_of(fleet: TinyFleet) -> Context:
    """What the cloud lends to an algorithm that only counts: no trainer, no label."""
    nothing = cast(Any, None)
    return Context(
        config=fleet.config,
        label_space=CAMVID,
        trainer=nothing,
        labels=nothing,
        events=Events(),
        run_folder=fleet.run_folder,
        check_stop=lambda: None,
        train_frames={vehicle: number for number, vehicle in enumerate(fleet.config.vehicles, start=1)},
        ledger=nothing,
        source_frames={},
    )


def _store(world: World, folder: Path, cars: tuple[str, ...], averages: bool = True) -> SharedEncoder:
    fleet = TinyFleet(world, folder, vehicles=cars, sharing=Sharing(encoder="weights"))
    return SharedEncoder(context_of(fleet), averages=averages)


_FOUR = ("a", "b", "c", "d")
_STAGE = Stage(number=1, round=1, kind=Kind.LEARN, vehicles=_FOUR)


def _say(store: SharedEncoder, vehicle: str, *values: float) -> bool:
    return store.take(turn_of(vehicle, Shared(sends=True, head=False)), _phi(*values))


def _phi(*values: float) -> tuple[WeightTensor, ...]:
    return pack({PHI: np.array(values, np.float32)})


@pytest.mark.parametrize("lie", [(900.0, 0.0), (0.0, 1.0, 0.0)], ids=["far", "long"])
def test_unlikely_encoder_is_left_out(lie: tuple[float, ...], tiny_world: World, tmp_path: Path) -> None:
    store = _store(tiny_world, tmp_path, _FOUR)
    said = {"a": lie, "b": (1.0, 0.0), "c": (0.0, 1.0), "d": (1.0, 1.0)}
    assert all(_say(store, vehicle, *values) for vehicle, values in said.items())
    assert store.average(_STAGE) == ("a",)
    [tensor] = store.fetch("a")
    assert np.array_equal(np.frombuffer(tensor.data, "<f4"), np.float32([6 / 9, 7 / 9]))


def test_unlikely_encoder_is_not_handed_on(tiny_world: World, tmp_path: Path) -> None:
    store = _store(tiny_world, tmp_path, _FOUR, averages=False)
    for vehicle, value in (("a", 1.0), ("b", 2.0), ("c", 900.0)):
        store.begin(vehicle)
        assert _say(store, vehicle, value) == (vehicle != "c")
        assert store.hand_on(_STAGE, vehicle) == (() if vehicle != "c" else ("c",))
    assert store.fetch("a") == _phi(2.0)


def test_averaging_outlives_a_restart(tiny_world: World, tmp_path: Path) -> None:
    store, again = (_store(tiny_world, tmp_path, _FOUR) for _ in range(2))
    for vehicle in _FOUR:
        _say(store, vehicle, 1.0, 2.0)
    store.average(_STAGE)
    again.restore(store.tensors(), store.meta())
    assert again.fetch("b") == store.fetch("b") and again.meta() == store.meta()
    with pytest.raises(RequestError, match="shape"):
        _say(again, "a", 1.0)


@pytest.mark.parametrize(
    ("tensors", "pattern"),
    [
        (_phi(float("nan")), "NaN or infinity"),
        ((WeightTensor(PHI, (2,), b"\0" * 4),), "4 bytes, expected 8"),
        ((WeightTensor(PHI, (1, 2), b"\0" * 8),), "shape"),
        ((), "lack"),
        (pack({HEAD: np.zeros(2, np.float32)}), "does not exchange"),
    ],
)
def test_malformed_encoder_is_rejected(
    tensors: tuple[WeightTensor, ...], pattern: str, tiny_world: World, tmp_path: Path
) -> None:
    store = _store(tiny_world, tmp_path, _FOUR)
    turn = turn_of("a", Shared(sends=True, head=False))
    with pytest.raises(RequestError, match=pattern):
        store.take(turn, tensors)
    with pytest.raises(RequestError, match="without its encoder"):
        store.check_complete(turn)
    with pytest.raises(RequestError, match="asks for no encoder"):
        store.take(turn_of("a"), tensors)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"algorithm": "frozen"}, "frozen's vehicles can't share an encoder by weights: .*blackfleet"),
        ({"algorithm": "fedavg"}, "fedavg's vehicles can't share"),
        ({"zeroth_order": ZerothOrderConfig(estimator="mine:Estimator")}, "an estimator of your own"),
        ({"algorithm": "individual"}, "individual's vehicles can't share"),
        ({"algorithm": "split", "sharing": Sharing(head=True)}, "sharing.head is for blackfleet"),
    ],
)
def test_sharing_is_refused_where_it_means_nothing(
    changes: dict[str, Any], pattern: str, tiny_world: World, tmp_path: Path
) -> None:
    config = TinyFleet(tiny_world, tmp_path, **{"sharing": Sharing(encoder="weights"), **changes}).config
    with pytest.raises(SettingError, match=pattern) as caught:
        check_combination(config)
    assert not re.search("\n", str(caught.value))
