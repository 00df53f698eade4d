"""Weights of classes in the cloud's loss, in the vehicles' own, and in that of all in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, IMAGE_SIZE, TinyFleet, World
from start_fixtures import run
from supervision import Supervisor
from torch.nn import functional

from cloud_server.networks.build import build_network
from cloud_server.run.combinations import check_combination
from cloud_server.storage.class_counts import ClassCounts
from cloud_server.storage.label_store import LabelStore
from cloud_server.training.inference import Inference
from cloud_server.training.losses import LOSSES, downsample_labels, find_loss, loss_map
from cloud_server.training.trainer import Trainer, TrainerConfig
from datasets.catalog import open_dataset
from datasets.class_weights import balanced_weights, count_classes
from datasets.labels import CAMVID, VOID
from edge_client.frames import FrameCache, VehicleFrames
from edge_client.learners import local_loss
from edge_client.local.cross_entropy import cross_entropy
from fleet.scenario import Scenario, load_scenario, save_scenario
from protocol.codec.labels import content_hash, encode_label
from protocol.errors import Mistake, SettingError
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan

CLASSES = 5
TABLE = {"pole": 4.0, "car": 2.0}


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.standard_normal((2, CLASSES, 6, 8)).astype(np.float32))
    label = random.integers(0, CLASSES, (2, 6, 8)).astype(np.uint8)
    label[0, :2] = VOID
    return logits, torch.from_numpy(label)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_one_change_nothing_and_others_count(name: str) -> None:
    logits_BKhw, label_Bhw = batch()
    loss = find_loss(name)
    plain = loss(logits_BKhw, label_Bhw)
    assert loss(logits_BKhw, label_Bhw, torch.ones(CLASSES)).item() == pytest.approx(plain.item(), rel=1e-6)
    only_first = torch.zeros(CLASSES)
    only_first[0] = 1
    others_void = torch.where(label_Bhw == 0, label_Bhw, VOID).to(torch.uint8)
    alone = loss(logits_BKhw, others_void).item()
    weighted = loss(logits_BKhw, label_Bhw, only_first).item()
    if name == "dice":
        assert weighted == pytest.approx(alone, rel=1e-6)
    elif name == "cross-entropy":
        share = (label_Bhw == 0).sum() / (label_Bhw != VOID).sum()
        assert weighted == pytest.approx(alone * share.item(), rel=1e-6)


def test_cloud_and_vehicle_weigh_alike() -> None:
    logits_BKhw, label_Bhw = batch()
    weight_K = np.array([0.5, 1, 2, 4, 8], np.float32)
    leaf = logits_BKhw.clone().requires_grad_()
    loss = find_loss("cross-entropy")(leaf, label_Bhw, torch.from_numpy(weight_K))
    loss.backward()
    pixels = local_loss.pixel_weights(weight_K, label_Bhw.numpy())
    own, gradient = cross_entropy(logits_BKhw.numpy(), label_Bhw.numpy(), pixels)
    assert own == pytest.approx(loss.item(), rel=1e-6)
    assert leaf.grad is not None
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-7)
    maps = loss_map(logits_BKhw, label_Bhw, (3, 4), torch.from_numpy(weight_K))
    frames = [loss_of(logits_BKhw[i : i + 1], label_Bhw[i : i + 1], weight_K) for i in range(2)]
    assert maps.mean(dim=(1, 2)).tolist() == pytest.approx(frames, rel=1e-5)


def loss_of(logits_BKhw: torch.Tensor, label_Bhw: torch.Tensor, weight_K: np.ndarray) -> float:
    """Straight from the definition."""
    nats = functional.cross_entropy(logits_BKhw, label_Bhw.long(), ignore_index=VOID, reduction="none")
    known = label_Bhw != VOID
    weights = torch.from_numpy(weight_K)[torch.where(known, label_Bhw, 0).long()]
    return float((nats * weights)[known].sum() / known.sum())


def test_trainer_asks_for_weights_at_each_loss() -> None:
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=CLASSES, seed=0)
    trainer = Trainer(network, TrainerConfig(rate=1e-9))
    features_BCHW, label_BHW = torch.randn(2, 4, 6, 8), torch.randint(0, CLASSES, (2, 48, 64)).to(torch.uint8)
    logits_BKhw = trainer.network()(features_BCHW).detach()
    label_Bhw = downsample_labels(label_BHW, logits_BKhw.shape[-2:])
    before = trainer.evaluate_loss(features_BCHW, label_BHW)
    for weight_K in (np.ones(CLASSES, np.float32), np.array([9, 1, 1, 1, 1], np.float32)):
        trainer.weigh_classes(lambda weight_K=weight_K: weight_K)  # type: ignore[misc]
        expected = loss_of(logits_BKhw, label_Bhw, weight_K)
        assert trainer.evaluate_loss(features_BCHW, label_BHW) == pytest.approx(expected, rel=1e-4)
    assert expected > before


def test_counts_are_of_the_labels_that_are_there(tmp_path: Path) -> None:
    def put(vehicle: str, index: int, value: int) -> None:
        label_HW = np.full((2, 3), value, np.uint8)
        digest, coded = content_hash(label_HW), encode_label(label_HW)
        labels.add(vehicle, index, f"f{index}", digest, coded, height=2, width=3)

    with LabelStore(tmp_path, num_classes=3) as labels:
        counts = ClassCounts(labels, lambda vehicle: range(2), classes=3)
        assert counts.of(("a", "b")).tolist() == [0, 0, 0]
        put("a", 0, 1)
        put("a", 2, 0)  # no train frame
        put("b", 1, 2)
        assert counts.of(("a", "b")).tolist() == [0, 6, 6]
        assert counts.of(("a",)).tolist() == [0, 6, 0]
        put("a", 0, VOID)  # another label takes its place
        assert counts.of(("a", "b")).tolist() == [0, 0, 6]


def own_labels(fleet: TinyFleet, car: str) -> VehicleFrames:
    cache = FrameCache(open_dataset("camvid", fleet.world.data_root), IMAGE_SIZE)
    return VehicleFrames(cache, fleet.frames[car])


@pytest.mark.parametrize("algorithm", ["blackfleet", "individual"])
def test_balanced_weights_are_of_the_labels_that_a_learner_sees(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    in_the_cloud, on_vehicles = set(), set()
    weigh, own = Inference.weigh_classes, VehicleFrames.class_weights

    def noted(self: Inference, weights: Any) -> None:
        def asked() -> np.ndarray:
            found: np.ndarray = weights()
            in_the_cloud.add(tuple(found.tolist()))
            return found

        weigh(self, asked)

    def noted_own(self: VehicleFrames, weights: Any) -> Any:
        found = own(self, weights)
        on_vehicles.add(tuple(found.tolist()))
        return found

    monkeypatch.setattr(Inference, "weigh_classes", noted)
    monkeypatch.setattr(VehicleFrames, "class_weights", noted_own)
    fleet = TinyFleet(
        tiny_world,
        tmp_path,
        algorithm=algorithm,
        rounds=1,
        class_weights="balanced",
        first_order=FirstOrder(epochs=1, batch_size=4),
        local_loss=LocalLossPlan(warm_up_epochs=1, epochs=0),
    )
    Supervisor(fleet).run()
    counts = {
        car: np.sum(
            [count_classes(frames.label(i), CAMVID.num_classes) for i in frames.splits["train"]], axis=0
        )
        for car in CARS
        for frames in [own_labels(fleet, car)]
    }
    each = {tuple(balanced_weights(counts[car]).tolist()) for car in CARS}
    everyone = {tuple(balanced_weights(sum(counts.values())).tolist())}
    if algorithm == "blackfleet":
        assert (in_the_cloud, on_vehicles) == (everyone, each)
    else:
        assert (in_the_cloud, on_vehicles) == (each, set())


def test_all_in_one_place_learns_with_weights(tiny_world: World, tmp_path: Path) -> None:
    def loss(name: str, weights: object) -> float:
        settings = {
            "algorithm": "centralized",
            "vehicles": 1,
            "rounds": 1,
            "image_size": "64x48",
            "cores": 1,
            "class_weights": weights,
            "encoder": {"name": "stride8-c4", "mode": "rebuild"},
            "dataset": {"name": "camvid", "root": str(tiny_world.data_root)},
            "first_order": {"epochs": 1, "batch_size": 16},
            "evaluation": {"overlays": 0},
        }
        run(load_scenario(None, settings), tmp_path / name)
        events = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        [curve] = [event for event in events if event["event"] == "curve"]
        return float(curve["loss"])

    # a single step: its loss is that of the start
    assert loss("tripled", dict.fromkeys(CAMVID.train_names, 3.0)) == pytest.approx(3 * loss("plain", "none"))


def test_table_survives_the_scenario_file_and_an_unknown_class_is_named(tmp_path: Path) -> None:
    scenario = Scenario(class_weights=TABLE)
    (tmp_path / "scenario.yaml").write_text(save_scenario(scenario))
    assert load_scenario(tmp_path / "scenario.yaml", {}) == scenario
    assert load_scenario(tmp_path / "scenario.yaml", {"class_weights": "none"}).class_weights == "none"
    check_combination(scenario.cloud_config())
    with pytest.raises(SettingError, match="class_weights names 'tram', which is no class of cityscapes"):
        check_combination(Scenario(class_weights={"tram": 2.0}).cloud_config())
    with pytest.raises(Mistake, match=r"class_weights must be none, balanced or a table .*, got 'equal'"):
        load_scenario(None, {"class_weights": "equal"})
