"""Whole runs of a tiny fleet in one process: what they leave behind, that they repeat, and how they fail."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
from fleet_fixtures import CARS, TinyFleet, World
from supervision import Supervisor

from cloud_server.config import PatienceConfig, ZerothOrderConfig
from cloud_server.errors import CloudError
from datasets.labels import CAMVID
from edge_client.errors import VehicleError
from fleet.run.in_process import run_in_process
from protocol.errors import Mistake
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.spsa import SpsaPlan
from protocol.session.memory import MemoryBus
from protocol.session.transport import BrokerUnreachable

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_run.txt"
UPDATE_GOLDEN = "BLACKFLEET_UPDATE_GOLDEN"
_RELATIVE_TOLERANCE = 3e-3
"""Processors round differently, and AdamW's first steps enlarge that: by up to 1e-7 between AVX2 and AVX-512,
by up to 1e-3 without either."""

_RESULT_TYPES: dict[str, type | tuple[type, ...]] = {
    "algorithm": str,
    "dataset": str,
    "seed": int,
    "vehicles": dict,
    "mean_local_miou": float,
    "mean_ood_miou": float,
    "initial_local_miou": float,
    "classes": dict,
    "uplink_bytes": int,
    "downlink_bytes": int,
    "wall_s": float,
}
_VEHICLE_TYPES: dict[str, type] = {
    "local_miou": float,
    "ood_miou": float,
    "frames_train": int,
    "uplink_bytes": int,
    "downlink_bytes": int,
    "queries": int,
}


def _check_result(result: dict[str, Any], fleet: TinyFleet) -> None:
    for name, kind in _RESULT_TYPES.items():
        assert isinstance(result[name], kind), name
    assert (result["algorithm"], result["seed"]) == (fleet.config.algorithm, fleet.config.seed)
    assert list(result["vehicles"]) == list(CARS)
    assert list(result["classes"]) == list(CAMVID.train_names)
    for entry in result["vehicles"].values():
        for name, kind in _VEHICLE_TYPES.items():
            assert isinstance(entry[name], kind), name
        assert 0 <= entry["local_miou"] <= 1 and 0 <= entry["ood_miou"] <= 1
        assert entry["frames_train"] == 6
        assert entry["rejects"] == 0
        zeroth = fleet.config.zeroth_order
        queries = fleet.config.way(SpsaPlan).queries
        assert entry["queries"] == 2 * queries * zeroth.batches * zeroth.epochs * fleet.config.rounds
    local = [entry["local_miou"] for entry in result["vehicles"].values()]
    assert result["mean_local_miou"] == pytest.approx(sum(local) / len(local))
    present = [iou for iou in result["classes"].values() if iou is not None]
    assert present and all(0 <= iou <= 1 for iou in present)


def test_v2_run_learns_and_leaves_its_result(undisturbed: TinyFleet) -> None:
    result = undisturbed.result()
    _check_result(result, undisturbed)
    assert result["mean_local_miou"] > 5 * result["initial_local_miou"]


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "blackfed-v1", "coding": Coding(bits=6)},
        {"algorithm": "blackfed-v2", "coding": Coding(bits=4), "feedback_network": "best"},
        {
            "algorithm": "blackfed-v1",
            "coding": Coding(bits=32),
            "first_order": FirstOrder(epochs=1, loss="dice"),
        },
    ],
    ids=["v1", "v2 with own feedback", "v1, float32, dice"],
)
def test_other_runs_leave_their_result(changes: dict[str, Any], tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, rounds=1, **changes)
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    result = fleet.result()
    _check_result(result, fleet)
    assert result["mean_local_miou"] > result["initial_local_miou"]
    kept = fleet.run_folder / "cloud" / "best"
    assert kept.exists() == (fleet.config.algorithm == "blackfed-v2")


def test_run_leaves_predictions_of_each_vehicle_s_test_frames(undisturbed: TinyFleet) -> None:
    for car in CARS:
        folder = undisturbed.run_folder / "predictions" / car
        names = {f"{key}_pred_labelIds.png" for key in undisturbed.frames[car]["test"]}
        assert {path.name for path in folder.iterdir()} == names
        for path in folder.iterdir():
            ids_HW = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert ids_HW.shape == (60, 80), "as large as the label, not as the encoder's input"


def test_run_leaves_a_log_of_its_turns(undisturbed: TinyFleet) -> None:
    order = [(event["stage"], event["vehicle"]) for event in undisturbed.events("turn_done")]
    assert sorted(order[:2]) == [(0, CARS[0]), (0, CARS[1])]
    assert order[2:6] == [(1, CARS[0]), (2, CARS[1]), (3, CARS[0]), (4, CARS[1])]
    assert sorted(order[6:]) == [(5, CARS[0]), (5, CARS[1])]
    assert [event["stage"] for event in undisturbed.events("committed")] == list(range(6))
    assert list((undisturbed.run_folder / "tensorboard").iterdir())


def test_same_seed_gives_the_same_bits_whatever_the_processes(undisturbed: TinyFleet, tmp_path: Path) -> None:
    """Here both vehicles share one host, there each had its own."""
    fleet = TinyFleet(undisturbed.world, tmp_path)
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    assert fleet.fingerprint() == undisturbed.fingerprint()
    volatile = ("wall_s", "uplink_bytes", "downlink_bytes", "vehicles")
    assert {k: v for k, v in fleet.result().items() if k not in volatile} == {
        k: v for k, v in undisturbed.result().items() if k not in volatile
    }


def test_other_seed_gives_other_weights(undisturbed: TinyFleet, tmp_path: Path) -> None:
    fleet = TinyFleet(undisturbed.world, tmp_path, seed=1)
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    one, other = fleet.fingerprint(), undisturbed.fingerprint()
    learnt = [name for name in one if ".state of car" in name or name.endswith(".weight")]
    assert learnt and all(one[name] != other[name] for name in learnt)


def _curve(fleet: TinyFleet) -> list[tuple[str, float]]:
    """Each turn's losses: the vehicle's mean over its queries, then the cloud's of each epoch."""
    points = []
    learned = {event["stage"]: event["losses"] for event in fleet.events("learned")}
    for event in fleet.events("turn_done"):
        if event["kind"] == "train":
            where = f"round {event['round']} {event['vehicle']}"
            points.append((f"{where} queries", event["loss"]))
            losses = learned[event["stage"]]
            points += [(f"{where} epoch {number}", loss) for number, loss in enumerate(losses, start=1)]
    return points


