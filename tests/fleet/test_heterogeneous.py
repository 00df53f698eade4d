"""Fleets whose vehicles differ: other encoders, other weather."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, IMAGE_SIZE, TinyFleet, World

from cloud_server.networks.build import build_network
from cloud_server.networks.stems import ManyInputs, build_shared_network
from cloud_server.training.trainer import Trainer, TrainerConfig
from edge_client.errors import VehicleError
from edge_client.host import HostConfig, SightConfig
from fleet.export.bundle import export_bundle
from fleet.run.in_process import run_in_process

_SHAPES = ((4, 6, 8), (16, 6, 8), (8, 12, 16))


def _network(*shapes: tuple[int, int, int]) -> torch.nn.Module:
    return build_shared_network(
        "compact", feature_shapes=shapes, image_size=IMAGE_SIZE, num_classes=5, seed=3
    )


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "other"
    export_bundle("stride4-c8", folder, image_size=IMAGE_SIZE, seed=0)
    return folder


def _mixed_host(fleet: TinyFleet, other_bundle: Path, **second: Any) -> HostConfig:
    """Both vehicles; the second with the other bundle."""
    host = fleet.host()
    first, last = host.vehicles
    changed = msgspec.structs.replace(last, bundle=str(other_bundle), **second)
    return msgspec.structs.replace(host, vehicles=(first, changed))


def test_network_of_one_shape_is_the_plain_network() -> None:
    shared = _network((4, 6, 8), (4, 6, 8))
    plain = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=3)
    expected = plain.state_dict()
    assert shared.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in shared.state_dict().items())


def test_network_takes_every_shape_and_gives_logits_of_one_size() -> None:
    network = _network(*_SHAPES).eval()
    assert isinstance(network, ManyInputs)
    assert sorted(network.stems) == ["16x6x8", "4x6x8"]  # 8x12x16 has the most numbers: it needs no stem
    for shape in _SHAPES:
        assert network(torch.zeros(2, *shape)).shape == (2, 5, 12, 16)


def test_a_stem_learns_only_from_features_of_its_shape() -> None:
    trainer = Trainer(_network(*_SHAPES), TrainerConfig())
    random = np.random.default_rng(0)
    before = trainer.weights()
    features_BCHW = random.standard_normal((2, *_SHAPES[0]), np.float32)
    trainer.train_step(features_BCHW, random.integers(0, 5, (2, 48, 64), np.uint8))
    after = trainer.weights()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(name.startswith("stems.4x6x8.") for name in moved)
    assert not any(name.startswith("stems.16x6x8.") for name in moved)


def test_training_with_stems_goes_on_from_a_snapshot_bit_for_bit() -> None:
    random = np.random.default_rng(1)
    batches = [
        (random.standard_normal((2, *shape), np.float32), random.integers(0, 5, (2, 48, 64), np.uint8))
        for shape in (*_SHAPES[1:], *_SHAPES, *_SHAPES)
    ]
    one, two = (Trainer(_network(*_SHAPES), TrainerConfig()) for _ in range(2))
    for batch in batches[:3]:
        one.train_step(*batch)
    two.load_state_dict(one.state_dict())
    for batch in batches[3:]:
        assert one.train_step(*batch) == two.train_step(*batch)
    assert all(torch.equal(value, two.weights()[name]) for name, value in one.weights().items())


@pytest.mark.parametrize("algorithm", ["blackfed-v2", "split", "individual"])
def test_a_foggy_and_a_night_vehicle_with_different_encoders_train_together(
    tiny_world: World, tmp_path: Path, other_bundle: Path, algorithm: str
) -> None:
    fleet = TinyFleet(
        tiny_world, tmp_path, algorithm=algorithm, rounds=1, feature_shapes=((4, 6, 8), (8, 12, 16))
    )
    host = _mixed_host(fleet, other_bundle, sight=SightConfig(condition="night:2", seed=1))
    foggy = msgspec.structs.replace(host.vehicles[0], sight=SightConfig(condition="fog:3"))
    run_in_process(
        fleet.config, [msgspec.structs.replace(host, vehicles=(foggy, host.vehicles[1]))], fleet.run_folder
    )
    result = fleet.result()
    for car in CARS:
        assert result["vehicles"][car]["local_miou"] > 0
        assert result["vehicles"][car]["ood_miou"] > 0
    assert {event["encoder"] for event in fleet.events("joined")} == {"stride8-c4", "stride4-c8"}


def test_another_encoder_that_is_not_declared_is_refused(
    tiny_world: World, tmp_path: Path, other_bundle: Path
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, feature_shapes=((4, 6, 8),))
    host = _mixed_host(fleet, other_bundle)
    hosts = [msgspec.structs.replace(host, vehicles=(vehicle,)) for vehicle in host.vehicles]
    with pytest.raises(VehicleError, match="8x12x16, the cloud's network takes 4x6x8"):
        run_in_process(fleet.config, hosts, fleet.run_folder)
