"""A vehicle that comes back to a run brings the bundle and the frames that it joined with, or is refused."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from fleet_fixtures import CARS, TinyFleet, World, tag

from cloud_server.desk.roster import ROSTER_NAME
from cloud_server.errors import CloudError
from cloud_server.errors import Stopped as CloudStopped
from edge_client.conversation import Stopped as VehicleStopped
from edge_client.errors import VehicleError
from edge_client.host import HostConfig
from fleet.export.bundle import export_bundle
from fleet.run.in_process import run_in_process
from protocol.session.memory import MemoryBus

FIRST, SECOND = CARS


def _hosts(fleet: TinyFleet) -> list[HostConfig]:
    return [fleet.host(car) for car in CARS]


def _run_until_the_second_round(fleet: TinyFleet) -> None:
    """Stop the cloud when it grants the first turn of the second round; nothing of it is committed."""
    bus, stop = MemoryBus(), threading.Event()
    turns: Counter[str] = Counter()

    def watch(topic: str, payload: bytes, qos: int) -> None:
        if tag(payload) == "turn":
            turns[topic.split("/")[3]] += 1
            if turns[FIRST] == 3:
                stop.set()

    bus.record(watch)
    with pytest.raises((CloudStopped, VehicleStopped)):
        run_in_process(fleet.config, _hosts(fleet), fleet.run_folder, bus=bus, stop=stop)


def _with_another_bundle(hosts: list[HostConfig], folder: Path) -> list[HostConfig]:
    export_bundle("stride8-c4", folder, image_size=(64, 48), seed=1)
    return [
        msgspec.structs.replace(
            host,
            vehicles=tuple(msgspec.structs.replace(v, bundle=str(folder)) for v in host.vehicles),
        )
        for host in hosts
    ]


def _with_frames(
    change: Callable[[dict[str, tuple[str, ...]]], dict[str, tuple[str, ...]]],
) -> Callable[..., list[HostConfig]]:
    def changed(hosts: list[HostConfig], _: Path) -> list[HostConfig]:
        return [
            msgspec.structs.replace(
                host,
                vehicles=tuple(msgspec.structs.replace(v, frames=change(v.frames)) for v in host.vehicles),
            )
            for host in hosts
        ]

    return changed


WAYS: dict[str, tuple[Callable[[list[HostConfig], Path], list[HostConfig]], str]] = {
    "another bundle": (
        _with_another_bundle,
        "came back with the bundle stride8-c4 .* it joined this run with",
    ),
    "fewer frames": (
        _with_frames(lambda frames: {**frames, "train": frames["train"][:-1]}),
        r"came back with other frames \(5 train, .*\) than it joined this run with \(6 train, .*\)",
    ),
    "other frames, as many": (
        _with_frames(
            lambda frames: {
                **frames,
                "train": (*frames["train"][:-1], frames["val"][0]),
                "val": (frames["train"][-1], *frames["val"][1:]),
            }
        ),
        r"came back with as many frames as it joined this run with .* not the same ones; give it",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_resumed_run_refuses_another_vehicle_and_goes_on_with_the_one_that_it_knows(
    tiny_world: World, tmp_path: Path, way: str
) -> None:
    undisturbed = TinyFleet(tiny_world, tmp_path / "undisturbed")
    run_in_process(undisturbed.config, _hosts(undisturbed), undisturbed.run_folder)
    fleet = TinyFleet(tiny_world, tmp_path / "resumed")
    _run_until_the_second_round(fleet)
    change, refusal = WAYS[way]
    hosts = _hosts(fleet)
    changed = [hosts[0], *change(hosts[1:], tmp_path / "bundle")]
    with pytest.raises(VehicleError, match=f"the cloud refuses vehicle 'car-2': .*{refusal}"):
        run_in_process(fleet.config, changed, fleet.run_folder, resume=True)
    run_in_process(fleet.config, hosts, fleet.run_folder, resume=True)
    assert fleet.fingerprint() == undisturbed.fingerprint(), "nothing is lost"
    assert fleet.scores() == undisturbed.scores()


def test_cloud_that_waits_in_vain_says_whom_it_has_refused(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path)
    _run_until_the_second_round(fleet)
    config = msgspec.structs.replace(
        fleet.config, patience=msgspec.structs.replace(fleet.config.patience, join_s=3)
    )
    both = fleet.host()
    [other] = _with_another_bundle([fleet.host(SECOND)], tmp_path / "bundle")
    shared = msgspec.structs.replace(both, vehicles=(both.vehicles[0], other.vehicles[0]))
    with pytest.raises(
        CloudError, match="did not join within 3 s: car-2; refused: car-2 came back with the bundle"
    ):
        run_in_process(config, [shared], fleet.run_folder, resume=True)


def test_damaged_roster_is_a_mistake_with_one_line(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path)
    _run_until_the_second_round(fleet)
    (fleet.run_folder / "cloud" / ROSTER_NAME).write_text("{")
    with pytest.raises(CloudError, match=r"vehicles\.json is damaged .*; start a new run"):
        run_in_process(fleet.config, _hosts(fleet), fleet.run_folder, resume=True)