def test_loss_curve_is_the_golden_one(tiny_world: World, tmp_path: Path) -> None:
    """Updated on purpose only: BLACKFLEET_UPDATE_GOLDEN=1 pytest tests/fleet/test_fleet_in_process.py"""
    fleet = TinyFleet(tiny_world, tmp_path, first_order=FirstOrder(epochs=3, batch_size=4, rate=1e-3))
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    curve = _curve(fleet)
    if os.environ.get(UPDATE_GOLDEN):
        GOLDEN.write_text("".join(f"{where}: {loss:.5f}\n" for where, loss in curve))
    lines = [line.rpartition(": ") for line in GOLDEN.read_text().splitlines()]
    assert [where for where, _ in curve] == [where for where, _, _ in lines]
    for (where, loss), (_, _, golden) in zip(curve, lines, strict=True):
        assert math.isclose(loss, float(golden), rel_tol=_RELATIVE_TOLERANCE), (
            f"{where}: {loss}, not {golden}"
        )


# How runs end that can't succeed: one line that says what to do, and nothing that hangs ----------------


def _ends_with(
    error: type[Exception], pattern: str, fleet: TinyFleet, *, cars: tuple[str, ...] = CARS
) -> None:
    with pytest.raises(error) as caught:
        run_in_process(fleet.config, [fleet.host(*cars)], fleet.run_folder)
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (fleet.run_folder / "result.json").exists()


def test_missing_vehicle_ends_the_run_in_one_line(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, patience=PatienceConfig(join_s=0.5, on_failure="stop"))
    _ends_with(CloudError, "1 of 2 vehicles did not join within 0.5 s: car-2", fleet, cars=("car-1",))


