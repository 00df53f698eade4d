"""Seeded queries: that they equal uploads, and fleets that learn from loss maps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, Supervisor, TinyFleet, World, interrupt, tag
from test_perturbation import grid

import cloud_server.desk.handlers.feedback
from cloud_server.config import CloudConfig, ZerothOrderConfig
from cloud_server.desk.seeded_queries import coded_loss_maps, evaluate_loss_maps
from cloud_server.errors import CloudError
from cloud_server.networks.build import build_network
from cloud_server.storage.checkpoint import flatten_state
from cloud_server.training.trainer import Trainer, TrainerConfig
from edge_client.errors import TurnRefused
from fleet.run.in_process import run_in_process
from protocol.codec.tensor import EncodedTensor, decode, encode
from protocol.errors import Mistake
from protocol.messages import LossMaps, Query, SeededQuery, Turn
from protocol.noise import derive_seed
from protocol.perturbation import pack_scale, perturb
from protocol.plans.activation import ActivationPlan
from protocol.plans.adaptation import Adaptation
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.spsa import SpsaPlan
from protocol.session import topics
from protocol.session.memory import MemoryBus

CAR = CARS[0]


# That it equals an upload ------------------------------------------------------------------------------


def seeded(frames: int, seeds: int, scale_C: np.ndarray, *, two_sided: bool) -> SeededQuery:
    return SeededQuery(
        vehicle=CAR,
        grant="0" * 16,
        turn_id=1,
        step=0,
        frames=tuple(range(frames)),
        features=EncodedTensor(32, (), b"", b"", b""),
        seeds=tuple(derive_seed("query", number) for number in range(seeds)),
        scale=pack_scale(scale_C),
        two_sided=two_sided,
        map_size=(6, 8),
    )


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("seeds", [1, 4, 16])
@pytest.mark.parametrize("frames", [1, 3, 9])
@pytest.mark.parametrize(
    ("stride", "objective"), [(4, "labels"), (8, "labels"), (8, "entropy"), (16, "labels")]
)
def test_seeded_query_equals_uploading_the_perturbed_features(
    seeds: int, two_sided: bool, frames: int, stride: int, objective: str
) -> None:
    """To the bit, for every K, and nothing in the network changes: no weight, no statistic of BatchNorm.

    The features are large enough for convolutions that round differently in batches of other sizes.
    """
    shape = (4, 96 // stride, 128 // stride)
    network = build_network("compact", feature_shape=shape, feature_stride=stride, num_classes=5, seed=1)
    trainer = Trainer(network, TrainerConfig())
    random = np.random.default_rng(2)
    label = random.integers(0, 5, (frames, 96, 128), np.uint8) if objective == "labels" else None
    features = random.normal(size=(frames, *shape)).astype(np.float32)
    scale_C = (0.1 * features.std(axis=(0, 2, 3))).astype(np.float32)
    before = flatten_state(trainer.state_dict())[0]
    query = seeded(frames, seeds, scale_C, two_sided=two_sided)

    def loss_maps(copies: Iterable[np.ndarray]) -> np.ndarray:
        return trainer.loss_maps(copies, label, query.map_size)

    def uploaded(seed: int, sign: int) -> np.ndarray:
        coded = encode(perturb(features, scale_C, seed, sign=sign), 32)
        return trainer.loss_map(decode(coded, expected_shape=features.shape), label, query.map_size)

    answer = coded_loss_maps(query, features, scale_C, loss_maps, 32)
    maps = decode(answer, expected_shape=(frames, 1 + seeds, 6, 8))
    clean = trainer.loss_map(features, label, query.map_size)
    assert np.array_equal(maps[:, 0], clean)
    for number, seed in enumerate(query.seeds):
        other = uploaded(seed, -1) if two_sided else clean
        assert np.array_equal(maps[:, 1 + number], uploaded(seed, 1) - other)
        assert maps[:, 1 + number].any()
    after = flatten_state(trainer.state_dict())[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_all_copies_of_a_query_are_one_batch() -> None:
    """Which goes through the network in full slices, not copy by copy."""
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=1)
    sizes: list[int] = []
    network.register_forward_hook(lambda module, arguments, output: sizes.append(len(output)))
    trainer = Trainer(network, TrainerConfig())
    query = seeded(3, 4, np.ones(4, np.float32), two_sided=True)
    label = np.zeros((3, 48, 64), np.uint8)
    maps = evaluate_loss_maps(
        query,
        grid((3, 4, 6, 8)),
        np.ones(4, np.float32),
        lambda copies: trainer.loss_maps(copies, label, query.map_size),
    )
    assert maps.shape == (3, 1 + 4, 6, 8)
    assert sizes == [8] * 4  # 9 copies of 3 frames


def test_mean_of_a_clean_map_is_the_loss() -> None:
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=1)
    trainer = Trainer(network, TrainerConfig())
    label = np.random.default_rng(3).integers(0, 5, (2, 48, 64), np.uint8)
    label[1, :30] = 255
    maps = trainer.loss_map(grid((2, 4, 6, 8)), label, (3, 4))
    losses = trainer.evaluate_losses(grid((2, 4, 6, 8)), label)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), losses, rtol=1e-5)
    maps = trainer.loss_map(grid((2, 4, 6, 8)), None, (3, 4))
    assert maps.mean() == pytest.approx(trainer.evaluate_loss(grid((2, 4, 6, 8)), None), rel=1e-5)


def test_eight_bits_keep_each_map_to_half_a_step_of_its_own_scale() -> None:
    query = seeded(2, 3, np.ones(4, np.float32), two_sided=False)

    def loss_maps(copies: Iterable[np.ndarray]) -> np.ndarray:
        return (np.concatenate(list(copies)) ** 2).sum(axis=1) * np.float32(0.01)

    features = grid((2, 4, 6, 8))
    exact = evaluate_loss_maps(query, features, np.ones(4, np.float32), loss_maps)
    coded = coded_loss_maps(query, features, np.ones(4, np.float32), loss_maps, 8)
    assert coded.payload_bytes < exact.size + 8 * 4 + 200
    step_M = np.ptp(exact, axis=(0, 2, 3)) / 255
    error = np.abs(decode(coded, expected_shape=exact.shape) - exact)
    assert (error <= 0.501 * step_M[:, None, None] + 1e-6).all()


# Fleets that learn from loss maps ----------------------------------------------------------------------


def zeroth(**changes: Any) -> ZerothOrderConfig:
    return ZerothOrderConfig(**{"batches": 2, "batch_size": 3, "estimator": "activation", **changes})


def plan(**changes: Any) -> ActivationPlan:
    return ActivationPlan(**{"seeds": 3, "rate": 1e-2, **changes})


def tiny(world: World, folder: Path, **changes: Any) -> TinyFleet:
    settings = {
        "zeroth_order": zeroth(),
        "activation": plan(),
        "first_order": FirstOrder(epochs=1, batch_size=4, rate=5e-3),
        "algorithm": "blackfed-v1",
        "rounds": 2,
    }
    return TinyFleet(world, folder, **{**settings, **changes})


def _undisturbed(world: World, folder: Path, subspace: str) -> TinyFleet:
    fleet = tiny(world, folder, zeroth_order=zeroth(epochs=2), adaptation=Adaptation(subspace=subspace))
    Supervisor(fleet).run()
    return fleet


@pytest.fixture(scope="module")
def calm_all(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    """A fleet with estimator activation after a run without any disturbance."""
    return _undisturbed(tiny_world, tmp_path_factory.mktemp("all"), "all")


@pytest.fixture(scope="module")
def calm_film(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    """The same, on scales and biases alone."""
    return _undisturbed(tiny_world, tmp_path_factory.mktemp("film"), "film")


@pytest.fixture(params=["calm_all", "calm_film"])
def calm(request: pytest.FixtureRequest) -> TinyFleet:
    """Either of the two."""
    fleet: TinyFleet = request.getfixturevalue(request.param)
    return fleet


def again(calm: TinyFleet, folder: Path) -> TinyFleet:
    return tiny(calm.world, folder, zeroth_order=calm.config.zeroth_order, adaptation=calm.config.adaptation)


def test_run_learns_and_says_how_much_was_answered(calm: TinyFleet) -> None:
    result = calm.result()
    assert result["mean_local_miou"] > result["initial_local_miou"]
    theta0 = calm.states(CAR).load(1).theta
    for car in CARS:
        entry = result["vehicles"][car]
        assert entry["queries"] == 2 * 2 * 2, "one for each batch, epoch and round"
        assert entry["answers_per_frame"] == 2 * (1 + 3), "clean map and differences, in each epoch"
        assert entry["rejects"] == 0
    assert not np.array_equal(calm.states(CAR).load(3).theta, theta0)


def test_state_holds_what_the_next_turn_starts_from(calm_all: TinyFleet, calm_film: TinyFleet) -> None:
    everything, film = (fleet.states(CAR).load(3).optimizer for fleet in (calm_all, calm_film))
    assert set(everything) == {"mean", "square", "steps"}
    assert film["film/phi"].shape == film["mean"].shape == (2 * (16 + 32 + 4),)


_POINTS = [("car-1", "seeded", 1), ("car-1", "maps", 3), ("car-2", "seeded", 3), ("car-2", "done", 2)]


@pytest.mark.parametrize("victim", ["car", "cloud"])
def test_killed_process_changes_nothing(victim: str, calm: TinyFleet, tmp_path: Path) -> None:
    fleet = again(calm, tmp_path)
    supervisor, points = Supervisor(fleet), set(_POINTS)
    supervisor.run_with_kills(points, victim)
    assert fleet.fingerprint() == calm.fingerprint()
    for car in CARS:
        for name in ("queries", "answers_per_frame"):
            assert fleet.result()["vehicles"][car][name] == calm.result()["vehicles"][car][name]


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": plan(two_sided=True, map_stride=2, box_width=3)},
        {"activation": plan(map_bits=32), "feedback_network": "best", "coding": Coding(bits=32),
         "algorithm": "blackfed-v2"},
        {"zeroth_order": ZerothOrderConfig(batches=2, batch_size=3),
         "adaptation": Adaptation(subspace="film")},
    ],
    ids=["two-sided on a coarse map", "v2, own feedback, float32", "spsa-gc on film"],
)  # fmt: skip
def test_other_settings_run(changes: dict[str, Any], tiny_world: World, tmp_path: Path) -> None:
    fleet = tiny(tiny_world, tmp_path, rounds=1, **changes)
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    result = fleet.result()
    asked = fleet.config.answers_per_frame
    assert [entry["answers_per_frame"] for entry in result["vehicles"].values()] == [asked] * len(CARS)
    assert result["mean_local_miou"] > result["initial_local_miou"]


# What does not fit ---------------------------------------------------------------------------------------


def request(turn: Turn, **changes: Any) -> SeededQuery:
    fields = {
        "frames": (0, 1),
        "features": encode(grid((2, 4, 6, 8)), 8),
        "seeds": (1, 2, 3),
        "scale": pack_scale(np.ones(4, np.float32)),
        "two_sided": False,
        "map_size": (6, 8),
    }
    return SeededQuery(
        vehicle=CAR, grant=turn.grant, turn_id=turn.turn_id, step=10**6, **{**fields, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": (1, 2, 3, 4)}, "this turn's queries have 3 seeds, got 4"),
        ({"seeds": ()}, "this turn's queries have 3 seeds, got 0"),
        ({"two_sided": True}, "this turn's queries are one-sided"),
        ({"map_size": (12, 16)}, "this turn's loss maps are 6x8, got 12x16"),
        ({"scale": b"\0" * 12}, "perturbation scale must have 16 bytes, got 12"),
        ({"scale": pack_scale(np.full(4, np.nan, np.float32))}, "perturbation scale must be finite"),
        ({"scale": pack_scale(np.full(4, 3e38, np.float32))}, "no loss maps at these features"),
        ({"frames": (0, 6)}, "frame 6 is no train frame"),
        ({"features": encode(grid((2, 5, 6, 8)), 8)}, "tensor shape must be 2x4x6x8, got 2x5x6x8"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_query_that_does_not_fit_is_rejected_and_changes_nothing(
    changes: dict[str, Any], reason: str, calm_all: TinyFleet, tmp_path: Path
) -> None:
    bus = MemoryBus()
    interrupt(bus, "seeded", lambda turn, payload: (topics.UP, request(turn, **changes)))
    fleet = again(calm_all, tmp_path)
    Supervisor(fleet, bus).run()
    [reject] = fleet.events("reject")
    assert reason in reject["reason"]
    assert fleet.fingerprint() == calm_all.fingerprint()


def plain_query(turn: Turn, payload: bytes) -> tuple[topics.Channel, object]:
    header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 10**6}
    return topics.UP, Query(**header, frames=(0, 1), features=encode(grid((2, 4, 6, 8)), 8))


def test_plan_decides_which_queries_a_turn_has(tiny_world: World, tmp_path: Path) -> None:
    for number, (before, changes, say, reason) in enumerate(
        [
            ("seeded", {}, plain_query, "this turn has no queries"),
            (
                "query",
                {"zeroth_order": ZerothOrderConfig(batches=1, batch_size=3)},
                lambda turn, payload: (topics.UP, request(turn)),
                "this turn has no seeded queries",
            ),
        ]
    ):
        bus = MemoryBus()
        interrupt(bus, before, say)  # type: ignore[arg-type]
        fleet = tiny(tiny_world, tmp_path / str(number), rounds=1, **changes)  # type: ignore[arg-type]
        Supervisor(fleet, bus).run()
        assert [event["reason"] for event in fleet.events("reject")] == [reason]


def test_more_answers_than_allowed_are_rejected(tiny_world: World, tmp_path: Path) -> None:
    """A limit that the honest vehicle just keeps; one query more in its name passes it."""
    bus = MemoryBus()
    interrupt(bus, "upload", lambda turn, payload: (topics.UP, request(turn, frames=(0, 1))))
    fleet = tiny(tiny_world, tmp_path, rounds=1, zeroth_order=zeroth(max_answers_per_frame=4))
    Supervisor(fleet, bus).run()
    [reject] = fleet.events("reject")
    assert "frame 0 would have 8 answers in this turn, more than the 4 allowed" in reject["reason"]
    assert fleet.result()["vehicles"][CAR]["answers_per_frame"] == 4


def test_plan_that_asks_for_more_answers_than_allowed_makes_no_run() -> None:
    with pytest.raises(ValueError, match=r"is 3, but activation asks for 4 answers about a frame in a turn"):
        _settings(zeroth_order=zeroth(max_answers_per_frame=3), activation=plan())
    with pytest.raises(ValueError, match=r"is 7, but spsa-gc asks for 8 answers about a frame in a turn"):
        _settings(zeroth_order=ZerothOrderConfig(epochs=2, max_answers_per_frame=7), spsa=SpsaPlan(queries=2))


def _settings(**changes: Any) -> CloudConfig:
    return CloudConfig(fleet="f", vehicles=("a",), **changes)


def spoilt(payload: bytes, maps: EncodedTensor) -> tuple[topics.Channel, object]:
    """An answer to the query in `payload`, as somebody else might send it."""
    query = msgspec.msgpack.decode(payload[1:], type=SeededQuery)
    return topics.DOWN, LossMaps(
        vehicle=CAR, grant=query.grant, turn_id=query.turn_id, step=query.step, maps=maps
    )


_NAN_MAPS = msgspec.structs.replace(encode(grid((3, 4, 6, 8)), 8), scale=np.full(4, np.nan, "<f4").tobytes())
_UNUSABLE = {
    "another size": (encode(grid((3, 4, 3, 4)), 8), "tensor shape must be 3x4x6x8, got 3x4x3x4"),
    "another K": (encode(grid((3, 3, 6, 8)), 8), "tensor shape must be 3x4x6x8, got 3x3x6x8"),
    "NaN": (_NAN_MAPS, "tensor scale holds NaN or infinity"),
}


@pytest.mark.parametrize("name", _UNUSABLE)
def test_vehicle_asks_again_after_an_unusable_answer(
    name: str, calm_all: TinyFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maps, reason = _UNUSABLE[name]
    bus = MemoryBus()
    interrupt(bus, "seeded", lambda turn, payload: spoilt(payload, maps))
    fleet = again(calm_all, tmp_path)
    Supervisor(fleet, bus).run()
    [warning] = [record for record in caplog.records if "asking again" in record.message]
    assert reason in warning.message
    assert fleet.fingerprint() == calm_all.fingerprint()
    assert fleet.result()["vehicles"][CAR]["queries"] == calm_all.result()["vehicles"][CAR]["queries"]


@pytest.mark.parametrize("name", _UNUSABLE)
def test_vehicle_stops_in_one_line_after_unusable_answers(
    name: str, tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, reason = _UNUSABLE[name]
    monkeypatch.setattr(cloud_server.desk.handlers.feedback, "coded_loss_maps", lambda *_: maps)
    fleet, bus = tiny(tiny_world, tmp_path, rounds=1, vehicles=(CAR,)), MemoryBus()
    answers: list[LossMaps] = []

    def listen(topic: str, payload: bytes, qos: int) -> None:
        if tag(payload) == "maps":
            answers.append(msgspec.msgpack.decode(payload[1:], type=LossMaps))

    bus.record(listen)
    supervisor = Supervisor(fleet, bus)
    with pytest.raises(CloudError) as caught:
        supervisor.run()
    line = f"the cloud answered 3 times with unusable loss maps: {reason}"
    assert str(caught.value) == f"vehicle {CAR!r} can't go on: {line}"
    [end] = supervisor.failures
    assert (type(end), str(end)) == (TurnRefused, line)
    assert len(answers) >= 3 and len({answer.step for answer in answers}) == 1, "one query, asked again"
    assert not any(fleet.state_folder(CAR).iterdir()), "nothing was learnt from what is no answer"


def test_map_that_does_not_fit_the_features_ends_the_run_in_one_line(
    tiny_world: World, tmp_path: Path
) -> None:
    fleet = tiny(tiny_world, tmp_path / "run", rounds=1, activation=plan(map_stride=4))
    with pytest.raises(Mistake, match=r"activation settings don't fit: map stride 4 must divide .* 6x8"):
        run_in_process(fleet.config, [fleet.host()], fleet.run_folder)


def test_bundle_without_vjp_ends_the_run_with_the_way_out(tiny_world: World, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_world.bundle, tmp_path / "bundle")
    description = json.loads((bundle / "encoder.json").read_text())
    for name in ("tape", "tape_bound", "vjp"):
        del description["graphs"][name]
    (bundle / "encoder.json").write_text(json.dumps(description))
    fleet = tiny(dataclasses.replace(tiny_world, bundle=bundle), tmp_path / "run", rounds=1)
    with pytest.raises(Mistake, match=r"stride8-c4 has no VJP; use an estimator that needs forward passes"):
        run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
