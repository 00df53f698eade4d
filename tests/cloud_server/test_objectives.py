"""Adapting to a network that stays as it is: exact gradients, the entropy in place of labels, and film."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import torch
from film_reference import FilmEncoder
from fleet_fixtures import (
    CARS,
    IMAGE_SIZE,
    TinyFleet,
    World,
    tag,
    unreliable_bus,
)
from rich.console import Console
from supervision import Supervisor
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import fleet.cli.sweep as comparing
from cloud_server.config import NetworkConfig, ZerothOrderConfig
from cloud_server.errors import CloudError
from cloud_server.networks.build import build_network
from cloud_server.storage.checkpoint import load_checkpoint
from cloud_server.training.losses import cross_entropy, downsample_labels
from datasets.catalog import open_dataset
from datasets.frame import resize_frame
from edge_client.encoder.bundle import EncoderBundle
from fleet.export.encoders import build_encoder
from fleet.scenario import DatasetPart, Scenario
from protocol.codec.tensor import decode
from protocol.messages import Gradient, LabelOffer, Labels, TrainStep, Upload
from protocol.noise import derive_seed, permutation
from protocol.plans.activation import ActivationPlan
from protocol.plans.adaptation import Adaptation
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan
from protocol.rates import cosine_rate
from protocol.session.memory import MemoryBus

CAR = CARS[0]
_VOID_ID = 11
"""In CamVid's files."""
STAYS = NetworkConfig(learns=False)
ENTROPY = Adaptation(objective="entropy")
ACTIVATION: dict[str, Any] = {
    "zeroth_order": ZerothOrderConfig(batches=2, batch_size=3, estimator="activation"),
    "activation": ActivationPlan(seeds=2, rate=1e-2),
}
LEARNERS: dict[str, dict[str, Any]] = {
    "spsa-gc": {"algorithm": "blackfed-v1"},
    "activation": {"algorithm": "blackfed-v2", **ACTIVATION},
    "split": {"algorithm": "split"},
    "individual": {"algorithm": "individual"},
}
"""Those who can learn without labels."""


def fleet_of(world: World, folder: Path, **changes: Any) -> TinyFleet:
    settings = {
        "network": STAYS,
        "first_order": FirstOrder(epochs=2, batch_size=4, rate=5e-3),
        "local_loss": LocalLossPlan(warm_up_epochs=1, epochs=1),
    }
    return TinyFleet(world, folder, **{**settings, **changes})


