"""Replay at the cloud: what the cache holds and draws, what is learnt from it, and that it survives kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, IMAGE_SIZE, TinyFleet, World
from supervision import Supervisor

from cloud_server.algorithms.fedavg import epoch_rate_shares
from cloud_server.config import CloudConfig, NetworkConfig
from cloud_server.run.combinations import check_combination
from cloud_server.run.persistence import config_digest
from cloud_server.storage.checkpoint import flatten_state, load_checkpoint, unflatten_state
from cloud_server.training.feature_cache import FeatureCache
from cloud_server.training.trainer import Trainer
from fleet.export.bundle import export_bundle
from fleet.export.head_export import export_head
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan
from protocol.rates import cosine_rate

CAR = CARS[0]
TAU = 2
FIRST = FirstOrder(epochs=3, batch_size=4, rate=5e-3, replay_steps=TAU)
ALGORITHMS = ("blackfed-v2", "blackfleet", "split", "individual")


def features(*values: float, shape: tuple[int, ...] = (2, 3, 4)) -> np.ndarray:
    """features_BCHW, each frame's filled with its value."""
    return np.stack([np.full(shape, value, np.float32) for value in values])


def drawn(cache: FeatureCache, count: int, seed: int) -> dict[tuple[str, int], float]:
    """The value of each frame of a batch."""
    frames, features_BCHW = cache.sample(count, seed)
    assert len(frames) == len(set(frames)) == len(features_BCHW)
    return {frame: float(values.flat[0]) for frame, values in zip(frames, features_BCHW, strict=True)}


# The cache --------------------------------------------------------------------------------------------


def test_frame_that_comes_again_replaces_its_old_features() -> None:
    cache = FeatureCache(8, seed=0)
    cache.add("a", [0, 1], features(1, 2))
    cache.add("b", [0], features(3))
    cache.add("a", [1], features(20))
    assert len(cache) == 3
    assert drawn(cache, 3, seed=0) == {("a", 0): 1.0, ("a", 1): 20.0, ("b", 0): 3.0}


def test_what_is_kept_is_a_copy() -> None:
    cache, features_BCHW = FeatureCache(8, seed=0), features(1, 2)
    cache.add("a", [0, 1], features_BCHW)
    features_BCHW[:] = 9
    assert drawn(cache, 2, seed=0) == {("a", 0): 1.0, ("a", 1): 2.0}


def test_bound_holds_and_the_order_of_arrival_makes_no_difference() -> None:
    uploads = [(car, index) for car in ("a", "b", "c") for index in range(20)]
    contents = []
    for order in (uploads, uploads[::-1]):
        cache = FeatureCache(16, seed=5)
        for position, (car, index) in enumerate(order):
            cache.add(car, [index], features(index))
            assert len(cache) == min(position + 1, 16)
        contents.append(drawn(cache, 16, seed=1))
        assert list(contents[-1]) == list(contents[0]), "the same draw, in the same order"
    assert contents[0] == contents[1]


def test_every_frame_is_equally_likely_to_be_kept() -> None:
    """Over 600 seeds, 10 of 40 frames: each is there 150 times in the mean, standard deviation 10.6."""
    counts = np.zeros(40, int)
    for seed in range(600):
        cache = FeatureCache(10, seed=seed)
        for start in range(0, 40, 8):
            cache.add("a", range(start, start + 8), features(*range(start, start + 8), shape=(1, 1, 1)))
        counts[[index for _, index in cache.sample(10, seed=0)[0]]] += 1
    assert counts.sum() == 6000
    assert abs(counts - 150).max() < 5 * 10.6


def test_batch_has_one_shape_and_shapes_come_by_their_numbers_of_frames() -> None:
    cache = FeatureCache(64, seed=0)
    cache.add("a", range(6), features(*range(6)))
    cache.add("b", range(2), features(10, 11, shape=(5, 3, 4)))
    sizes = [cache.sample(4, seed)[1].shape for seed in range(400)]
    assert set(sizes) == {(4, 2, 3, 4), (2, 5, 3, 4)}
    assert 0.65 < np.mean([size[0] == 4 for size in sizes]) < 0.85


