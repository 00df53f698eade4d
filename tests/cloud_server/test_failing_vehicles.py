"""A vehicle that fails: the cloud hears why, its neighbours live on, the run stops or goes on without it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet_fixtures import TinyFleet, World
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from supervision import Supervisor

import edge_client.state_files
from cloud_server.config import PatienceConfig
from cloud_server.errors import CloudError
from cloud_server.run.ended import EndedRun
from cloud_server.training.trainer import Trainer
from edge_client.errors import CloudSilent, VehicleError
from edge_client.turn import TurnTools
from fleet.run.in_process import run_in_process
from protocol.atomic import write_bytes_atomic
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan

WELL, ILL = "car-1", "car-2"
GO_ON = PatienceConfig(join_s=30, retry_s=0.2, give_up_s=30, heartbeat_s=0.5)
WAIT = PatienceConfig(join_s=1, retry_s=0.2, give_up_s=30, heartbeat_s=0.5, on_failure="wait")
CONSTANT = FirstOrder(epochs=3, batch_size=4, rate=5e-3, schedule="constant")


def _raise_in_turn(monkeypatch: pytest.MonkeyPatch, error: Exception, first_turn: int) -> None:
    """Let the ill vehicle raise at whatever it sends of its features, from a turn on."""
    sound = TurnTools.encode

    def encode(tools: TurnTools, *arguments: Any) -> Any:
        if tools.turn.vehicle == ILL and tools.turn.turn_id >= first_turn:
            raise error
        return sound(tools, *arguments)

    monkeypatch.setattr(TurnTools, "encode", encode)


def _bug(monkeypatch: pytest.MonkeyPatch, first_turn: int) -> None:
    _raise_in_turn(monkeypatch, ValueError("index out of step"), first_turn)


def _runtime_fails(monkeypatch: pytest.MonkeyPatch, first_turn: int) -> None:
    _raise_in_turn(monkeypatch, Fail("[ONNXRuntimeError] : 1 : FAIL : CUDA error"), first_turn)


def _disk_is_full(monkeypatch: pytest.MonkeyPatch, first_turn: int) -> None:
    def write(path: Path, content: bytes) -> None:
        if path.parent.name == ILL:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_bytes_atomic(path, content)

    monkeypatch.setattr(edge_client.state_files, "write_bytes_atomic", write)


WAYS: dict[str, tuple[Callable[[pytest.MonkeyPatch, int], None], str]] = {
    "a bug": (_bug, "ValueError: index out of step"),
    "a failing ONNX Runtime": (_runtime_fails, "CUDA error"),
    "a full disk": (_disk_is_full, "No space left on device"),
}


def _run(fleet: TinyFleet, *cars: str) -> None:
    """All vehicles in one host."""
    run_in_process(fleet.config, [fleet.host(*cars)], fleet.run_folder)


def _of_the_well_one(fleet: TinyFleet) -> Mapping[str, Any]:
    """All that a run has come to for the vehicle that has not failed, and for the fleet."""
    result = fleet.result()
    entry = result["vehicles"][WELL]
    scores = {name: entry[name] for name in ("local_miou", "ood_miou", "initial_local_miou", "queries")}
    own = {name: digest for name, digest in fleet.fingerprint().items() if name.endswith(f"of {WELL}")}
    assert own, "what the vehicle has learnt is compared, too"
    return {**scores, **own, **fleet.scores()}


@pytest.mark.parametrize("way", WAYS)
def test_run_goes_on_without_a_vehicle_as_if_it_had_never_been_there(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    alone = TinyFleet(tiny_world, tmp_path / "alone", algorithm="individual", vehicles=(WELL,))
    _run(alone, WELL)
    fleet = TinyFleet(tiny_world, tmp_path / "both", algorithm="individual", patience=GO_ON)
    make_ill, reason = WAYS[way]
    make_ill(monkeypatch, 1)
    began = time.monotonic()
    _run(fleet)
    assert time.monotonic() - began < GO_ON.give_up_s
    assert _of_the_well_one(fleet) == _of_the_well_one(alone)
    result = fleet.result()
    assert list(result["failed"]) == [ILL] and reason in result["failed"][ILL]
    assert result["vehicles"][ILL]["local_miou"] is None
    [event] = fleet.events("failed")
    assert (event["vehicle"], event["round"]) == (ILL, 1) and reason in event["reason"]
    assert alone.result()["failed"] == {}


def test_one_network_of_all_learns_as_if_the_vehicle_had_never_contributed(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "algorithm": "blackfleet",
        "local_loss": LocalLossPlan(warm_up_epochs=1, epochs=1),
    }
    alone = TinyFleet(tiny_world, tmp_path / "alone", vehicles=(WELL,), **changes)
    _run(alone, WELL)
    fleet = TinyFleet(tiny_world, tmp_path / "both", patience=GO_ON, **changes)
    _bug(monkeypatch, 1)
    _run(fleet)
    assert _of_the_well_one(fleet) == _of_the_well_one(alone)


@pytest.mark.parametrize("algorithm", ["blackfed-v2", "split"])
def test_round_robin_ends_as_without_the_vehicle_that_failed_in_its_last_turn(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    changes: dict[str, Any] = {"algorithm": algorithm, "rounds": 1, "first_order": CONSTANT}
    alone = TinyFleet(tiny_world, tmp_path / "alone", vehicles=(WELL,), **changes)
    _run(alone, WELL)
    fleet = TinyFleet(tiny_world, tmp_path / "both", patience=GO_ON, **changes)
    _bug(monkeypatch, 1)
    _run(fleet)
    assert _of_the_well_one(fleet) == _of_the_well_one(alone)


@pytest.mark.parametrize("way", WAYS)
def test_run_stops_at_once_where_it_needs_every_vehicle(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path)
    make_ill, reason = WAYS[way]
    make_ill(monkeypatch, 1)
    began = time.monotonic()
    with pytest.raises(CloudError, match=f"vehicle 'car-2' can't go on: .*{reason}"):
        _run(fleet)
    assert time.monotonic() - began < fleet.config.patience.give_up_s


def test_vehicle_that_vanishes_is_left_out_when_patience_ends(tiny_world: World, tmp_path: Path) -> None:
    patience = PatienceConfig(join_s=30, retry_s=0.2, give_up_s=2.0, heartbeat_s=0.5, on_failure="continue")
    fleet = TinyFleet(tiny_world, tmp_path, rounds=1, patience=patience)
    supervisor = Supervisor(fleet)

    def kill_and_bury(supervisor: Supervisor, message_tag: str, car: str) -> None:
        if (message_tag, car) == ("query", ILL) and ILL not in supervisor.kills:
            supervisor.kill_vehicle(ILL, for_good=True)

    supervisor.sabotage(kill_and_bury)
    supervisor.run()
    assert fleet.result()["failed"][ILL].startswith("has been silent for 2 s in turn 2 (limit 2 s)")


def test_failed_vehicle_stays_out_though_it_comes_back_and_the_cloud_is_killed(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, rounds=2, patience=GO_ON)
    _bug(monkeypatch, 1)
    supervisor = Supervisor(fleet)
    # The third turn is the well vehicle's in the second round.
    points = {(WELL, "turn", 3)}
    supervisor.kill_at(points, of_the_cloud=set(points))
    with pytest.raises(ValueError, match="index out of step"):
        supervisor.run()
    assert list(fleet.result()["failed"]) == [ILL]
    assert len(fleet.events("failed")) == 1
    assert fleet.result()["vehicles"][WELL]["local_miou"] is not None


def test_run_goes_on_without_those_who_never_join_and_is_resumed_so(
    tiny_world: World, tmp_path: Path
) -> None:
    """With the bits of a run that does not name them; its model can be read afterwards."""
    alone = TinyFleet(tiny_world, tmp_path / "alone", vehicles=(WELL,), rounds=1)
    _run(alone, WELL)
    patience = msgspec.structs.replace(GO_ON, join_s=1.0)
    fleet = TinyFleet(tiny_world, tmp_path / "named", vehicles=("car-0", WELL), rounds=1, patience=patience)
    supervisor = Supervisor(fleet)
    supervisor._buried.add("car-0")
    supervisor.kill_at({(WELL, "query", 2)}, of_the_cloud={(WELL, "query", 2)})
    supervisor.run()
    assert supervisor.kills == ["cloud"]
    assert _of_the_well_one(fleet) == _of_the_well_one(alone)
    result = fleet.result()
    assert result["failed"] == {"car-0": "did not join within 1 s"}
    assert list(result["vehicles"]) == [WELL]
    [event] = fleet.events("failed")
    assert (event["vehicle"], event["reason"]) == ("car-0", "did not join within 1 s")
    assert EndedRun(fleet.config, fleet.run_folder).last_trained.keys() == {WELL}


def test_run_waits_for_a_vehicle_that_failed_and_ends_as_if_it_had_not(
    undisturbed: TinyFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = TinyFleet(undisturbed.world, tmp_path, patience=WAIT)
    supervisor = Supervisor(fleet)
    # The ill one is late, too: nobody is left out while the others wait for it.
    supervisor.before_vehicle(ILL, lambda: time.sleep(1.5))
    run_once, mended = supervisor.run_vehicle, []

    def run_again(car: str) -> None:
        try:
            run_once(car)
        except Exception as error:
            mended.append(str(error))
            monkeypatch.undo()
            run_once(car)

    supervisor.run_vehicle = run_again  # type: ignore[method-assign]
    make_ill, reason = WAYS["a full disk"]
    make_ill(monkeypatch, 1)
    supervisor.run()
    assert len(mended) == 1
    [event] = fleet.events("awaited")
    assert event["vehicle"] == ILL and reason in event["reason"]
    assert fleet.result()["failed"] == {}
    assert fleet.fingerprint() == undisturbed.fingerprint()


def test_last_vehicle_that_fails_ends_the_run(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, vehicles=(ILL,), patience=GO_ON)
    _bug(monkeypatch, 1)
    with pytest.raises(CloudError, match="every vehicle has failed; the last one, 'car-2'"):
        _run(fleet, ILL)


def test_failed_vehicle_that_says_hello_is_told_why_it_is_out(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, rounds=1, patience=GO_ON)
    supervisor = Supervisor(fleet)
    _bug(monkeypatch, 1)
    run_once, refusals = supervisor.run_vehicle, []

    def run_twice(car: str) -> None:
        try:
            run_once(car)
        except ValueError:
            with pytest.raises(VehicleError) as refused:
                run_once(car)
            refusals.append(str(refused.value))

    monkeypatch.setattr(supervisor, "run_vehicle", run_twice)
    supervisor.run()
    [refusal] = refusals
    assert "it has failed in this run, which goes on without it: ValueError: index out of step" in refusal


def _stuck(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, seconds: float, when: Callable[..., bool]
) -> None:
    """Let a method of the product take `seconds`, once, where `when` says so of its arguments."""
    sound, stuck = getattr(owner, name), []

    def method(*arguments: Any, **named: Any) -> Any:
        if not stuck and when(*arguments):
            stuck.append(1)
            time.sleep(seconds)
        return sound(*arguments, **named)

    monkeypatch.setattr(owner, name, method)


def _is_ill(tools: TurnTools, *_: Any) -> bool:
    return tools.turn.vehicle == ILL and tools.turn.turn_id > 0


@pytest.mark.parametrize(("step_s", "is_failed"), [(0.5, True), (30.0, False)])
def test_vehicle_whose_loop_is_stuck_counts_as_gone_and_one_with_a_long_step_does_not(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, is_failed: bool
) -> None:
    patience = PatienceConfig(
        join_s=30, retry_s=0.2, give_up_s=1.5, heartbeat_s=0.2, step_s=step_s, on_failure="continue"
    )
    fleet = TinyFleet(tiny_world, tmp_path, rounds=1, patience=patience)
    _stuck(monkeypatch, TurnTools, "encode", 4.0, _is_ill)
    host = msgspec.structs.replace(fleet.host(), heartbeat_s=0.2, step_s=step_s)
    run_in_process(fleet.config, [host], fleet.run_folder)
    failed = fleet.result()["failed"]
    assert list(failed) == ([ILL] if is_failed else [])
    assert not is_failed or failed[ILL].startswith("has been silent for")


@pytest.mark.parametrize(("step_s", "is_noticed"), [(0.5, True), (30.0, False)])
def test_cloud_whose_loop_is_stuck_is_noticed_and_one_with_a_long_step_is_not(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, is_noticed: bool
) -> None:
    patience = PatienceConfig(join_s=30, retry_s=0.2, give_up_s=2, heartbeat_s=0.2, step_s=step_s)
    fleet = TinyFleet(tiny_world, tmp_path, rounds=1, patience=patience)
    _stuck(monkeypatch, Trainer, "train_epochs", 4.0, lambda *_: True)
    supervisor = Supervisor(fleet, give_up_s=1.5)
    if not is_noticed:
        supervisor.run()
        return
    with pytest.raises(CloudError, match="has been silent for"):
        supervisor.run()
    assert [type(failure) for failure in supervisor.failures] == [CloudSilent, CloudSilent]
    assert "nothing was heard of the cloud for" in str(supervisor.failures[0])
