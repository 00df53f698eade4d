"""What a cloud that stays makes of vehicles' present frames: statistics, pseudo-labels, and the guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, TinyFleet, World, tag
from supervision import Supervisor
from test_objectives import ACTIVATION, CAR, Recorder, fleet_of, initial_network
from torch import Tensor

from cloud_server.config import NetworkConfig, UploadConfig
from cloud_server.errors import CloudError
from cloud_server.training.batch_statistics import mixed_statistics
from cloud_server.training.losses import cross_entropy
from datasets.labels import VOID
from edge_client.encoder.bundle import EncoderBundle
from protocol.batches import batch_bounds
from protocol.codec.tensor import decode
from protocol.messages import Upload
from protocol.noise import derive_seed, permutation
from protocol.plans.adaptation import Adaptation
from protocol.plans.augmentation import Augmentation
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.present import Present
from protocol.plans.sharing import Sharing
from protocol.plans.white_box import WhiteBoxPlan

SHAPE = (4, 6, 8)
PSEUDO = Adaptation(objective="pseudo-labels")
ALL = Present(statistics=0.75, confidence=0.12, momentum=0.25, guard=0.001)
LEARNERS: dict[str, dict[str, Any]] = {
    "split": {"algorithm": "split"},
    "activation": {"algorithm": "blackfed-v1", **ACTIVATION},
}


class Uploads(Recorder):
    """With the features of train frames."""

    def __init__(self) -> None:
        self.train: dict[int, dict[int, Tensor]] = {}
        """By turn: features_CHW by frame, in the order of their steps."""
        super().__init__()

    def _listen(self, topic: str, payload: bytes, qos: int) -> None:
        super()._listen(topic, payload, qos)
        if tag(payload) == "upload":
            message = msgspec.msgpack.decode(payload[1:], type=Upload)
            if message.split == "train":
                features = decode(message.features, expected_shape=(len(message.frames), *SHAPE))
                frames = zip(message.frames, torch.from_numpy(features.copy()), strict=True)
                self.train.setdefault(message.turn_id, {}).update(frames)


def present_fleet(world: World, folder: Path, name: str = "split", **changes: Any) -> TinyFleet:
    return fleet_of(world, folder, **{"adaptation": PSEUDO, "present": ALL, **LEARNERS[name], **changes})


@pytest.fixture(scope="module", params=LEARNERS)
def calm(
    request: pytest.FixtureRequest, tiny_world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, TinyFleet, Recorder]:
    recorder = Recorder()
    fleet = present_fleet(tiny_world, tmp_path_factory.mktemp("calm"), request.param)
    Supervisor(fleet, recorder.bus).run()
    return request.param, fleet, recorder


def test_no_label_of_a_train_frame_crosses_though_its_features_do(
    calm: tuple[str, TinyFleet, Recorder],
) -> None:
    _, fleet, recorder = calm
    for car in CARS:
        counts = {split: len(keys) for split, keys in fleet.frames[car].items()}
        assert recorder.labelled[car] == set(range(counts["train"], sum(counts.values())))
    assert recorder.uploaded["train"] >= len(CARS) * (1 + fleet.config.rounds)
    assert all(entry["rejects"] == 0 for entry in fleet.result()["vehicles"].values())


def test_each_vehicle_is_known_by_itself(calm: tuple[str, TinyFleet, Recorder]) -> None:
    _, fleet, _ = calm
    newest = {event["vehicle"]: event["stage"] for event in fleet.events("present")}
    known = [fleet.kept("present", car, newest[car]) for car in CARS]
    names = [name for name in known[0] if name.startswith("statistics/")]
    assert names and all(not torch.equal(known[0][name], known[1][name]) for name in names)
    assert all(0 < event["sure"] <= 1 and event["agreement"] > 0 for event in fleet.events("present"))


def test_killed_processes_change_nothing(calm: tuple[str, TinyFleet, Recorder], tmp_path: Path) -> None:
    """At the end of the turn in which frames are first seen, in the midst of learning, and after it."""
    name, fleet, _ = calm
    asked = {"activation": "seeded"}.get(name, "train")
    points = {(CAR, "done", 1), (CARS[1], asked, 2), (CAR, "done", 2), (CARS[1], "upload", 9)}
    supervisor = Supervisor(present_fleet(fleet.world, tmp_path, name))
    supervisor.run_with_kills(points)
    assert supervisor.fleet.fingerprint() == fleet.fingerprint()
    assert supervisor.fleet.scores() == fleet.scores()


def test_gradients_are_of_pseudo_labels_under_the_vehicle_s_statistics(
    tiny_world: World, tmp_path: Path
) -> None:
    """Each answer of a run, computed anew in torch from the features that crossed."""
    recorder = Uploads()
    fleet = present_fleet(
        tiny_world,
        tmp_path,
        vehicles=(CAR,),
        coding=Coding(bits=32),
        first_order=FirstOrder(epochs=1, batch_size=4, rate=5e-3),
        white_box=WhiteBoxPlan(rate=0.05),
    )
    fleet.frames[CAR]["ood"] = ()
    Supervisor(fleet, recorder.bus).run()
    likely: dict[int, Tensor] = {}
    answers = iter(zip(recorder.steps, recorder.answers, strict=True))
    for turn_id in (1, 2):
        uploaded = recorder.train[turn_id - 1]
        features = torch.stack(list(uploaded.values()))
        network = initial_network(fleet).eval()
        own = initial_network(fleet).train()
        for module in own.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        order = permutation(derive_seed(0, "statistics", turn_id - 1, CAR), len(features))
        with torch.no_grad():
            for start, stop in batch_bounds(len(order), 4):
                own(features[torch.from_numpy(order[start:stop])])
        mixed = mixed_statistics(network.state_dict(), _running(own), ALL.statistics)
        network.load_state_dict({**network.state_dict(), **mixed})
        with torch.no_grad():
            seen = dict(zip(uploaded, network(features).softmax(dim=1), strict=True))
        share = ALL.momentum if likely else 0.0
        likely = {
            frame: (share * likely.get(frame, now) + (1 - share) * now).half().float()  # as it is kept
            for frame, now in seen.items()
        }
        for step, answer in (next(answers) for _ in range(len(recorder.steps) // 2)):
            batch = torch.stack([likely[frame] for frame in step.frames])
            sure, labels = batch.max(dim=1)
            labels[sure < ALL.confidence] = VOID
            assert 0 < (labels == VOID).float().mean() < 1, sure.quantile(torch.arange(0, 1.01, 0.25))
            shape = (len(step.frames), *SHAPE)
            sent = torch.from_numpy(decode(step.features, expected_shape=shape).copy()).requires_grad_()
            loss = cross_entropy(network(sent), labels)
            loss.backward()
            assert sent.grad is not None
            gradient = torch.from_numpy(decode(answer.gradient, expected_shape=shape).copy())
            assert answer.loss == pytest.approx(loss.item(), rel=0.02)
            assert torch.cosine_similarity(gradient.flatten(), sent.grad.flatten(), dim=0) > 0.99


def _running(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if "running" in name}


def test_a_mixture_has_the_statistics_of_what_is_mixed() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(30, generator=random), 3 + 2 * torch.randn(10, generator=random)
    stated = [
        {"running_mean": values.mean(), "running_var": values.var(unbiased=False)}
        for values in (first, second, torch.cat([first, second]))
    ]
    mixed = mixed_statistics(stated[0], stated[1], 0.25)
    for name, value in stated[2].items():
        assert mixed[name].item() == pytest.approx(value.item(), rel=1e-5)


# The guard --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNERS)
def test_turns_for_the_worse_are_taken_back_and_counted(name: str, tiny_world: World, tmp_path: Path) -> None:
    """Where no change at all is allowed, the run ends where it began, and says so; killed or not."""
    fleet = present_fleet(
        tiny_world,
        tmp_path,
        name,
        adaptation=Adaptation(objective="entropy"),
        present=Present(guard=1.0),
        white_box=WhiteBoxPlan(rate=0.1),
    )
    Supervisor(fleet).run_with_kills({(CAR, "done", 2), (CARS[1], "upload", 7), (CAR, "turn", 3)})
    result, taken_back = fleet.result(), fleet.events("taken_back")
    assert len({event["stage"] for event in taken_back}) == result["rounds"] * len(CARS)
    assert all(event["agreement"] < 1 for event in taken_back)
    for car in CARS:
        entry = result["vehicles"][car]
        assert entry["taken_back"] == fleet.config.rounds
        assert entry["local_miou"] == entry["initial_local_miou"]
    assert fleet.events("curve")[-1]["validated"] == len(CARS)


def test_a_vehicle_goes_back_to_its_latest_turn_that_counts(tiny_world: World, tmp_path: Path) -> None:
    """Of three turns the second is for the worse: the third ends as if it had been the second one's heir."""
    settings = {"vehicles": (CAR,), "adaptation": Adaptation(objective="entropy"), "rounds": 3}
    free = present_fleet(tiny_world, tmp_path / "free", present=Present(guard=0.001), **settings)
    Supervisor(free).run()
    agreements = [event["agreement"] for event in free.events("present")]
    assert agreements[0] > agreements[1]
    guard = sum(agreements[:2]) / 2
    held = present_fleet(tiny_world, tmp_path / "held", present=Present(guard=guard), **settings)
    recorder = Recorder()
    Supervisor(held, recorder.bus).run()
    assert [event["stage"] for event in held.events("taken_back")][:1] == [2]
    first = [fleet.states(CAR).load(1).theta for fleet in (free, held)]
    assert np.array_equal(*first)
    assert not np.array_equal(first[0], EncoderBundle.load(tiny_world.bundle).theta0)
    assert held.result()["vehicles"][CAR]["taken_back"] >= 1


