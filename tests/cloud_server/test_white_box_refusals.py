"""What does not fit into learning with gradients: requests, answers, bundles without a way back."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, FLEET, TinyFleet, World, interrupt
from supervision import Supervisor

from cloud_server.errors import CloudError
from edge_client.errors import TurnRefused
from edge_client.host import Host
from protocol.codec.tensor import EncodedTensor, encode
from protocol.messages import (
    Ack,
    Gradient,
    Hello,
    LabelOffer,
    LabelWant,
    Query,
    Status,
    TrainStep,
    Turn,
    TurnDone,
    TurnFailed,
    Welcome,
    WhiteBoxPlan,
)
from protocol.plans.first_order import FirstOrder
from protocol.session import topics
from protocol.session.link import CloudLink, Received
from protocol.session.memory import MemoryBus

CAR = CARS[0]


def _features(count: int, channels: int = 4) -> EncodedTensor:
    return encode(np.ones((count, channels, 6, 8), np.float32), 8)


def _header(turn: Turn) -> dict[str, Any]:
    return {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 10**6}


_WRONG: dict[str, tuple[str, Callable[[Turn], object], str]] = {
    "features of another shape": (
        "train",
        lambda turn: TrainStep(**_header(turn), frames=(0, 1), features=_features(2, channels=5)),
        "tensor shape must be 2x4x6x8, got 2x5x6x8",
    ),
    "a validation frame": (
        "train",
        lambda turn: TrainStep(**_header(turn), frames=(0, 6), features=_features(2)),
        "frame 6 is no train frame",
    ),
    "a query": (
        "train",
        lambda turn: Query(**_header(turn), frames=(0, 1), features=_features(2)),
        "this turn has no queries",
    ),
    "an end before the last step": (
        "train",
        lambda turn: TurnDone(**_header(turn), loss=1.0),
        "turn 1 ended after 0 of 6 training steps",
    ),
    "a step too many": (
        "upload",
        lambda turn: TrainStep(**_header(turn), frames=(0, 1), features=_features(2)),
        "turn 1 has had all its 6 training steps",
    ),
}


@pytest.mark.parametrize("name", _WRONG)
def test_wrong_request_is_rejected_and_changes_nothing(
    name: str, calm_white_box: TinyFleet, tmp_path: Path
) -> None:
    before, say, reason = _WRONG[name]
    bus = MemoryBus()
    interrupt(bus, before, lambda turn, payload: (topics.UP, say(turn)))
    fleet = TinyFleet(calm_white_box.world, tmp_path, algorithm=calm_white_box.config.algorithm)
    Supervisor(fleet, bus).run()
    [reject] = fleet.events("reject")
    assert reason in reject["reason"]
    assert fleet.result()["vehicles"][CAR]["rejects"] == 1
    assert fleet.fingerprint() == calm_white_box.fingerprint()


def test_black_box_takes_no_training_step(tiny_world: World, tmp_path: Path) -> None:
    bus = MemoryBus()
    interrupt(
        bus,
        "query",
        lambda turn, payload: (
            topics.UP,
            TrainStep(**_header(turn), frames=(0, 1), features=_features(2)),
        ),
    )
    fleet = TinyFleet(tiny_world, tmp_path, algorithm="blackfed-v1", rounds=1)
    Supervisor(fleet, bus).run()
    assert [event["reason"] for event in fleet.events("reject")] == ["this turn has no training steps"]


def test_training_that_diverges_ends_the_run_in_one_line(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(
        tiny_world,
        tmp_path,
        algorithm="split",
        first_order=FirstOrder(epochs=3, batch_size=4, rate=1e30, schedule="constant"),
    )
    with pytest.raises(CloudError, match=r"^training diverged in turn 1: .* lower the rate$"):
        Supervisor(fleet).run()


class RogueCloud:
    """Grants one white-box turn and answers its first training step as it is told to."""

    def __init__(self, bus: MemoryBus, answer: Callable[[TrainStep], Gradient]) -> None:
        self._link = CloudLink(bus.client("cloud"), FLEET)
        self._answer = answer

    def refusal(self) -> str:
        """Serve the vehicle until it gives its turn back; returns the reason that it gives."""
        self._link.open(1)
        self._link.announce(Status(vehicle="cloud", session="ab" * 8, online=True, beat=0))
        identity: dict[str, Any] = {"vehicle": CAR, "grant": "cd" * 8, "turn_id": 1}
        try:
            while True:
                received = self._link.receive(10)
                assert isinstance(received, Received)
                match received.message:
                    case Hello(session=session):
                        self._link.send(CAR, Welcome(vehicle=CAR, session=session))
                        turn = Turn(
                            **identity,
                            step=0,
                            after_turn=None,
                            seed=0,
                            learner=WhiteBoxPlan(),
                            epochs=1,
                            batches=0,
                            batch_size=2,
                            uploads=("val",),
                        )
                        self._link.send(CAR, turn)
                    case LabelOffer(step=step):
                        self._link.send(CAR, LabelWant(**identity, step=step, indices=()))
                    case TrainStep() as step:
                        self._link.send(CAR, self._answer(step))
                    case TurnFailed(step=step, reason=reason):
                        self._link.send(CAR, Ack(**identity, step=step))
                        return str(reason)
                    case _:
                        pass
        finally:
            self._link.close()


def _answer(loss: float, gradient: EncodedTensor) -> Callable[[TrainStep], Gradient]:
    return lambda step: Gradient(
        vehicle=step.vehicle,
        grant=step.grant,
        turn_id=step.turn_id,
        step=step.step,
        loss=loss,
        rate_share=1.0,
        gradient=gradient,
    )


_SOUND = encode(np.ones((2, 4, 6, 8), np.float32), 32)
_NAN = msgspec.structs.replace(encode(np.ones((2, 4, 6, 8), np.float32), 8), scale=b"\xff" * 16)


def _refusal(fleet: TinyFleet, answer: Callable[[TrainStep], Gradient]) -> str:
    """What the cloud is told, and what ends the vehicle, which must be the same."""
    bus = MemoryBus()
    told: list[str] = []
    cloud = threading.Thread(target=lambda: told.append(RogueCloud(bus, answer).refusal()))
    cloud.start()
    stop = threading.Event()
    host = Host(
        fleet.host(CAR),
        lambda client_id, will, on_connect: bus.client(client_id, will=will, on_connect=on_connect),
        stop,
    )
    with pytest.raises(TurnRefused) as caught:
        host.run()
    cloud.join()
    assert told == [str(caught.value)]
    return told[0]


@pytest.mark.parametrize(
    ("loss", "gradient", "reason"),
    [
        (float("nan"), _SOUND, "expected a finite loss, the cloud answered nan"),
        (1.0, _features(3), "tensor shape must be 2x4x6x8, got 3x4x6x8"),
        (1.0, _NAN, "tensor scale holds NaN or infinity"),
        (1.0, msgspec.structs.replace(_SOUND, data=_SOUND.data[:-9]), "tensor data is t"),
    ],
    ids=["loss is no number", "another shape", "no numbers", "truncated"],
)
def test_wrong_gradient_is_refused(
    loss: float, gradient: EncodedTensor, reason: str, tiny_world: World, tmp_path: Path
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path)
    assert reason in _refusal(fleet, _answer(loss, gradient))
    assert not any(fleet.state_folder(CAR).iterdir())


def test_bundle_without_vjp_is_refused_with_the_way_out(tiny_world: World, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_world.bundle, bundle)
    description = json.loads((bundle / "encoder.json").read_text())
    for name in ("tape", "tape_bound", "vjp"):
        del description["graphs"][name]
    (bundle / "encoder.json").write_text(json.dumps(description))
    fleet = TinyFleet(dataclasses.replace(tiny_world, bundle=bundle), tmp_path)
    reason = _refusal(fleet, _answer(1.0, _SOUND))
    assert "the bundle of encoder stride8-c4 has no VJP" in reason
