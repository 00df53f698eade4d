"""What holds a fleet to its start: the anchor of encoders, and the cloud's rehearsal of source features."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from start_fixtures import changed, changed_network, killed_after, learnt, run

from cloud_server.config import CloudConfig, NetworkConfig
from cloud_server.errors import CloudError
from cloud_server.training.source_features import (
    SourceFeatures,
    SourceReplay,
    load_source_replay,
    write_source_features,
)
from cloud_server.training.trainer import Trainer, TrainerConfig
from edge_client.encoder.bundle import EncoderBundle, bundle_digest
from edge_client.learners.subspaces import Anchor
from edge_client.optimizers import Adam, Nesterov
from edge_client.state import StateStore
from fleet.scenario import Scenario
from fleet.start import Start
from protocol.plans.activation import ActivationPlan
from protocol.plans.adaptation import Adaptation
from protocol.plans.first_order import FirstOrder


def _thetas(folder: Path, start: Start) -> tuple[np.ndarray, np.ndarray]:
    """θ at the end of a run and at its start."""
    bundle = EncoderBundle.load(start.encoder_folder)
    states = StateStore(folder / "vehicles" / "car-01", vehicle="car-01", bundle_digest=bundle_digest(bundle))
    newest = max(
        int(path.stem.partition("-")[2]) for path in (folder / "vehicles" / "car-01").glob("*.state")
    )
    return states.load(newest).theta, bundle.theta0


@pytest.mark.parametrize(
    ("algorithm", "estimator", "subspace"),
    [
        ("blackfed-v1", "spsa-gc", "film"),
        ("blackfed-v1", "activation", "all"),
        ("split", "spsa-gc", "film"),
        ("blackfleet", "spsa-gc", "all"),
    ],
)
def test_strong_anchor_keeps_the_encoder_at_its_start(
    target_scenario: Scenario, start: Start, tmp_path: Path, algorithm: str, estimator: str, subspace: str
) -> None:
    free = changed(
        target_scenario,
        algorithm=algorithm,
        zeroth_order=msgspec.structs.replace(target_scenario.zeroth_order, estimator=estimator),
        activation=ActivationPlan(seeds=2),
    )
    moved = {}
    for name, anchor in (("free", 0.0), ("held", 1e7)):
        run(changed(free, adaptation=Adaptation(subspace=subspace, anchor=anchor)), tmp_path / name)
        theta, theta0 = _thetas(tmp_path / name, start)
        moved[name] = float(np.abs(theta - theta0).max())
    assert moved["free"] > 1e-4
    assert moved["held"] < 1e-3 * moved["free"]


def test_anchored_descent_ends_where_loss_and_penalty_balance() -> None:
    """min ½‖φ − t‖² + λ/2‖φ − s‖² lies at (t + λs) / (1 + λ), for every λ, momentum or not."""
    target, start = np.array([1.0, -2.0], np.float32), np.array([0.5, 0.5], np.float32)
    for strength in (0.0, 0.3, 10.0, 1e6):
        optimizer = Nesterov(rate=0.01, momentum=0.9)
        anchor, phi = Anchor(strength=strength, phi_start=start), start
        for _ in range(3000):
            phi = anchor.pull(optimizer.step(phi, phi - target), optimizer.pace)
        np.testing.assert_allclose(phi, (target + strength * start) / (1 + strength), atol=2e-3)


def test_anchor_of_zero_changes_no_bit() -> None:
    phi = np.array([0.1, 0.2, 0.3], np.float32)
    assert Anchor(strength=0.0, phi_start=np.zeros(3, np.float32)).pull(phi, Adam(0.1).pace) is phi


def test_source_replay_holds_the_source_and_resumes_to_the_same_bits(
    target_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = changed(target_scenario, first_order=FirstOrder(epochs=10, batch_size=4, rate=1e-2))
    rehearsed = changed_network(longer, source_replay=1.0)
    plain, replayed = run(longer, tmp_path / "plain"), run(rehearsed, tmp_path / "replayed")
    assert replayed["mean_source_miou"] > plain["mean_source_miou"]
    assert replayed["frames_seen"] == plain["frames_seen"]

    half = changed_network(changed(target_scenario, rounds=2), source_replay=0.5)
    run(half, tmp_path / "half")
    with killed_after(2):
        run(half, tmp_path / "again")
    run(half, tmp_path / "again", resume=True)
    assert learnt(tmp_path / "again") == learnt(tmp_path / "half")


def test_probability_says_how_often_the_source_is_rehearsed(start: Start) -> None:
    features = SourceFeatures.load(start.folder / "source_features.msgpack", num_classes=11)
    for probability, low, high in ((0.0, 0, 0), (0.3, 200, 400), (1.0, 1000, 1000)):
        replay = SourceReplay(features=features, probability=probability, batch_size=3, seed=1)
        count = sum(replay.after(step) is not None for step in range(1000))
        assert low <= count <= high
    batch = replay.after(7)
    assert batch is not None
    again = replay.after(7)
    assert again is not None
    assert np.array_equal(batch[0], again[0])
    assert len(batch[0]) == len(batch[1]) == 3


def test_rehearsed_steps_leave_the_schedule_where_it_was(start: Start) -> None:
    features = SourceFeatures.load(start.folder / "source_features.msgpack", num_classes=11)
    replay = SourceReplay(features=features, probability=1.0, batch_size=2, seed=0)
    trainers = []
    for source in (None, replay):
        network = torch.nn.Conv2d(4, 11, 1)
        with torch.no_grad():
            network.weight.fill_(0.1)
        config = TrainerConfig(schedule="cosine", total_steps=10)
        trainers.append(Trainer(network, config, source_replay=source))
    features_BCHW, label_BHW = features.batch([0, 1])
    for trainer in trainers:
        trainer.train_step(features_BCHW, label_BHW)
    assert trainers[0].rate_share == trainers[1].rate_share
    assert trainers[0].steps == trainers[1].steps == 1
    state = trainers[1].state_dict()
    twin = Trainer(
        torch.nn.Conv2d(4, 11, 1), TrainerConfig(schedule="cosine", total_steps=10), source_replay=replay
    )
    twin.load_state_dict(state)
    for trainer in (trainers[1], twin):
        trainer.train_step(features_BCHW, label_BHW)
    assert torch.equal(twin.weights()["weight"], trainers[1].weights()["weight"])
    assert not torch.equal(twin.weights()["weight"], trainers[0].weights()["weight"])


def test_source_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
    write_source_features(
        tmp_path / "features", np.ones((2, 4, 6, 8), np.float32), np.zeros((2, 48, 64), np.uint8), 8
    )
    config = CloudConfig(
        fleet="f", vehicles=("car",), network=NetworkConfig(source_features="features", source_replay=0.5)
    )
    with pytest.raises(
        CloudError, match=r"source features of shape \(4, 6, 8\), the vehicles' are of \(8, 6, 8\)"
    ):
        load_source_replay(config, tmp_path, num_classes=11, feature_shapes=[(8, 6, 8)])
    (tmp_path / "features").write_bytes(b"x" * 100)
    with pytest.raises(CloudError, match="features is damaged: its checksum is wrong"):
        load_source_replay(config, tmp_path, num_classes=11, feature_shapes=[(4, 6, 8)])
