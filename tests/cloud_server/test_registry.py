"""Who is in the fleet, and what its vehicles have to agree on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloud_server.algorithms.table import algorithm_row
from cloud_server.desk.declaration import Declaration
from cloud_server.desk.registry import Registry, VehicleRecord
from cloud_server.errors import CloudError, RequestError
from protocol.messages import PROTOCOL_VERSION, Health, Hello, Status

_HELLO = Hello(
    vehicle="car-1",
    session="a" * 16,
    protocol=PROTOCOL_VERSION,
    encoder="stride8-c4",
    bundle_digest="0123",
    feature_shape=(4, 6, 8),
    image_size=(64, 48),
    label_space="camvid",
    frames={"train": 5, "val": 2, "test": 3, "ood": 4},
    frames_digest="00",
)


def _registry(*feature_shapes: tuple[int, int, int]) -> Registry:
    return Registry(("car-1", "car-2"), label_space="camvid", feature_shapes=feature_shapes or None)


def _hello(**changes: Any) -> Hello:
    return msgspec.structs.replace(_HELLO, **changes)


def _status(session: str, *, online: bool) -> Status:
    return Status(vehicle="car-1", session=session, online=online, beat=0)


def test_what_most_vehicles_have_is_the_run_s_whoever_came_first() -> None:
    cars = ("car-1", "car-2", "car-3")
    registry = Registry(cars, label_space="camvid", feature_shapes=None)
    assert registry.missing() == [*cars]
    liar = _hello(vehicle="car-3", feature_shape=(8, 6, 8), image_size=(128, 96))
    assert registry.admit(liar)
    assert registry.admit(_hello())
    assert registry.admit(_hello(vehicle="car-2", bundle_digest="another", encoder="another"))
    [(hello, reason)] = registry.settle()
    assert hello == liar and reason.startswith(
        "encoder 'stride8-c4' gives features of shape 8x6x8, the cloud"
    )
    assert (registry.feature_shape("car-1"), registry.image_size) == ((4, 6, 8), (64, 48))
    assert registry.missing() == ["car-3"] and list(registry.declared) == ["car-1", "car-2"]
    with pytest.raises(RequestError, match="features of shape 8x6x8, the cloud's network takes 4x6x8"):
        registry.admit(liar)
    registry.admit(_hello(vehicle="car-3"))
    assert registry.settle() == [] and registry.missing() == []


def test_of_two_vehicles_that_differ_the_first_of_the_operator_s_list_fits() -> None:
    registry = _registry()
    registry.admit(_hello(vehicle="car-2", image_size=(32, 24)))
    registry.admit(_hello())
    [(hello, reason)] = registry.settle()
    assert (hello.vehicle, reason) == ("car-2", "images of 32x24 pixels, this run uses 64x48")


def test_until_the_run_begins_a_vehicle_may_say_something_else() -> None:
    registry = _registry()
    registry.admit(_hello(frames={"train": 9, "val": 2, "test": 3}))
    registry.admit(_hello(session="b" * 16))
    assert len(registry.frames("car-1", "train")) == 5


def test_repeated_hello_is_not_new_and_that_of_a_new_process_is() -> None:
    registry = _registry()
    assert registry.admit(_hello())
    assert not registry.admit(_hello())
    assert registry.admit(_hello(session="b" * 16))
    assert registry.vehicles["car-1"].session == "b" * 16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": 0}, f"protocol version 0, this cloud speaks {PROTOCOL_VERSION}"),
        ({"label_space": "cityscapes"}, "labels of 'cityscapes', this run is about 'camvid'"),
        ({"feature_shape": (0, 6, 8)}, "impossible feature shape"),
        ({"image_size": (64, -1)}, "impossible feature shape"),
        ({"image_size": (2**30, 2**30)}, "impossible feature shape"),
        ({"feature_shape": (8, 6, 8)}, "the cloud's network takes 4x6x8; export the bundle for this run"),
        ({"frames": {"train": 0, "val": 2, "test": 3}}, "no train frames"),
        ({"frames": {"train": 5, "val": 2}}, "no test frames"),
        ({"labels": {"train": {"files": 4}}}, "labels of 4 train frames are told, it has 5"),
        ({"vehicle": "car-9"}, r"'car-9' is not in this fleet \(2 vehicles: car-1, car-2\); add it"),
    ],
)
def test_hello_that_does_not_fit_is_refused_and_changes_nothing(change: dict[str, Any], reason: str) -> None:
    registry = _registry((4, 6, 8))
    with pytest.raises(RequestError, match=reason):
        registry.admit(_hello(**change))
    assert registry.missing() == ["car-1", "car-2"]
    assert registry.image_size is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bundle_digest": "other"}, "came back with the bundle stride8-c4 other, it joined this run with"),
        (
            {"frames": {"train": 6, "val": 2, "test": 3, "ood": 4}},
            r"other frames \(6 train, 2 val, 3 test, 4 ood\) than .* \(5 train, 2 val, 3 test, 4 ood\)",
        ),
        (
            {"frames_digest": "ff"},
            "came back with as many frames as .*, but not the same ones; give it those",
        ),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_vehicle_may_not_come_back_as_another(change: dict[str, Any], named: str, resumed: bool) -> None:
    registry = _registry()
    registry.admit(_hello())
    registry.settle()
    if resumed:
        declared = registry.declared
        registry = _registry()
        registry.know(declared, {})
    with pytest.raises(RequestError, match=named):
        registry.admit(_hello(session="b" * 16, **change))
    assert registry.vehicles["car-1"].hello == (None if resumed else _hello())
    registry.admit(_hello(session="c" * 16))


def test_vehicle_that_has_failed_is_no_longer_waited_for_nor_taken_in() -> None:
    registry = _registry()
    registry.know({"car-1": Declaration.of(_hello())}, {"car-1": "disk full"})
    assert "car-1" not in registry.missing() and registry.failed == {"car-1": "disk full"}
    assert len(registry.frames("car-1", "train")) == 5, "what it declared is still known"
    with pytest.raises(RequestError, match="it has failed in this run, which goes on without it: disk full"):
        registry.admit(_hello())


def test_late_will_of_an_earlier_session_is_ignored() -> None:
    registry = _registry()
    registry.admit(_hello())
    registry.note_status(_status("a" * 16, online=True))
    registry.note_status(_status("b" * 16, online=True))
    registry.note_status(_status("a" * 16, online=False))
    assert registry.vehicles["car-1"].online
    registry.note_status(_status("b" * 16, online=False))
    assert not registry.vehicles["car-1"].online


def test_status_of_a_stranger_is_refused() -> None:
    with pytest.raises(RequestError, match="not in this fleet"):
        _registry().note_status(msgspec.structs.replace(_status("a" * 16, online=True), vehicle="car-3"))


def test_frames_are_numbered_through_the_splits() -> None:
    registry = _registry()
    with pytest.raises(CloudError, match="has not introduced itself"):
        registry.frames("car-1", "train")
    registry.admit(_hello())
    ranges = {split: registry.frames("car-1", split) for split in ("train", "val", "test", "ood")}
    assert ranges == {"train": range(5), "val": range(5, 7), "test": range(7, 10), "ood": range(10, 14)}
    registry.admit(_hello(vehicle="car-2", frames={"train": 1, "val": 1, "test": 1}))
    assert list(registry.frames("car-2", "ood")) == []


def test_rejects_are_counted_by_vehicle_and_for_all_strangers_together() -> None:
    registry = _registry()
    assert [registry.count_reject(name) for name in ("car-1", "car-1", "car-2")] == [1, 2, 1]
    assert [registry.count_reject(name) for name in ("x", "y", "")] == [1, 2, 3]
    assert (registry.vehicles["car-1"].rejects, registry.vehicles["car-2"].rejects) == (2, 1)
    assert registry.strangers == 3
    assert list(registry.vehicles) == ["car-1", "car-2"]


def test_bound_that_a_vehicle_s_features_may_not_keep_is_refused() -> None:
    registry = Registry(("car-1",), label_space="camvid", feature_shapes=None, frame_bytes=50)
    with pytest.raises(
        RequestError, match=r"frame_bytes must be at least \d+ for features of 4x6x8, .*, got 50"
    ):
        registry.admit(_hello())
    assert registry.missing() == ["car-1"]
    registry = Registry(("car-1",), label_space="camvid", feature_shapes=None, frame_bytes=100)
    assert registry.admit(_hello())


def test_vehicle_without_what_the_algorithm_needs_is_refused_when_it_joins() -> None:
    for name, equipment, missing in (
        ("blackfleet", ("local-head",), "no local head"),
        ("fedavg", ("whole-network",), "no local model"),
    ):
        needs = algorithm_row(name).needs.equipment
        assert needs == equipment
        registry = Registry(("car-1",), label_space="camvid", feature_shapes=None, equipment=needs)
        with pytest.raises(
            RequestError, match=f"{missing}.*which this run's algorithm needs of every vehicle"
        ):
            registry.admit(_hello())
        assert registry.missing() == ["car-1"]
        assert registry.admit(_hello(equipment=("something else", *equipment)))
    assert algorithm_row("split").needs.equipment == ()


def test_operator_says_the_size_of_images_before_any_vehicle_does() -> None:
    registry = Registry(("car-1",), label_space="camvid", feature_shapes=None, image_size=(128, 96))
    with pytest.raises(RequestError, match="images of 64x48 pixels, this run uses 128x96"):
        registry.check(_hello())
    assert registry.image_size == (128, 96)


def test_more_frames_than_anyone_has_are_refused() -> None:
    with pytest.raises(RequestError, match="2147483654 frames are declared; a vehicle may have 1000000"):
        _registry().check(_hello(frames={"train": 2**31 - 1, "val": 2, "test": 5}))


def test_health_is_told_every_five_minutes_and_when_it_changes_but_not_as_often_as_a_vehicle_likes() -> None:
    record = VehicleRecord()
    told = [record.health_is_due(Health(temperature_c=50), now) for now in (0.0, 10.0, 299.0, 300.0, 301.0)]
    assert told == [True, False, False, True, False]
    assert record.health_is_due(Health(is_paused=True), 302.0)
    flapping = sum(record.health_is_due(Health(is_throttled=bool(n % 2)), 303.0) for n in range(100_000))
    assert flapping < 1100
