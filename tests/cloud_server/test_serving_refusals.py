"""What a vehicle that drives is refused, and why; nothing of it reaches a network."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from cloud_server.desk.handlers.serving import Answer, answer, welcome
from cloud_server.desk.registry import Registry
from cloud_server.errors import RequestError
from protocol.codec.labels import decode_label
from protocol.codec.tensor import CodecError, encode
from protocol.messages import PROTOCOL_VERSION, Hello, Seen, WantServing
from protocol.messages.serving import SERVED
from protocol.plans.coding import Coding

CAR, OTHER, SESSION = "car-1", "car-2", "ab" * 8
SHAPE, SIZE = (4, 6, 8), (64, 48)


class Networks:
    """Stand for those of vehicles; note what reaches them."""

    def __init__(self, found: Answer | None) -> None:
        self.found, self.asked = found, 0

    def class_map(self, vehicle: str, features_1CHW: Any, size_hw: tuple[int, int]) -> Answer | None:
        del vehicle, features_1CHW, size_hw
        self.asked += 1
        return self.found


@pytest.fixture
def registry() -> Registry:
    """With one vehicle that will ask for class maps, and one that has not said so."""
    made = Registry((CAR, OTHER), label_space="camvid", feature_shapes=None)
    for vehicle, equipment in ((CAR, (SERVED,)), (OTHER, ())):
        hello = Hello(
            vehicle=vehicle,
            session=SESSION,
            protocol=PROTOCOL_VERSION,
            encoder="stride8-c4",
            bundle_digest="0123",
            feature_shape=SHAPE,
            image_size=SIZE,
            label_space="camvid",
            frames={"train": 5, "val": 2, "test": 3},
            frames_digest="00",
            equipment=equipment,
        )
        made.admit(hello)
    return made


def seen(shape: tuple[int, ...] = (1, *SHAPE), **changes: Any) -> Seen:
    features = encode(np.random.default_rng(0).normal(0, 1, shape).astype(np.float32), 8)
    request = Seen(vehicle=CAR, session=SESSION, number=7, features=features)
    return msgspec.structs.replace(request, **changes)


def test_frame_is_answered_at_the_size_of_the_encoder_s_input(registry: Registry) -> None:
    label_hw = np.full((48, 64), 3, np.uint8)
    said = answer(seen(), registry, Networks(Answer(label_hw, 0.5, 2)))
    assert (said.number, said.width, said.height, said.uncertainty, said.stage) == (7, 64, 48, 0.5, 2)
    np.testing.assert_array_equal(decode_label(said.classes, height=48, width=64, num_classes=11), label_hw)
    coding = Coding(bits=4)
    assert welcome(WantServing(vehicle=CAR, session=SESSION), registry, coding).coding == coding


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (seen(vehicle="nobody"), "is not in this fleet"),
        (seen(session="cd" * 8), "this process has not been welcomed yet"),
        (seen(vehicle=OTHER), "has not said that it will ask for class maps"),
        (seen((2, *SHAPE)), "tensor shape must be 1x4x6x8, got 2x4x6x8"),
        (seen((1, 4, 6, 9)), "tensor shape must be 1x4x6x8, got 1x4x6x9"),
        (seen(features=msgspec.structs.replace(seen().features, data=b"rubbish")), "tensor data"),
        (seen(features=msgspec.structs.replace(seen().features, scale=b"\xff" * 16)), "NaN or infinity"),
    ],
)
def test_what_is_no_frame_of_a_vehicle_that_drives_is_refused(
    request_: Seen, reason: str, registry: Registry
) -> None:
    networks = Networks(None)
    with pytest.raises((RequestError, CodecError), match=reason):
        answer(request_, registry, networks)
    assert networks.asked == 0


def test_vehicle_without_a_network_yet_and_one_that_has_failed_are_told_so(registry: Registry) -> None:
    with pytest.raises(RequestError, match="no network serves this vehicle yet"):
        answer(seen(), registry, Networks(None))
    registry.vehicles[CAR].failed = "its disk is full"
    with pytest.raises(RequestError, match=r"has failed in this run, .*: its disk is full"):
        welcome(WantServing(vehicle=CAR, session=SESSION), registry, Coding())