# What goes together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": "blackfleet", "adaptation": Adaptation()},
            r"present.statistics is for .*, got blackfleet; .*blackfleet.serving",
        ),
        ({"network": NetworkConfig(), "adaptation": Adaptation()}, r"network.learns false, --no-net"),
        ({"network": NetworkConfig()}, "pseudo-labels needs network.learns false"),
        ({"sharing": Sharing(encoder="weights")}, "sharing.encoder none"),
        ({"augmentation": Augmentation(flip=True)}, "no augmentation"),
        (
            {"algorithm": "blackfed-v1", "uploads": UploadConfig(train_frames=2)},
            "uploads.train_frames must not be given, got 2",
        ),
        ({"algorithm": "frozen"}, "present.guard has nothing to guard where no encoder learns"),
        (
            {
                "algorithm": "blackfed-v1",
                "zeroth_order": msgspec.structs.replace(ACTIVATION["zeroth_order"], estimator="surrogate"),
            },
            "surrogate has to know what frames are compared with",
        ),
    ],
)
def test_settings_that_mean_nothing_together_are_refused_in_one_line(
    changes: dict[str, Any], message: str, tiny_world: World, tmp_path: Path
) -> None:
    with pytest.raises(CloudError, match=message) as caught:
        Supervisor(present_fleet(tiny_world, tmp_path, **changes)).run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["statistics", "confidence", "guard"])
def test_a_share_above_one_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"present.{name} must be from 0 to 1, got 1.5"):
        Present(**{name: 1.5})