def test_vehicle_that_stays_away_ends_the_run_in_one_line(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(
        tiny_world, tmp_path, patience=PatienceConfig(retry_s=0.1, give_up_s=2.5, on_failure="stop")
    )
    supervisor = Supervisor(fleet)

    def kill_and_bury(supervisor: Supervisor, message_tag: str, car: str) -> None:
        if (message_tag, car) == ("query", "car-1"):
            supervisor.kill_vehicle(car, for_good=True)

    supervisor.sabotage(kill_and_bury)
    pattern = r"vehicle 'car-1' has been silent for \d s in turn 1 \(limit 2.5 s\); start it again and resume"
    with pytest.raises(CloudError, match=pattern):
        supervisor.run()


def test_diverging_encoder_ends_the_run_in_one_line(tiny_world: World, tmp_path: Path) -> None:
    zeroth, spsa = ZerothOrderConfig(batches=3, batch_size=3), SpsaPlan(queries=1, rate=1e38)
    fleet = TinyFleet(tiny_world, tmp_path, zeroth_order=zeroth, spsa=spsa)
    _ends_with(Mistake, "lower the zeroth-order rate|features can't be sent", fleet)


def test_bundle_of_another_shape_ends_vehicle_and_run_in_one_line(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, feature_shapes=((8, 6, 8),))
    pattern = "features of shape 4x6x8, the cloud's network takes 8x6x8; export the bundle for this run"
    _ends_with(VehicleError, pattern, fleet)


def test_label_space_of_another_data_set_ends_the_run_in_one_line(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, label_space="cityscapes")
    _ends_with(VehicleError, "labels of 'camvid', this run is about 'cityscapes'", fleet)


def test_vanished_broker_ends_cloud_and_vehicles_in_one_line_each(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, patience=PatienceConfig(give_up_s=2.5))
    bus = MemoryBus()
    supervisor = Supervisor(fleet, bus, give_up_s=2.5)

    def pull_the_plug(supervisor: Supervisor, message_tag: str, car: str) -> None:
        if message_tag == "query":
            supervisor.cut_everyone()

    supervisor.sabotage(pull_the_plug)
    with pytest.raises(
        BrokerUnreachable, match=r"unreachable for \d s \(limit 2.5 s\); start it, then resume"
    ):
        supervisor.run()
    assert len(supervisor.failures) == len(CARS)
    for failure in supervisor.failures:
        assert isinstance(failure, BrokerUnreachable)
        assert re.search("start it and this vehicle again, nothing is lost", str(failure))


def test_silent_cloud_ends_the_vehicle_in_one_line(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path)
    supervisor = Supervisor(fleet, give_up_s=0.5)
    with pytest.raises(VehicleError, match=r"nothing was heard of the cloud for \d s .* is the cloud server"):
        supervisor.run_vehicle("car-1")


def test_finished_run_can_be_resumed_and_says_the_same(undisturbed: TinyFleet, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.folder, tmp_path / "copy")
    fleet = TinyFleet(undisturbed.world, tmp_path / "copy")
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder, resume=True)
    before, after = undisturbed.result(), fleet.result()
    for name in ("mean_local_miou", "mean_ood_miou", "initial_local_miou", "classes"):
        assert after[name] == before[name]
    for car in CARS:
        assert after["vehicles"][car]["queries"] == before["vehicles"][car]["queries"]
        assert after["vehicles"][car]["uplink_bytes"] >= before["vehicles"][car]["uplink_bytes"]


def test_damaged_checkpoint_refuses_to_resume_in_one_line(undisturbed: TinyFleet, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.folder, tmp_path / "copy")
    fleet = TinyFleet(undisturbed.world, tmp_path / "copy")
    newest = max((fleet.run_folder / "cloud" / "checkpoints").glob("checkpoint-*"))
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    with pytest.raises(CloudError) as caught:
        run_in_process(fleet.config, [fleet.host()], fleet.run_folder, resume=True)
    assert newest.name in str(caught.value) and "\n" not in str(caught.value)
    newest.unlink()  # the way out that the message names: back to the checkpoint before
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder, resume=True)
    assert fleet.result()["classes"] == undisturbed.result()["classes"]


def test_resuming_with_other_settings_is_refused_in_one_line(undisturbed: TinyFleet) -> None:
    other = TinyFleet(undisturbed.world, undisturbed.folder, seed=5)
    with pytest.raises(CloudError, match="belongs to a run with other settings; resume with the settings"):
        run_in_process(other.config, [other.host()], other.run_folder, resume=True)


def test_run_folder_that_holds_a_run_is_refused_in_one_line(undisturbed: TinyFleet) -> None:
    with pytest.raises(CloudError, match="holds a run already; resume it, or choose another run folder"):
        run_in_process(undisturbed.config, [undisturbed.host()], undisturbed.run_folder)
