"""Learning from the vehicle's own labels with a local head, and the algorithm that is built on it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

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
from supervision import Supervisor
from torch.nn.utils import parameters_to_vector

from cloud_server.algorithms.blackfleet import local_rate_shares
from cloud_server.config import CloudConfig, PatienceConfig
from cloud_server.desk.turns import ActiveTurn
from cloud_server.errors import CloudError
from cloud_server.training.losses import cross_entropy, downsample_labels
from datasets.catalog import open_dataset
from datasets.frame import resize_frame
from edge_client.encoder.bundle import EncoderBundle
from edge_client.errors import VehicleError
from edge_client.local.head import HeadFolder
from fleet.export.bundle import export_bundle
from fleet.export.encoders import build_encoder
from fleet.export.head_export import export_head
from fleet.export.heads import build_head
from protocol.messages import Turn
from protocol.noise import derive_seed, permutation
from protocol.plans.adaptation import Adaptation
from protocol.plans.local_loss import LocalLossPlan
from protocol.session.memory import MemoryBus

CAR = CARS[0]
LOCAL = LocalLossPlan(warm_up_epochs=2, epochs=1, weight_power=0)


def fleet_of(world: World, folder: Path, **changes: object) -> TinyFleet:
    return TinyFleet(world, folder, **{"algorithm": "blackfleet", "local_loss": LOCAL, **changes})


def run(fleet: TinyFleet, bus: MemoryBus | None = None) -> TinyFleet:
    Supervisor(fleet, bus).run()
    return fleet


@pytest.fixture(scope="module")
def calm(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    """A run without any disturbance; its messages' tags are in its folder."""
    fleet = fleet_of(tiny_world, tmp_path_factory.mktemp("calm"))
    bus, seen = MemoryBus(), Counter[str]()
    bus.record(lambda topic, payload, qos: seen.update([tag(payload)]))
    run(fleet, bus)
    (fleet.folder / "tags.json").write_bytes(msgspec.json.encode(seen))
    return fleet


# What is learnt ---------------------------------------------------------------------------------------