def initial_network(fleet: TinyFleet) -> nn.Module:
    """The cloud's network as a run of this fleet starts with it."""
    return build_network(
        "compact",
        feature_shape=(4, IMAGE_SIZE[1] // 8, IMAGE_SIZE[0] // 8),
        feature_stride=8,
        num_classes=11,
        seed=derive_seed(fleet.config.seed, "network") % 2**63,
    )


class Recorder:
    """What a run says on its bus, as far as it is asked about here."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.tags = Counter[str]()
        self.labelled: defaultdict[str, set[int]] = defaultdict(set)
        """By vehicle: frames whose label was offered or sent."""
        self.uploaded = Counter[str]()
        """Messages by split."""
        self.steps: list[TrainStep] = []
        self.answers: list[Gradient] = []
        self.bus.record(self._listen)

    def _listen(self, topic: str, payload: bytes, qos: int) -> None:
        name = tag(payload)
        self.tags[name] += 1
        kinds: dict[str, type] = {
            kind.__struct_config__.tag: kind for kind in (LabelOffer, Labels, Upload, TrainStep, Gradient)
        }
        message = msgspec.msgpack.decode(payload[1:], type=kinds[name]) if name in kinds else None
        match message:
            case LabelOffer():
                self.labelled[message.vehicle].update(label.index for label in message.labels)
            case Labels():
                self.labelled[message.vehicle].update(label.index for label, _ in message.labels)
            case Upload():
                self.uploaded[message.split] += 1
            case TrainStep():
                self.steps.append(message)
            case Gradient():
                self.answers.append(message)


# A network that stays ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [*LEARNERS.values(), {"algorithm": "frozen"}, {"algorithm": "blackfleet"}],
    ids=[*LEARNERS, "frozen", "blackfleet"],
)
def test_network_that_stays_is_never_changed_and_gets_no_train_features(
    changes: dict[str, Any], tiny_world: World, tmp_path: Path
) -> None:
    """Neither a weight nor a statistic of BatchNorm, whoever learns."""
    recorder, fleet = Recorder(), fleet_of(tiny_world, tmp_path, **changes)
    Supervisor(fleet, recorder.bus).run()
    initial = initial_network(fleet).state_dict()
    if changes["algorithm"] == "individual":
        networks = [fleet.kept("own", car, fleet.config.rounds) for car in CARS]
    else:
        networks = [load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")[0]]
    for network in networks:
        assert all(torch.equal(network[f"/network/{name}"], value) for name, value in initial.items())
    assert set(recorder.uploaded) == {"val", "test", "ood"}
    theta0 = EncoderBundle.load(tiny_world.bundle).theta0
    for car in CARS:
        if changes["algorithm"] == "frozen":
            assert not [*fleet.state_folder(car).glob("turn-*.state")]
        else:
            turns = [event["stage"] for event in fleet.events("turn") if event["vehicle"] == car]
            assert not np.array_equal(fleet.states(car).load(turns[-2]).theta, theta0)
    white = changes["algorithm"] in ("split", "individual")
    assert (fleet.result()["frames_seen"] > 0) == white


class Reference:
    """Encoder in torch before a network in evaluation mode, for a fleet of one vehicle."""

    def __init__(self, fleet: TinyFleet) -> None:
        self._config = fleet.config
        plain = build_encoder("stride8-c4", 0).folded()
        self.encoder = FilmEncoder(plain) if fleet.config.adaptation.subspace == "film" else plain
        self._network = initial_network(fleet).eval().requires_grad_(False)
        self._adam = torch.optim.Adam(self.encoder.parameters())
        source = open_dataset("camvid", fleet.world.data_root)
        refs = {ref.key: ref for ref in source.refs}
        frames = [resize_frame(source.load(refs[key]), *IMAGE_SIZE) for key in fleet.frames[CAR]["train"]]
        self._images = torch.from_numpy(np.stack([frame.image_HWC for frame in frames]))
        self._labels = torch.from_numpy(np.stack([frame.label_HW for frame in frames]))

    def batches(self) -> list[Tensor]:
        """The frames of each step of the run."""
        n, size = len(self._images), self._config.first_order.batch_size
        found = []
        for turn_id in range(1, self._config.rounds + 1):
            seed = derive_seed(self._config.seed, "turn", turn_id, CAR)
            for epoch in range(self._config.first_order.epochs):
                order = torch.from_numpy(permutation(derive_seed(seed, "batches", epoch), n))
                found += [order[start : start + size] for start in range(0, n, size)]
        return found

    def features(self, chosen: Tensor) -> Tensor:
        features: Tensor = self.encoder(self._images[chosen])
        return features

    def loss(self, features: Tensor, chosen: Tensor) -> Tensor:
        logits = self._network(features)
        if self._config.adaptation.objective == "entropy":
            entropy: Tensor = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy()
            return entropy.mean()
        return cross_entropy(logits, downsample_labels(self._labels[chosen], logits.shape[-2:]))

    def step(self, features: Tensor, gradient: Tensor, share: float) -> None:
        """Adam on what learns, with the gradient that came back at the features."""
        self._adam.zero_grad()
        torch.autograd.backward(features, gradient)
        self._adam.param_groups[0]["lr"] = self._config.white_box.rate * share
        self._adam.step()

    def theta(self) -> np.ndarray:
        if isinstance(self.encoder, FilmEncoder):
            return torch.cat([value.ravel() for value in self.encoder.moved().values()]).detach().numpy()
        return parameters_to_vector(self.encoder.parameters()).detach().numpy()


@pytest.mark.parametrize(
    ("algorithm", "subspace", "objective"),
    [
        ("split", "all", "labels"),
        ("split", "film", "entropy"),
        ("individual", "all", "entropy"),
        ("individual", "film", "labels"),
    ],
)
def test_gradients_and_steps_equal_autograd_through_the_network_in_evaluation_mode(
    algorithm: str, subspace: str, objective: str, tiny_world: World, tmp_path: Path
) -> None:
    """Each message of a run, its rate by the schedule, and what the vehicle learnt from them."""
    recorder = Recorder()
    fleet = fleet_of(
        tiny_world,
        tmp_path,
        algorithm=algorithm,
        adaptation=Adaptation(subspace=subspace, objective=objective),
        vehicles=(CAR,),
        coding=Coding(bits=32),
    )
    Supervisor(fleet, recorder.bus).run()
    reference = Reference(fleet)
    batches = reference.batches()
    assert len(recorder.steps) == len(recorder.answers) == len(batches) == 8
    steps = zip(batches, recorder.steps, recorder.answers, strict=True)
    for number, (chosen, step, answer) in enumerate(steps):
        assert list(step.frames) == chosen.tolist()
        shape = (len(chosen), 4, 6, 8)
        sent = torch.from_numpy(decode(step.features, expected_shape=shape).copy()).requires_grad_()
        features = reference.features(chosen)
        assert (features - sent).norm() < 1e-4 * sent.norm()
        loss = reference.loss(sent, chosen)
        torch.autograd.backward(loss)
        assert sent.grad is not None
        gradient = torch.from_numpy(decode(answer.gradient, expected_shape=shape).copy())
        assert answer.loss == pytest.approx(loss.item(), rel=1e-5)
        assert answer.rate_share == pytest.approx(cosine_rate(number, len(batches)))
        assert (gradient - sent.grad).norm() < 1e-4 * sent.grad.norm()
        reference.step(features, gradient, answer.rate_share)
    learnt = fleet.states(CAR).load(fleet.config.rounds).theta
    assert np.abs(learnt - EncoderBundle.load(tiny_world.bundle).theta0).mean() > 1e-5
    assert np.quantile(np.abs(learnt - reference.theta()), 0.99) < 1e-5


# Without labels ---------------------------------------------------------------------------------------


def without_labels(name: str, world: World, folder: Path, **changes: Any) -> TinyFleet:
    return fleet_of(world, folder, **{"adaptation": ENTROPY, **LEARNERS[name], **changes})


@pytest.fixture(scope="module", params=LEARNERS)
def calm(
    request: pytest.FixtureRequest, tiny_world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, TinyFleet, Recorder]:
    """A way of learning, and a run of it without labels and without any disturbance."""
    recorder = Recorder()
    fleet = without_labels(request.param, tiny_world, tmp_path_factory.mktemp("calm"))
    Supervisor(fleet, recorder.bus).run()
    return request.param, fleet, recorder


def test_no_label_of_a_train_frame_is_offered_or_sent(calm: tuple[str, TinyFleet, Recorder]) -> None:
    _, fleet, recorder = calm
    for car in CARS:
        counts = {split: len(keys) for split, keys in fleet.frames[car].items()}
        assert recorder.labelled[car] == set(range(counts["train"], sum(counts.values())))
    assert recorder.tags["query"] + recorder.tags["seeded"] + recorder.tags["train"] > 0
    assert all(entry["rejects"] == 0 for entry in fleet.result()["vehicles"].values())
    turns = [event for event in fleet.events("turn_done") if event["kind"] == "train"]
    assert turns and all(0 < event["loss"] < math.log(11) for event in turns)


def test_train_labels_on_disk_make_no_difference(
    calm: tuple[str, TinyFleet, Recorder], tmp_path: Path
) -> None:
    """The same run on a data set whose train labels are all void ends with the same bits."""
    name, fleet, _ = calm
    root = shutil.copytree(fleet.world.data_root, tmp_path / "data")
    for keys in fleet.frames.values():
        for key in keys["train"]:
            path = next((root / "trainannot").glob(f"{key}*"))
            cv2.imwrite(str(path), np.full_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), _VOID_ID))
    world = dataclasses.replace(fleet.world, data_root=root)
    other = without_labels(name, world, tmp_path)
    Supervisor(other).run()
    assert other.fingerprint() == fleet.fingerprint()


def test_killed_processes_change_nothing(calm: tuple[str, TinyFleet, Recorder], tmp_path: Path) -> None:
    """In the midst of what is asked in a turn, and at its end."""
    name, fleet, _ = calm
    asked = {"spsa-gc": "query", "activation": "seeded"}.get(name, "train")
    points = {(CAR, asked, 2), (CARS[1], asked, 3), (CAR, "done", 2), (CARS[1], "upload", 3)}
    supervisor = Supervisor(without_labels(name, fleet.world, tmp_path))
    supervisor.run_with_kills(points)
    assert supervisor.fleet.fingerprint() == fleet.fingerprint()


def test_unreliable_delivery_changes_nothing(calm: tuple[str, TinyFleet, Recorder], tmp_path: Path) -> None:
    name, fleet, _ = calm
    bus = unreliable_bus(3, duplicate=0.1, delay=0.1, drop=0.1)
    other = without_labels(name, fleet.world, tmp_path)
    Supervisor(other, bus).run()
    assert other.fingerprint() == fleet.fingerprint()


def test_entropy_falls_while_vehicles_follow_its_exact_gradient(tiny_world: World, tmp_path: Path) -> None:
    film = Adaptation(objective="entropy", subspace="film")
    fleet = without_labels("split", tiny_world, tmp_path, vehicles=(CAR,), adaptation=film, rounds=3)
    Supervisor(fleet).run()
    losses = [loss for event in fleet.events("learned") for loss in event["losses"]]
    assert losses == sorted(losses, reverse=True)


# What goes together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": "split", "adaptation": ENTROPY, "network": NetworkConfig()},
            r"objective entropy needs network.learns false \(--no-network-learns\)",
        ),
        ({"algorithm": "blackfleet", "adaptation": ENTROPY}, "local head, which needs labels"),
        (
            {"algorithm": "split", "first_order": FirstOrder(replay_steps=2)},
            "first_order.replay_steps must be 0, got 2",
        ),
        ({"algorithm": "fedavg"}, "fedavg trains .* network.learns must be true, got false"),
        (
            {"algorithm": "fedavg", "adaptation": Adaptation(subspace="film"), "network": NetworkConfig()},
            "adaptation.subspace must be all",
        ),
    ],
    ids=[
        "entropy and a network that learns",
        "entropy in blackfleet",
        "replay",
        "fedavg that stays",
        "fedavg on film",
    ],
)
def test_settings_that_contradict_each_other_make_no_run(
    changes: dict[str, Any], message: str, tiny_world: World, tmp_path: Path
) -> None:
    with pytest.raises(CloudError, match=message) as caught:
        Supervisor(fleet_of(tiny_world, tmp_path, **changes)).run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("objective", "labels, entropy, pseudo-labels"),
        ("subspace", r"all, film, projection, projection\+film"),
    ],
)
def test_unknown_name_is_refused_with_the_known_ones(name: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"adaptation.{name} must be one of {known}, got 'mood'"):
        Adaptation(**{name: "mood"})  # type: ignore[arg-type]


def test_comparison_refuses_before_its_first_run(tiny_world: World, tmp_path: Path) -> None:
    scenario = Scenario(
        vehicles=2,
        network=STAYS,
        image_size="64x48",
        dataset=DatasetPart(name="camvid", root=str(tiny_world.data_root)),
    )
    with pytest.raises(ValueError, match=r"centralized trains .* network.learns must be true"):
        comparing.compare(
            scenario, ("split", "centralized"), (0,), tmp_path / "compare", console=Console(quiet=True)
        )
    assert not (tmp_path / "compare").exists()
