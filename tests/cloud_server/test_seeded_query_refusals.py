"""Seeded queries and loss maps that do not fit: rejected, counted, and nothing changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_fixtures import TinyFleet, World, interrupt, tag
from seeded_fixtures import CAR, again, plan, tiny, zeroth
from supervision import Supervisor
from test_perturbation import grid

import cloud_server.desk.handlers.feedback
from cloud_server.config import CloudConfig, PatienceConfig, ZerothOrderConfig
from cloud_server.errors import CloudError
from edge_client.errors import TurnRefused, VehicleError
from fleet.run.in_process import run_in_process
from protocol.codec.tensor import EncodedTensor, encode
from protocol.errors import Mistake
from protocol.messages import LossMaps, Query, SeededQuery, Turn
from protocol.perturbation import pack_scale
from protocol.plans.spsa import SpsaPlan
from protocol.session import topics
from protocol.session.memory import MemoryBus


def request(turn: Turn, **changes: Any) -> SeededQuery:
    fields = {
        "frames": (0, 1),
        "features": encode(grid((2, 4, 6, 8)), 8),
        "seeds": (1, 2, 3),
        "scale": pack_scale(np.ones(4, np.float32)),
        "two_sided": False,
        "map_size": (6, 8),
    }
    return SeededQuery(
        vehicle=CAR, grant=turn.grant, turn_id=turn.turn_id, step=10**6, **{**fields, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": (1, 2, 3, 4)}, "this turn's queries have 3 seeds, got 4"),
        ({"seeds": ()}, "this turn's queries have 3 seeds, got 0"),
        ({"two_sided": True}, "this turn's queries are one-sided"),
        ({"map_size": (12, 16)}, "this turn's loss maps are 6x8, got 12x16"),
        ({"scale": b"\0" * 12}, "perturbation scale must have 16 bytes, got 12"),
        ({"scale": pack_scale(np.full(4, np.nan, np.float32))}, "perturbation scale must be finite"),
        ({"scale": pack_scale(np.full(4, 3e38, np.float32))}, "no loss maps at these features"),
        ({"frames": (0, 6)}, "frame 6 is no train frame"),
        ({"features": encode(grid((2, 5, 6, 8)), 8)}, "tensor shape must be 2x4x6x8, got 2x5x6x8"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_query_that_does_not_fit_is_rejected_and_changes_nothing(
    changes: dict[str, Any], reason: str, calm_all: TinyFleet, tmp_path: Path
) -> None:
    bus = MemoryBus()
    interrupt(bus, "seeded", lambda turn, payload: (topics.UP, request(turn, **changes)))
    fleet = again(calm_all, tmp_path)
    Supervisor(fleet, bus).run()
    [reject] = fleet.events("reject")
    assert reason in reject["reason"]
    assert fleet.fingerprint() == calm_all.fingerprint()


def plain_query(turn: Turn, payload: bytes) -> tuple[topics.Channel, object]:
    header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 10**6}
    return topics.UP, Query(**header, frames=(0, 1), features=encode(grid((2, 4, 6, 8)), 8))


def test_plan_decides_which_queries_a_turn_has(tiny_world: World, tmp_path: Path) -> None:
    for number, (before, changes, say, reason) in enumerate(
        [
            ("seeded", {}, plain_query, "this turn has no queries"),
            (
                "query",
                {"zeroth_order": ZerothOrderConfig(batches=1, batch_size=3)},
                lambda turn, payload: (topics.UP, request(turn)),
                "this turn has no seeded queries",
            ),
        ]
    ):
        bus = MemoryBus()
        interrupt(bus, before, say)  # type: ignore[arg-type]
        fleet = tiny(tiny_world, tmp_path / str(number), rounds=1, **changes)  # type: ignore[arg-type]
        Supervisor(fleet, bus).run()
        assert [event["reason"] for event in fleet.events("reject")] == [reason]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_answers_per_frame": 4}, "frame 0 would have 8 answers in this turn, more than the 4 allowed"),
        (
            {"max_answers_per_vehicle": 24},
            "this vehicle would have 32 answers in this run, more than the 24 allowed",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_more_answers_than_allowed_are_rejected(
    limit: dict[str, int], reason: str, tiny_world: World, tmp_path: Path
) -> None:
    """A limit that the honest vehicle just keeps; one query more in its name passes it."""
    bus = MemoryBus()
    interrupt(bus, "upload", lambda turn, payload: (topics.UP, request(turn, frames=(0, 1))))
    fleet = tiny(tiny_world, tmp_path, rounds=1, zeroth_order=zeroth(**limit))
    Supervisor(fleet, bus).run()
    [reject] = fleet.events("reject")
    assert reason in reject["reason"]
    entry = fleet.result()["vehicles"][CAR]
    assert (entry["answers_per_frame"], entry["answers"], entry["rejects"]) == (4, 24, 1)


def test_answers_of_earlier_turns_count_in_a_cloud_that_was_killed(tiny_world: World, tmp_path: Path) -> None:
    """Two rounds fit exactly, in two processes of the cloud."""
    fleet = tiny(tiny_world, tmp_path, zeroth_order=zeroth(max_answers_per_vehicle=48))
    Supervisor(fleet).run_with_kills({(CAR, "turn", 3)}, victim="cloud")
    assert [entry["answers"] for entry in fleet.result()["vehicles"].values()] == [48, 48]


def test_vehicle_that_starts_over_has_had_its_answers(tiny_world: World, tmp_path: Path) -> None:
    """Else who says hello again and again in its turn gets as many as it likes."""
    patience = PatienceConfig(join_s=30, retry_s=0.2, heartbeat_s=0.5, on_failure="continue")
    fleet = tiny(
        tiny_world, tmp_path, rounds=1, patience=patience, zeroth_order=zeroth(max_answers_per_vehicle=24)
    )
    supervisor = Supervisor(fleet)
    supervisor.kill_at({(CAR, "seeded", 2)}, of_the_cloud=())
    with pytest.raises(VehicleError, match="would have 36 answers in this run, more than the 24 allowed"):
        supervisor.run()
    assert "would have 36 answers" in fleet.result()["failed"][CAR]
    assert [entry["answers"] for entry in fleet.result()["vehicles"].values()] == [24, 24]


def test_honest_vehicles_may_have_all_that_their_turns_allow_twice() -> None:
    limit = ZerothOrderConfig(max_answers_per_frame=16)
    assert _settings(rounds=3, zeroth_order=limit).answers_per_vehicle(10) == 2 * 3 * 10 * 16
    assert _settings(rounds=3, zeroth_order=limit, participation="async:1").answers_per_vehicle(10) == 960
    with pytest.raises(ValueError, match="max_answers_per_vehicle must be at least 1, got 0"):
        ZerothOrderConfig(max_answers_per_vehicle=0)


def test_plan_that_asks_for_more_answers_than_allowed_makes_no_run() -> None:
    with pytest.raises(ValueError, match=r"is 3, but activation asks for 4 answers about a frame in a turn"):
        _settings(zeroth_order=zeroth(max_answers_per_frame=3), activation=plan())
    with pytest.raises(ValueError, match=r"is 7, but spsa-gc asks for 8 answers about a frame in a turn"):
        _settings(zeroth_order=ZerothOrderConfig(epochs=2, max_answers_per_frame=7), spsa=SpsaPlan(queries=2))


def _settings(**changes: Any) -> CloudConfig:
    return CloudConfig(fleet="f", vehicles=("a",), **changes)


def spoilt(payload: bytes, maps: EncodedTensor) -> tuple[topics.Channel, object]:
    """An answer to the query in `payload`, as somebody else might send it."""
    query = msgspec.msgpack.decode(payload[1:], type=SeededQuery)
    return topics.DOWN, LossMaps(
        vehicle=CAR, grant=query.grant, turn_id=query.turn_id, step=query.step, maps=maps
    )


_NAN_MAPS = msgspec.structs.replace(encode(grid((3, 4, 6, 8)), 8), scale=np.full(4, np.nan, "<f4").tobytes())
_UNUSABLE = {
    "another size": (encode(grid((3, 4, 3, 4)), 8), "tensor shape must be 3x4x6x8, got 3x4x3x4"),
    "another K": (encode(grid((3, 3, 6, 8)), 8), "tensor shape must be 3x4x6x8, got 3x3x6x8"),
    "NaN": (_NAN_MAPS, "tensor scale holds NaN or infinity"),
}


@pytest.mark.parametrize("name", _UNUSABLE)
def test_vehicle_asks_again_after_an_unusable_answer(
    name: str, calm_all: TinyFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maps, reason = _UNUSABLE[name]
    bus = MemoryBus()
    interrupt(bus, "seeded", lambda turn, payload: spoilt(payload, maps))
    fleet = again(calm_all, tmp_path)
    Supervisor(fleet, bus).run()
    [warning] = [record for record in caplog.records if "asking again" in record.message]
    assert reason in warning.message
    assert fleet.fingerprint() == calm_all.fingerprint()
    assert fleet.result()["vehicles"][CAR]["queries"] == calm_all.result()["vehicles"][CAR]["queries"]


@pytest.mark.parametrize("name", _UNUSABLE)
def test_vehicle_stops_in_one_line_after_unusable_answers(
    name: str, tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, reason = _UNUSABLE[name]
    monkeypatch.setattr(cloud_server.desk.handlers.feedback, "coded_loss_maps", lambda *_: maps)
    fleet, bus = tiny(tiny_world, tmp_path, rounds=1, vehicles=(CAR,)), MemoryBus()
    answers: list[LossMaps] = []

    def listen(topic: str, payload: bytes, qos: int) -> None:
        if tag(payload) == "maps":
            answers.append(msgspec.msgpack.decode(payload[1:], type=LossMaps))

    bus.record(listen)
    supervisor = Supervisor(fleet, bus)
    with pytest.raises(CloudError) as caught:
        supervisor.run()
    line = f"the cloud answered 3 times with unusable loss maps: {reason}"
    assert str(caught.value) == f"vehicle {CAR!r} can't go on: {line}"
    [end] = supervisor.failures
    assert (type(end), str(end)) == (TurnRefused, line)
    assert len(answers) >= 3 and len({answer.step for answer in answers}) == 1, "one query, asked again"
    assert not any(fleet.state_folder(CAR).iterdir()), "nothing was learnt from what is no answer"


def test_map_that_does_not_fit_the_features_ends_the_run_in_one_line(
    tiny_world: World, tmp_path: Path
) -> None:
    fleet = tiny(tiny_world, tmp_path / "run", rounds=1, activation=plan(map_stride=4))
    with pytest.raises(Mistake, match=r"activation settings don't fit: map stride 4 must divide .* 6x8"):
        run_in_process(fleet.config, [fleet.host()], fleet.run_folder)


def test_bundle_without_vjp_ends_the_run_with_the_way_out(tiny_world: World, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_world.bundle, tmp_path / "bundle")
    description = json.loads((bundle / "encoder.json").read_text())
    for name in ("tape", "tape_bound", "vjp"):
        del description["graphs"][name]
    (bundle / "encoder.json").write_text(json.dumps(description))
    fleet = tiny(dataclasses.replace(tiny_world, bundle=bundle), tmp_path / "run", rounds=1)
    with pytest.raises(Mistake, match=r"stride8-c4 has no VJP; use an estimator that needs forward passes"):
        run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