class Reference:
    """Encoder and head in torch, trained as one vehicle of a tiny fleet should train them."""

    def __init__(self, fleet: TinyFleet) -> None:
        self._config = fleet.config
        plain = build_encoder("stride8-c4", 0).folded()
        self.encoder = FilmEncoder(plain) if fleet.config.adaptation.subspace == "film" else plain
        self.head = build_head(4, 11, stride=8, width=8, depth=1, seed=0)
        local = fleet.config.local_loss
        self._steppers = [
            (torch.optim.Adam(self.encoder.parameters()), local.rate),
            (torch.optim.Adam(self.head.parameters()), local.head_rate),
        ]
        source = open_dataset("camvid", fleet.world.data_root)
        refs = {ref.key: ref for ref in source.refs}
        frames = [resize_frame(source.load(refs[key]), *IMAGE_SIZE) for key in fleet.frames[CAR]["train"]]
        self._images = torch.from_numpy(np.stack([frame.image_HWC for frame in frames]))
        self._labels = torch.from_numpy(np.stack([frame.label_HW for frame in frames]))

    def learn(self, turn_id: int) -> list[float]:
        """A whole turn; returns each step's loss."""
        n, size = len(self._images), self._config.first_order.batch_size
        seed = derive_seed(self._config.seed, "turn", turn_id, CAR)
        losses = []
        for epoch, share in enumerate(local_rate_shares(self._config, turn_id)):
            order = torch.from_numpy(permutation(derive_seed(seed, "batches", epoch), n))
            for start in range(0, n, size):
                losses.append(self._step(order[start : start + size], share))
        return losses

    def small_labels(self) -> torch.Tensor:
        """Of all train frames, at the logits' size."""
        return downsample_labels(self._labels, (IMAGE_SIZE[1] // 4, IMAGE_SIZE[0] // 4))

    def loss(self, logits: torch.Tensor, label: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Of a batch of the train frames `chosen`."""
        return cross_entropy(logits, label)

    def _step(self, chosen: torch.Tensor, share: float) -> float:
        logits = self.head(self.encoder(self._images[chosen]))
        loss = self.loss(logits, downsample_labels(self._labels[chosen], logits.shape[-2:]), chosen)
        for optimizer, rate in self._steppers:
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = rate * share
        torch.autograd.backward(loss)
        for optimizer, _ in self._steppers:
            optimizer.step()
        return loss.item()


@pytest.mark.parametrize("subspace", ["all", "film"])
def test_learning_equals_torch_through_encoder_and_head(
    subspace: str, tiny_world: World, tmp_path: Path
) -> None:
    """Over two turns, the state of the first carried on by the second; the head learns whole in either case.

    Within 1e-4, but for the few elements whose gradient is nothing but rounding, such as the bias before a
    normalisation: there Adam takes a full step along whatever sign it sees.
    """
    local = LocalLossPlan(warm_up_epochs=2, epochs=1, rate=2e-4, head_rate=5e-4, weight_power=0)
    adaptation = Adaptation(subspace=subspace)
    fleet = run(fleet_of(tiny_world, tmp_path, vehicles=(CAR,), local_loss=local, adaptation=adaptation))
    assert_learnt_like(Reference(fleet), fleet)


def assert_learnt_like(reference: Reference, fleet: TinyFleet) -> None:
    """The vehicle's two turns ended where the reference's do."""
    losses = [loss for turn_id in (1, 2) for loss in reference.learn(turn_id)]
    assert len(losses) == 8
    state = fleet.states(CAR).load(2)
    initial_head = HeadFolder.load(fleet.world.local_head).initial
    encoder, initial_encoder = state.theta, EncoderBundle.load(fleet.world.bundle).theta0
    if fleet.config.adaptation.subspace == "film":
        # Without the last layer's: the head begins by undoing any scale and shift of a channel.
        encoder = state.optimizer["encoder/subspace/phi"][: -2 * 4]
        initial_encoder = np.zeros_like(encoder)
    for learnt, module, initial in (
        (encoder, reference.encoder, initial_encoder),
        (state.optimizer["head"], reference.head, initial_head),
    ):
        expected = parameters_to_vector(module.parameters()).detach().numpy()[: len(learnt)]
        assert np.abs(learnt - initial).mean() > 1e-4
        assert np.quantile(np.abs(learnt - expected), 0.99) < 1e-4 * np.abs(expected).max()
    assert int(state.optimizer["head/steps"][0]) == int(state.optimizer["encoder/steps"][0]) == len(losses)
    reported = [e["loss"] for e in fleet.events("turn_done") if e["kind"] == "train"]
    assert reported == pytest.approx(
        [np.average(losses[i : i + 2], weights=[4, 2]) for i in (4, 6)], rel=1e-3
    )


def test_local_loss_falls_and_encoders_part(calm: TinyFleet) -> None:
    turns = [event for event in calm.events("turn_done") if event["kind"] == "train"]
    for car in CARS:
        losses = [event["loss"] for event in turns if event["vehicle"] == car]
        assert losses == sorted(losses, reverse=True)
    thetas = [calm.states(car).load(calm.config.rounds).theta for car in CARS]
    theta0 = EncoderBundle.load(calm.world.bundle).theta0
    assert all(np.abs(theta - theta0).mean() > 1e-4 for theta in thetas)
    assert not np.array_equal(*thetas)


def test_without_local_epochs_in_rounds_only_the_warm_up_teaches(tiny_world: World, tmp_path: Path) -> None:
    local = LocalLossPlan(warm_up_epochs=1, epochs=0)
    fleet = run(fleet_of(tiny_world, tmp_path, vehicles=(CAR,), local_loss=local))
    first, second = (fleet.states(CAR).load(turn_id) for turn_id in (1, 2))
    assert not np.array_equal(first.theta, EncoderBundle.load(fleet.world.bundle).theta0)
    assert np.array_equal(first.theta, second.theta)


def test_rates_follow_the_schedule_over_warm_up_and_rounds() -> None:
    local = LocalLossPlan(warm_up_epochs=3, epochs=2, schedule="cosine")
    config = CloudConfig(fleet="f", vehicles=("a",), rounds=2, local_loss=local)
    turns = [local_rate_shares(config, round_number) for round_number in (1, 2)]
    assert [len(shares) for shares in turns] == [5, 2]
    expected = [0.5 * (1 + np.cos(np.pi * (epoch + 0.5) / 7)) for epoch in range(7)]
    assert [share for shares in turns for share in shares] == pytest.approx(expected)


# What the cloud makes of it ---------------------------------------------------------------------------


def test_bus_carries_neither_query_nor_answer_to_learn_from(calm: TinyFleet) -> None:
    seen = msgspec.json.decode((calm.folder / "tags.json").read_bytes())
    assert set(seen) == {
        *("status", "hello", "welcome", "turn", "offer", "want", "labels", "upload", "done", "ack", "finish"),
        *("happened", "past"),
    }
    assert all(entry["queries"] == 0 for entry in calm.result()["vehicles"].values())


def test_curve_and_result_state_the_budget(calm: TinyFleet) -> None:
    curve, result = calm.events("curve"), calm.result()
    assert [event["round"] for event in curve] == [1, 2]
    train = sum(entry["frames_train"] for entry in result["vehicles"].values())
    assert [event["frames_seen"] for event in curve] == [train * 3, train * 3 * 2]
    assert result["frames_seen"] == train * 3 * 2
    validated = {event["vehicle"]: event["best"] for event in calm.events("validation")}
    assert set(validated) == set(CARS)
    assert curve[-1]["val_miou"] == pytest.approx(np.mean(list(validated.values())))
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert np.array(result["confusion"]).sum() > 0


def test_order_of_arrival_makes_no_difference(calm: TinyFleet, tmp_path: Path) -> None:
    """One turn at a time, where the calm fleet has two under way."""
    assert run(fleet_of(calm.world, tmp_path, parallel_turns=1)).fingerprint() == calm.fingerprint()


def test_vehicles_with_other_features_learn_together(tiny_world: World, tmp_path: Path) -> None:
    """A second shape of features: its batches are its own, its frames count alike."""
    bundle = export_bundle("stride8-c8", tmp_path / "bundle", image_size=IMAGE_SIZE, seed=0)
    export_head(bundle.spec, tmp_path / "head", label_space_name="camvid", width=8, depth=1, seed=0)

    class Mixed(TinyFleet):
        def host(self, *cars: str, give_up_s: float = 30.0):  # type: ignore[no-untyped-def]
            host = super().host(*cars, give_up_s=give_up_s)
            vehicles = tuple(
                msgspec.structs.replace(
                    vehicle, bundle=str(tmp_path / "bundle"), local_head=str(tmp_path / "head")
                )
                if vehicle.id == CARS[1]
                else vehicle
                for vehicle in host.vehicles
            )
            return msgspec.structs.replace(host, vehicles=vehicles)

    width, height = IMAGE_SIZE
    shapes = tuple((channels, height // 8, width // 8) for channels in (4, 8))
    fleet = Mixed(tiny_world, tmp_path, algorithm="blackfleet", local_loss=LOCAL, feature_shapes=shapes)
    run(fleet)
    train = sum(entry["frames_train"] for entry in fleet.result()["vehicles"].values())
    assert fleet.result()["frames_seen"] == train * 3 * 2


# Exactly once -----------------------------------------------------------------------------------------


def test_killed_processes_change_nothing(calm: TinyFleet, tmp_path: Path) -> None:
    """At the start, in the midst of uploads, after one vehicle is done, and in the last stage."""
    points = {(CAR, "turn", 2), (CARS[1], "upload", 2), (CAR, "done", 2), (CARS[1], "done", 3)}
    points |= {(CARS[1], "turn", 4)}
    supervisor = Supervisor(fleet_of(calm.world, tmp_path))
    supervisor.run_with_kills(points)
    assert supervisor.fleet.fingerprint() == calm.fingerprint()
    assert supervisor.fleet.scores() == calm.scores()


def test_unreliable_delivery_changes_nothing(calm: TinyFleet, tmp_path: Path) -> None:
    bus = unreliable_bus(3, duplicate=0.1, delay=0.1, drop=0.1)
    assert run(fleet_of(calm.world, tmp_path), bus).fingerprint() == calm.fingerprint()


# What does not fit ------------------------------------------------------------------------------------


def refusal(fleet: TinyFleet) -> str:
    with pytest.raises((CloudError, VehicleError)) as caught:
        run(fleet)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_vehicle_without_local_head_says_so(tiny_world: World, tmp_path: Path) -> None:
    class Headless(TinyFleet):
        def host(self, *cars: str, give_up_s: float = 30.0):  # type: ignore[no-untyped-def]
            host = super().host(*cars, give_up_s=give_up_s)
            vehicles = tuple(msgspec.structs.replace(vehicle, local_head=None) for vehicle in host.vehicles)
            return msgspec.structs.replace(host, vehicles=vehicles)

    patience = PatienceConfig(join_s=3, retry_s=0.2, give_up_s=30, heartbeat_s=0.5, on_failure="stop")
    fleet = Headless(tiny_world, tmp_path, algorithm="blackfleet", local_loss=LOCAL, patience=patience)
    assert "has no local head" in refusal(fleet)


def test_head_of_another_encoder_is_refused(tiny_world: World, tmp_path: Path) -> None:
    export_bundle("stride8-c8", tmp_path / "bundle", image_size=IMAGE_SIZE, seed=0)
    world = dataclasses.replace(tiny_world, bundle=tmp_path / "bundle")
    supervisor = Supervisor(fleet_of(world, tmp_path, vehicles=(CAR,)))
    with pytest.raises(VehicleError, match=r"features of \(4, 6, 8\), this vehicle has .* \(8, 6, 8\)"):
        supervisor.run_vehicle(CAR)


def test_diverging_vehicle_says_what_to_lower(tiny_world: World, tmp_path: Path) -> None:
    local = LocalLossPlan(warm_up_epochs=3, rate=1e30, head_rate=1e30, schedule="constant")
    fleet = fleet_of(tiny_world, tmp_path, vehicles=(CAR,), local_loss=local)
    assert "local learning diverged" in refusal(fleet)


def test_diverging_cloud_ends_the_run_in_one_line(tiny_world: World, tmp_path: Path) -> None:
    first = msgspec.structs.replace(TinyFleet(tiny_world, tmp_path).config.first_order, rate=1e30)
    assert "training diverged in round 1" in refusal(fleet_of(tiny_world, tmp_path, first_order=first))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"warm_up_epochs": -1}, "warm_up_epochs"),
        ({"epochs": 10_001}, "at most 10000 together"),
        ({"rate": 0.0}, "local_loss.rate"),
        ({"schedule": "sawtooth"}, "'sawtooth'"),
        ({"weight_power": -0.5}, "local_loss.weight_power must be at least 0, got -0.5"),
        ({"weight_cap": 0.5}, "local_loss.weight_cap must be at least 1, got 0.5"),
        ({"weight_map_stride": 0}, "local_loss.weight_map_stride must be at least 1, got 0"),
    ],
)
def test_wrong_setting_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LocalLossPlan(**changes)  # type: ignore[arg-type]


def _turn() -> Turn:
    return Turn(
        vehicle=CAR,
        grant="0" * 8,
        turn_id=1,
        step=0,
        after_turn=None,
        seed=0,
        learner=LocalLossPlan(weight_power=0.5),
        rate_shares=(0.5, 1.0),
        loss_map_frames=(),
        epochs=2,
        batches=0,
        batch_size=8,
        uploads=("train",),
    )


def test_plan_survives_the_wire() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(_turn()), type=Turn) == _turn()


def test_grant_is_repeated_ever_more_rarely_while_a_vehicle_learns_in_silence() -> None:
    active = ActiveTurn(turn=_turn(), granted_at=0.0)
    repeated = [second for second in range(600) if active.repeat_due(second, retry_s=5)]
    assert repeated[:5] == [6, 17, 38, 79, 140]
    assert len(repeated) == 12 and active.granted_at == 0.0