def test_draws_follow_the_seed() -> None:
    cache = FeatureCache(64, seed=0)
    cache.add("a", range(50), features(*range(50)))
    assert drawn(cache, 8, seed=3) == drawn(cache, 8, seed=3)
    assert drawn(cache, 8, seed=3) != drawn(cache, 8, seed=4)


def test_restored_cache_draws_and_forgets_as_the_original() -> None:
    caches = [FeatureCache(12, seed=2) for _ in range(2)]
    caches[0].add("a", range(9), features(*range(9)))
    caches[0].add("b", range(3), features(*range(3), shape=(5, 3, 4)))
    tensors, structure = flatten_state({"cache": caches[0].state_dict()})
    caches[1].load_state_dict(
        unflatten_state(tensors, msgspec.json.decode(msgspec.json.encode(structure)))["cache"]
    )
    for cache in caches:
        cache.add("c", range(8), features(*range(8)))
    assert len(caches[0]) == len(caches[1]) == 12
    for seed in range(20):
        assert drawn(caches[0], 5, seed) == drawn(caches[1], 5, seed)


@pytest.mark.parametrize("capacity", [0, -1])
def test_cache_without_room_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1 frame or more, got {capacity}"):
        FeatureCache(capacity, seed=0)


def test_draw_of_an_empty_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="can't draw 4 frames of a cache of 0"):
        FeatureCache(4, seed=0).sample(4, seed=0)


# What is learnt ---------------------------------------------------------------------------------------


def fleet_of(world: World, folder: Path, algorithm: str, **changes: Any) -> TinyFleet:
    settings = {"first_order": FIRST, "local_loss": LocalLossPlan(warm_up_epochs=1, epochs=1)}
    return TinyFleet(world, folder, algorithm=algorithm, **{**settings, **changes})


def run(fleet: TinyFleet) -> TinyFleet:
    Supervisor(fleet).run()
    return fleet


@pytest.fixture(scope="module", params=ALGORITHMS)
def calm(
    request: pytest.FixtureRequest, tiny_world: World, tmp_path_factory: pytest.TempPathFactory
) -> TinyFleet:
    """A run without any disturbance."""
    return run(fleet_of(tiny_world, tmp_path_factory.mktemp(request.param), request.param))


TOGETHER = ("blackfleet", "individual")
"""Algorithms whose networks learn once a round."""


def batches_of_pass(fleet: TinyFleet) -> int:
    """Of a vehicle's 6 train frames, or with blackfleet of everyone's, in batches of 4."""
    return 3 if fleet.config.algorithm == "blackfleet" else 2


def trainer_steps(fleet: TinyFleet, car: str) -> int:
    """Steps that the network of the vehicle's latest turn has taken."""
    if fleet.config.algorithm == "individual":
        newest = max(int(path.stem) for path in (fleet.run_folder / "cloud" / "own" / car).iterdir())
        tensors = fleet.kept("own", car, newest)
        structure = msgspec.json.decode(tensors["structure"].numpy().tobytes())
        return int(unflatten_state(tensors, structure)["steps"])
    tensors, meta = load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")
    return int(unflatten_state(tensors, meta["algorithm"]["trainer"])["steps"])


def test_every_step_is_followed_by_as_many_as_the_setting_says(calm: TinyFleet) -> None:
    batches = batches_of_pass(calm) * (1 if calm.config.algorithm in TOGETHER else len(CARS))
    assert trainer_steps(calm, CAR) == batches * FIRST.epochs * calm.config.rounds * (1 + TAU)
    frames = 6 * len(CARS) * FIRST.epochs * calm.config.rounds
    assert calm.result()["frames_seen"] == frames * (1 + TAU)
    assert calm.events("curve")[-1]["frames_seen"] == frames * (1 + TAU)


