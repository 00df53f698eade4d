"""Split learning with gradients, with nothing shared, and with frozen encoders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import (
    CARS,
    IMAGE_SIZE,
    TinyFleet,
    World,
    tag,
    unreliable_bus,
)
from supervision import Supervisor
from torch.nn.utils import parameters_to_vector
from turn_fixtures import empty_turn

from cloud_server.desk.turns import ActiveTurn
from cloud_server.networks.build import build_network
from cloud_server.storage.checkpoint import load_checkpoint
from cloud_server.training.losses import cross_entropy, downsample_labels
from datasets.catalog import open_dataset
from datasets.frame import resize_frame
from edge_client.encoder.bundle import EncoderBundle
from fleet.export.encoders import build_encoder
from protocol.codec.tensor import decode, encode
from protocol.messages import (
    Ack,
    Gradient,
    TrainStep,
    Upload,
)
from protocol.noise import derive_seed, permutation
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.white_box import WhiteBoxPlan
from protocol.rates import cosine_rate
from protocol.session.memory import MemoryBus

CAR = CARS[0]
_EPOCHS = 3
PLAN = WhiteBoxPlan()


def _run(fleet: TinyFleet, bus: MemoryBus | None = None) -> TinyFleet:
    Supervisor(fleet, bus).run()
    return fleet


# What is learnt ---------------------------------------------------------------------------------------


class Reference:
    """Encoder and network in torch, with the optimizers, batches and rates of a fleet of one vehicle."""

    def __init__(self, fleet: TinyFleet) -> None:
        self._config = fleet.config
        self.encoder = build_encoder("stride8-c4", 0).folded()
        self.network = build_network(
            "compact",
            feature_shape=(4, IMAGE_SIZE[1] // 8, IMAGE_SIZE[0] // 8),
            feature_stride=8,
            num_classes=11,
            seed=derive_seed(fleet.config.seed, "network") % 2**63,
        ).train()
        for parameter in self.network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._steppers = [
            (torch.optim.Adam(self.encoder.parameters()), fleet.config.white_box.rate),
            (
                torch.optim.AdamW(
                    self.network.parameters(), weight_decay=fleet.config.first_order.weight_decay
                ),
                fleet.config.first_order.rate,
            ),
        ]
        source = open_dataset("camvid", fleet.world.data_root)
        refs = {ref.key: ref for ref in source.refs}
        frames = [resize_frame(source.load(refs[key]), *IMAGE_SIZE) for key in fleet.frames[CAR]["train"]]
        self._images = torch.from_numpy(np.stack([frame.image_HWC for frame in frames]))
        self._labels = torch.from_numpy(np.stack([frame.label_HW for frame in frames]))

    def batches(self) -> Iterator[torch.Tensor]:
        """The frames of each step of the run."""
        n, batch_size = len(self._images), self._config.first_order.batch_size
        for turn_id in range(1, self._config.rounds + 1):
            seed = derive_seed(self._config.seed, "turn", turn_id, CAR)
            for epoch in range(self._config.first_order.epochs):
                order = torch.from_numpy(permutation(derive_seed(seed, "batches", epoch), n))
                yield from (order[start : start + batch_size] for start in range(0, n, batch_size))

    def features(self, chosen: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.encoder(self._images[chosen])
        return features

    def loss(self, features: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        logits = self.network(features)
        return cross_entropy(logits, downsample_labels(self._labels[chosen], logits.shape[-2:]))

    def step(self, share: float) -> None:
        """Both optimizers, with the gradients that are there."""
        for optimizer, rate in self._steppers:
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad()

    def theta(self) -> np.ndarray:
        return parameters_to_vector(self.encoder.parameters()).detach().numpy()


def _assert_learnt_the_same(fleet: TinyFleet, reference: Reference) -> None:
    """Within 1e-4, but for the few elements whose gradient is nothing but rounding: there Adam, which takes a
    full step along whatever sign it sees, may rightly go another way."""
    learnt = fleet.states(CAR).load(fleet.config.rounds).theta
    assert np.abs(learnt - EncoderBundle.load(fleet.world.bundle).theta0).mean() > 1e-3
    assert np.quantile(np.abs(learnt - reference.theta()), 0.99) < 1e-4
    if fleet.config.algorithm == "split":
        got = load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")[0]
    else:
        got = fleet.kept("own", CAR, fleet.config.rounds)
    expected = dict(reference.network.named_parameters())
    apart = torch.cat([(got[f"/network/{name}"] - value).abs().ravel() for name, value in expected.items()])
    assert torch.quantile(apart, 0.99) < 1e-4


@pytest.mark.parametrize("algorithm", ["split", "individual"])
def test_learning_over_the_bus_equals_joint_training(
    algorithm: str, tiny_world: World, tmp_path: Path
) -> None:
    """With float32 both ways: as one autograd through encoder and network on the same batches."""
    fleet = TinyFleet(
        tiny_world,
        tmp_path,
        algorithm=algorithm,
        vehicles=(CAR,),
        coding=Coding(bits=32),
        first_order=FirstOrder(epochs=1, batch_size=4, rate=1e-4),
    )
    _run(fleet)
    reference = Reference(fleet)
    batches = list(reference.batches())
    for number, chosen in enumerate(batches):
        torch.autograd.backward(reference.loss(reference.features(chosen), chosen))
        reference.step(cosine_rate(number, len(batches)))
    _assert_learnt_the_same(fleet, reference)


def test_every_step_equals_autograd(tiny_world: World, tmp_path: Path) -> None:
    """Each message of a longer run against torch, which goes on from what the messages said."""
    bus = MemoryBus()
    steps: list[TrainStep] = []
    answers: list[Gradient] = []

    def listen(topic: str, payload: bytes, qos: int) -> None:
        if tag(payload) == "train":
            steps.append(msgspec.msgpack.decode(payload[1:], type=TrainStep))
        elif tag(payload) == "gradient":
            answers.append(msgspec.msgpack.decode(payload[1:], type=Gradient))

    bus.record(listen)
    fleet = TinyFleet(
        tiny_world,
        tmp_path,
        algorithm="split",
        vehicles=(CAR,),
        coding=Coding(bits=32),
        first_order=FirstOrder(epochs=_EPOCHS, batch_size=4, rate=1e-4),
    )
    _run(fleet, bus)
    reference = Reference(fleet)
    batches = list(reference.batches())
    assert len(steps) == len(answers) == len(batches) == 12
    for number, (chosen, step, answer) in enumerate(zip(batches, steps, answers, strict=True)):
        assert list(step.frames) == chosen.tolist()
        shape = (len(chosen), 4, 6, 8)
        sent = torch.from_numpy(decode(step.features, expected_shape=shape).copy()).requires_grad_()
        features = reference.features(chosen)
        assert (features - sent).norm() < 1e-2 * sent.norm()
        loss = reference.loss(sent.contiguous(memory_format=torch.channels_last), chosen)
        torch.autograd.backward(loss)
        assert answer.loss == pytest.approx(loss.item(), rel=1e-3)
        assert answer.rate_share == pytest.approx(cosine_rate(number, 12))
        gradient = torch.from_numpy(decode(answer.gradient, expected_shape=shape).copy())
        assert sent.grad is not None
        assert (gradient - sent.grad).norm() < 1e-2 * sent.grad.norm()
        torch.autograd.backward(features, gradient)
        reference.step(answer.rate_share)
    _assert_learnt_the_same(fleet, reference)


def test_quantised_gradients_teach_nearly_the_same(calm_white_box: TinyFleet, tmp_path: Path) -> None:
    config = calm_white_box.config
    coarse = TinyFleet(
        calm_white_box.world, tmp_path, algorithm=config.algorithm, white_box=WhiteBoxPlan(gradient_bits=8)
    )
    _run(coarse)
    losses = [fleet.events("learned")[-1]["losses"][-1] for fleet in (coarse, calm_white_box)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    downlink = [fleet.result()["downlink_bytes"] for fleet in (coarse, calm_white_box)]
    assert downlink[0] < 0.5 * downlink[1]


def test_unknown_gradient_coding_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient_bits must be one of 32, 8, 6, 4, 3, 2, got 5"):
        WhiteBoxPlan(gradient_bits=5)


def test_individual_vehicle_learns_the_same_alone_and_in_company(tiny_world: World, tmp_path: Path) -> None:
    alone = _run(TinyFleet(tiny_world, tmp_path / "alone", algorithm="individual", vehicles=(CAR,)))
    company = _run(TinyFleet(tiny_world, tmp_path / "company", algorithm="individual"))
    one, other = alone.fingerprint(), company.fingerprint()
    mine = [name for name in one if name.endswith(f"of {CAR}")]
    assert any("turn" in name for name in mine) and any("network" in name for name in mine)
    assert {name: one[name] for name in mine} == {name: other[name] for name in mine}
    for split in ("local_miou", "ood_miou"):
        assert alone.result()["vehicles"][CAR][split] == company.result()["vehicles"][CAR][split]


def test_individual_networks_differ_and_need_no_memory_each(tiny_world: World, tmp_path: Path) -> None:
    """With room for one network in memory the result is the same: the others wait on disk."""
    roomy = _run(TinyFleet(tiny_world, tmp_path / "roomy", algorithm="individual"))
    tight = _run(
        TinyFleet(tiny_world, tmp_path / "tight", algorithm="individual", store_capacity=1, parallel_turns=1)
    )
    assert roomy.fingerprint() == tight.fingerprint()
    one, other = (roomy.kept("own", car, 2) for car in CARS)
    weights = [name for name in one if name.startswith("/network/") and name.endswith("weight")]
    assert weights and all(not torch.equal(one[name], other[name]) for name in weights)


def test_frozen_encoders_never_change(tiny_world: World, tmp_path: Path) -> None:
    bus, seen = MemoryBus(), Counter[str]()
    uploads: dict[tuple[str, str, tuple[int, ...]], set[bytes]] = {}

    def listen(topic: str, payload: bytes, qos: int) -> None:
        seen[tag(payload)] += 1
        if tag(payload) == "upload":
            message = msgspec.msgpack.decode(payload[1:], type=Upload)
            place = (message.vehicle, message.split, message.frames)
            if message.split in ("train", "val"):
                uploads.setdefault(place, set()).add(bytes(message.features.data))

    bus.record(listen)
    fleet = _run(TinyFleet(tiny_world, tmp_path, algorithm="frozen"), bus)
    assert seen["upload"] > 0 and not seen.keys() & {"query", "feedback", "train", "gradient"}
    assert uploads and all(len(contents) == 1 for contents in uploads.values())
    assert not [path for car in CARS for path in fleet.state_folder(car).glob("turn-*.state")]
    result = fleet.result()
    assert result["mean_local_miou"] > 5 * result["initial_local_miou"]
    assert all(entry["queries"] == 0 for entry in result["vehicles"].values())


# What crosses the bus ---------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["blackfed-v1", "blackfed-v2", "frozen", "split", "individual"])
def test_gradients_cross_the_bus_only_where_the_box_is_white(
    algorithm: str, tiny_world: World, tmp_path: Path
) -> None:
    bus, seen = MemoryBus(), Counter[str]()
    bus.record(lambda topic, payload, qos: seen.update([tag(payload)]))
    _run(TinyFleet(tiny_world, tmp_path, algorithm=algorithm, rounds=1), bus)
    white = algorithm in ("split", "individual")
    assert (seen["gradient"] > 0, seen["train"] > 0) == (white, white)
    assert (seen["query"] > 0) == algorithm.startswith("blackfed")


# Progress ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["blackfed-v1", "blackfed-v2", "frozen", "split", "individual"])
def test_curve_and_result_state_the_budget(algorithm: str, tiny_world: World, tmp_path: Path) -> None:
    """Every algorithm sees each train frame epochs × rounds times, and says so as it goes."""
    fleet = _run(TinyFleet(tiny_world, tmp_path, algorithm=algorithm))
    curve, result = fleet.events("curve"), fleet.result()
    stages = [event["stage"] for event in fleet.events("committed") if event["kind"] == "train"]
    assert [event["stage"] for event in curve] == stages
    total = sum(entry["frames_train"] for entry in result["vehicles"].values()) * _EPOCHS * 2
    steps = np.diff([0, *(event["frames_seen"] for event in curve)])
    assert result["frames_seen"] == curve[-1]["frames_seen"] == total
    assert set(steps) == {total // len(stages)}
    for name in ("uplink_bytes", "downlink_bytes", "wall_s"):
        values = [event[name] for event in curve]
        assert values == sorted(values) and values[0] > 0 and values[-1] <= result[name]
    validated = {event["vehicle"]: event["best"] for event in fleet.events("validation")}
    assert curve[-1]["val_miou"] == pytest.approx(np.mean(list(validated.values())))
    assert curve[-1]["loss"] < curve[0]["loss"]
    confusion = np.array(result["confusion"])
    assert confusion.shape == (11, 11) and confusion.sum() > 0
    hits = np.diagonal(confusion)
    with np.errstate(invalid="ignore"):
        ious = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    expected = [np.nan if iou is None else iou for iou in result["classes"].values()]
    np.testing.assert_allclose(ious, expected)


# Exactly once -----------------------------------------------------------------------------------------


def _again(calm_white_box: TinyFleet, folder: Path) -> TinyFleet:
    return TinyFleet(calm_white_box.world, folder, algorithm=calm_white_box.config.algorithm)


def test_unreliable_delivery_changes_nothing(calm_white_box: TinyFleet, tmp_path: Path) -> None:
    bus = unreliable_bus(3, duplicate=0.3, delay=0.1, drop=0.05)
    fleet = _run(_again(calm_white_box, tmp_path), bus)
    assert fleet.fingerprint() == calm_white_box.fingerprint()
    assert fleet.result()["frames_seen"] == calm_white_box.result()["frames_seen"]


def test_killed_processes_change_nothing(calm_white_box: TinyFleet, tmp_path: Path) -> None:
    """In the midst of a turn, where the network has learnt from half of it already; and at its end."""
    points = {(CAR, "train", 3), (CARS[1], "gradient", 2), (CARS[1], "train", 9), (CAR, "upload", 4)}
    points |= {(CARS[1], "done", 3), (CAR, "gradient", 12)}
    supervisor = Supervisor(_again(calm_white_box, tmp_path))
    supervisor.run_with_kills(points)
    assert supervisor.fleet.fingerprint() == calm_white_box.fingerprint()
    assert supervisor.fleet.scores() == calm_white_box.scores()


def test_only_the_latest_gradient_is_kept_for_repetition() -> None:
    identity: dict[str, Any] = {"vehicle": CAR, "grant": "ab" * 8, "turn_id": 1}
    turn = empty_turn(**identity, learner=PLAN, epochs=1, batch_size=2, uploads=("val",))
    active = ActiveTurn(turn=turn, granted_at=0.0)
    gradient = encode(np.ones((1, 2, 3, 4), np.float32), 32)
    for step in (2, 3, 5):
        active.answered_largely(step)
        active.answers[step] = Gradient(**identity, step=step, loss=1.0, rate_share=1.0, gradient=gradient)
    kept = {step: type(answer) for step, answer in active.answers.items()}
    assert kept == {2: Ack, 3: Ack, 5: Gradient}
    assert active.answers[2].step == 2