def test_lines_of_progress_count_all_steps(calm: TinyFleet) -> None:
    lines = calm.events("learning")
    total = batches_of_pass(calm) * FIRST.epochs * (1 + TAU)
    assert {line["total"] for line in lines} == {total}
    by_turn: dict[tuple[int, str], list[int]] = {}
    for line in lines:
        by_turn.setdefault((line["stage"], line.get("vehicle", "")), []).append(line["done"])
    for done in by_turn.values():
        assert done == sorted(set(done)) and done[-1] == total
        assert all(count % (1 + TAU) == 0 for count in done)
    assert all(len(line["losses"]) == FIRST.epochs for line in calm.events("learned"))


def test_checkpoint_holds_the_cache(calm: TinyFleet) -> None:
    tensors, meta = load_checkpoint(calm.run_folder / "cloud" / "checkpoints")
    caches = unflatten_state(tensors, meta["algorithm"]["replay"])["replay"]
    if calm.config.algorithm == "individual":
        assert sorted(caches) == list(CARS)
    else:
        assert list(caches) == [""]
    frames = {tuple(frame) for groups in caches.values() for group in groups for frame in group["frames"]}
    assert frames == {(car, index) for car in CARS for index in range(6)}
    shapes = {tuple(group["features"].shape[1:]) for groups in caches.values() for group in groups}
    assert shapes == {(4, IMAGE_SIZE[1] // 8, IMAGE_SIZE[0] // 8)}


def test_without_replay_nothing_is_cached_and_what_crosses_is_the_same(
    tiny_world: World, tmp_path: Path
) -> None:
    plain = msgspec.structs.replace(FIRST, replay_steps=0)
    fleets = [
        run(fleet_of(tiny_world, tmp_path / str(first.replay_steps), "frozen", first_order=first))
        for first in (FIRST, plain)
    ]
    replayed, without = fleets
    assert any("/replay" in name for name in replayed.fingerprint())
    assert not any("/replay" in name for name in without.fingerprint())
    uploads = [
        [entry["uplink_bytes_by_type"]["upload"] for entry in fleet.result()["vehicles"].values()]
        for fleet in fleets
    ]
    assert uploads[0] == uploads[1]


def test_individual_learns_from_no_other_vehicles_features(tiny_world: World, tmp_path: Path) -> None:
    fleets = [
        run(fleet_of(tiny_world, tmp_path / str(len(cars)), "individual", vehicles=cars))
        for cars in ((CAR,), CARS)
    ]
    kept = [fleet.kept("own", CAR, fleet.config.rounds) for fleet in fleets]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_small_cache_keeps_its_bound_through_a_run(tiny_world: World, tmp_path: Path) -> None:
    small = msgspec.structs.replace(FIRST, cache_frames=5)
    fleet = run(fleet_of(tiny_world, tmp_path, "blackfed-v2", first_order=small))
    tensors, _ = load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")
    assert sum(len(t) for name, t in tensors.items() if name.startswith("/replay")) == 5
    assert fleet.result()["frames_seen"] == 6 * len(CARS) * FIRST.epochs * 2 * (1 + TAU)


@pytest.mark.parametrize("algorithm", ["blackfed-v1", "blackfleet"])
def test_vehicles_with_other_features_replay_in_batches_of_one_shape(
    algorithm: str, tiny_world: World, tmp_path: Path
) -> None:
    bundle = export_bundle("stride8-c8", tmp_path / "bundle", image_size=IMAGE_SIZE, seed=0)
    export_head(bundle.spec, tmp_path / "head", label_space_name="camvid", width=8, depth=1, seed=0)

    class Mixed(TinyFleet):
        def host(self, *cars: str, give_up_s: float = 30.0):  # type: ignore[no-untyped-def]
            host = super().host(*cars, give_up_s=give_up_s)
            other = {"bundle": str(tmp_path / "bundle")}
            if algorithm == "blackfleet":
                other["local_head"] = str(tmp_path / "head")
            vehicles = tuple(
                msgspec.structs.replace(vehicle, **other) if vehicle.id == CARS[1] else vehicle
                for vehicle in host.vehicles
            )
            return msgspec.structs.replace(host, vehicles=vehicles)

    width, height = IMAGE_SIZE
    shapes = tuple((channels, height // 8, width // 8) for channels in (4, 8))
    local = LocalLossPlan(warm_up_epochs=1, epochs=1)
    settings = {"first_order": FIRST, "local_loss": local, "feature_shapes": shapes}
    fleet = run(Mixed(tiny_world, tmp_path, algorithm=algorithm, **settings))
    assert fleet.result()["frames_seen"] == 6 * len(CARS) * FIRST.epochs * 2 * (1 + TAU)
    tensors, _ = load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")
    cached = [tuple(t.shape) for name, t in sorted(tensors.items()) if name.startswith("/replay")]
    assert sorted(cached) == [(6, *shape) for shape in shapes]


# Exactly once -----------------------------------------------------------------------------------------

_KILLS = {
    "blackfed-v2": {(CAR, "upload", 2), (CARS[1], "query", 2), (CARS[1], "done", 2), (CAR, "turn", 3)},
    "blackfleet": {(CARS[1], "upload", 2), (CAR, "done", 2), (CARS[1], "done", 3), (CARS[1], "turn", 4)},
    "split": {(CAR, "train", 3), (CARS[1], "gradient", 2), (CARS[1], "train", 9), (CAR, "upload", 2)},
    "individual": {(CAR, "train", 3), (CARS[1], "gradient", 2), (CARS[1], "train", 9), (CAR, "done", 3)},
}
"""Moments in the midst of turns, at their ends, and between them."""


def test_killed_processes_change_nothing_at_rates_that_span_all_steps(
    calm: TinyFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cosine: at the middle of all steps half the rate, at the last next to none."""
    shares: list[tuple[int, float]] = []
    step = Trainer._train_step

    def note(trainer: Trainer, *batch: torch.Tensor) -> float:
        shares.append((trainer.steps, trainer.rate_share))
        return step(trainer, *batch)

    monkeypatch.setattr(Trainer, "_train_step", note)
    supervisor = Supervisor(fleet_of(calm.world, tmp_path, calm.config.algorithm))
    supervisor.run_with_kills(set(_KILLS[calm.config.algorithm]))
    assert supervisor.fleet.fingerprint() == calm.fingerprint()
    assert supervisor.fleet.scores() == calm.scores()
    total = trainer_steps(calm, CAR)
    assert dict(shares) == {done: pytest.approx(cosine_rate(done, total)) for done in range(total)}


# Settings ---------------------------------------------------------------------------------------------


def test_systems_that_upload_no_features_take_as_many_passes_more() -> None:
    config = CloudConfig(fleet="f", vehicles=("a",), rounds=2, first_order=FIRST)
    longer = msgspec.structs.replace(FIRST, epochs=FIRST.epochs * (1 + TAU), replay_steps=0)
    same = msgspec.structs.replace(config, first_order=longer)
    for round_number in (1, 2):
        assert epoch_rate_shares(config, round_number) == epoch_rate_shares(same, round_number)
        assert len(epoch_rate_shares(config, round_number)) == FIRST.passes == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay_steps": -1}, "first_order.replay_steps must be at least 0, got -1"),
        ({"cache_frames": 0}, "first_order.cache_frames must be at least 1, got 0"),
        (
            {"replay_steps": 1, "cache_frames": 7},
            "first_order.cache_frames must be at least first_order.batch_size, 8, got 7",
        ),
        ({"epochs": 5001, "replay_steps": 1}, "must be at most 10000, got 10002"),
    ],
)
def test_wrong_setting_is_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FirstOrder(**changes)  # type: ignore[arg-type]


def test_replay_needs_a_network_that_learns() -> None:
    network = NetworkConfig(learns=False)
    config = CloudConfig(fleet="f", vehicles=("a",), network=network, first_order=FIRST)
    with pytest.raises(ValueError, match=r"takes no steps: first_order\.replay_steps must be 0, got 2$"):
        check_combination(config)


def test_run_goes_on_only_with_the_same_cache() -> None:
    configs = [
        CloudConfig(fleet="f", vehicles=("a",), first_order=msgspec.structs.replace(FIRST, cache_frames=n))
        for n in (64, 65)
    ]
    assert config_digest(configs[0]) != config_digest(configs[1])
