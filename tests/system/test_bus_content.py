"""What crosses the network in a whole run: features, labels, losses and control messages, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, IMAGE_SIZE, TinyFleet, World, tag
from supervision import Supervisor

from cloud_server.storage.checkpoint import load_checkpoint
from datasets.catalog import open_dataset
from datasets.frame import resize_frame
from edge_client.encoder.bundle import EncoderBundle
from edge_client.state import StateStore
from protocol.codec import labels as label_codec
from protocol.codec import tensor as tensor_codec
from protocol.codec.lines import decode_lines
from protocol.messages import Down, Events, Feedback, Happened, Labels, Past, Query, Status, Turn, Up, Upload
from protocol.session.memory import MemoryBus
from protocol.session.topics import parse

_WINDOW_BYTES = 16
_HEARTBEAT_BYTES = 160
"""Two of the cloud's heartbeats may fall between its result and its goodbye."""


@dataclass
class Recording:
    """A run and its bus log."""

    fleet: TinyFleet
    messages: list[tuple[str, str, Up | Down | Status | Events]] = field(default_factory=list)
    """(vehicle, channel, message)"""
    payloads: list[bytes] = field(default_factory=list)
    hellos: dict[str, list[int]] = field(default_factory=lambda: {car: [] for car in CARS})
    """By vehicle: bytes of each of its hellos."""
    carried: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By vehicle: (bytes up, bytes down) that the bus counted for its client until the run was over."""


@pytest.fixture(scope="module")
def recording(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    fleet = TinyFleet(tiny_world, tmp_path_factory.mktemp("recorded"))
    log = Recording(fleet)
    bus = MemoryBus()
    supervisor = Supervisor(fleet, bus)

    def record(topic: str, payload: bytes, qos: int) -> None:
        address = parse(topic)
        log.payloads.append(payload)
        if tag(payload) == "hello":
            log.hellos[address.vehicle].append(len(topic) + len(payload))
        message = msgspec.msgpack.decode(payload[1:], type=address.channel.message_type)
        log.messages.append((address.vehicle, address.channel.name, message))
        if tag(payload) == "finish" and not log.carried:
            for car in CARS:  # the result is written: what follows can't be in it
                traffic = supervisor.traffic(car)
                log.carried[car] = (traffic.sent_bytes, traffic.received_bytes)

    bus.record(record)
    supervisor.run()
    return log


def test_only_the_table_s_message_types_cross(recording: Recording) -> None:
    seen = {(channel, type(message).__name__) for _, channel, message in recording.messages}
    assert seen == {
        ("up", "Hello"),
        ("up", "LabelOffer"),
        ("up", "Labels"),
        ("up", "Query"),
        ("up", "Upload"),
        ("up", "TurnDone"),
        ("down", "Welcome"),
        ("down", "Turn"),
        ("down", "LabelWant"),
        ("down", "Feedback"),
        ("down", "Ack"),
        ("down", "Finish"),
        ("status", "Status"),
        ("events", "Happened"),
        ("events", "Past"),
    }
    assert all(message.vehicle in (*CARS, "cloud") for _, _, message in recording.messages)


def test_down_go_only_losses_and_settings(recording: Recording) -> None:
    """No gradient has room: the cloud's longest answer is one number, and a turn has a fixed few."""
    for _, channel, message in recording.messages:
        if isinstance(message, Feedback):
            assert len(message.losses) == 1
        if channel == "down":
            numbers = _numbers(msgspec.to_builtins(message))
            assert numbers <= (13 if isinstance(message, Turn) else 2 + _FRAMES_OF_ONE_SPLIT)


_FRAMES_OF_ONE_SPLIT = 6


def _numbers(content: object) -> int:
    if isinstance(content, list | tuple):
        return sum(map(_numbers, content))
    return isinstance(content, int | float)


def _open_contents(recording: Recording) -> Iterable[bytes]:
    """Every payload as it travelled, and what is compressed in it."""
    yield from recording.payloads
    for _, _, message in recording.messages:
        if isinstance(message, Query | Upload):
            features = message.features
            yield tensor_codec.decode(features, expected_shape=(None,) * 4).tobytes()
        if isinstance(message, Happened | Past):
            yield "\n".join(decode_lines(message.plain_bytes, message.lines)).encode()
        if isinstance(message, Labels):
            for label, coded in message.labels:
                yield label_codec.decode_label(
                    coded, height=label.height, width=label.width, num_classes=11
                ).tobytes()


def _found(recording: Recording, secrets: Iterable[np.ndarray], stride: int) -> int:
    """How many places of the bus hold 16 bytes of `secrets`, which are looked at every `stride` bytes.

    Runs of one value are no evidence: labels, biases and skies are full of them.
    """
    windows = set()
    for secret in secrets:
        data = secret.tobytes()
        for start in range(0, len(data) - _WINDOW_BYTES + 1, stride):
            window = data[start : start + _WINDOW_BYTES]
            if len(set(window)) > 4:
                windows.add(window)
    assert windows
    return sum(
        content[start : start + _WINDOW_BYTES] in windows
        for content in _open_contents(recording)
        for start in range(len(content) - _WINDOW_BYTES + 1)
    )


def test_no_image_crosses(recording: Recording) -> None:
    source = open_dataset("camvid", recording.fleet.world.data_root)
    frames = [source.load(ref) for ref in source.refs]
    images = [frame.image_HWC for frame in frames]
    images += [np.ascontiguousarray(resize_frame(frame, *IMAGE_SIZE).image_HWC) for frame in frames]
    assert _found(recording, images, stride=3) == 0


def test_no_encoder_weight_crosses(recording: Recording) -> None:
    fleet = recording.fleet
    thetas = [EncoderBundle.load(fleet.world.bundle).theta0]
    for car in CARS:
        store = StateStore(fleet.state_folder(car), vehicle=car, bundle_digest=fleet.digest())
        for path in fleet.state_folder(car).glob("turn-*.state"):
            state = store.load(int(path.stem.removeprefix("turn-")))
            thetas += [state.theta, state.theta - thetas[0]]
            thetas += [np.asarray(array) for array in state.optimizer.values() if array.size > 1]
    assert len(thetas) > 2 * len(CARS)
    assert _found(recording, thetas, stride=4) == 0


def test_no_cloud_weight_crosses(recording: Recording) -> None:
    tensors, _ = load_checkpoint(recording.fleet.run_folder / "cloud" / "checkpoints")
    weights = [tensor.contiguous().numpy() for tensor in tensors.values()]
    assert _found(recording, weights, stride=4) == 0


def test_search_finds_what_does_cross(recording: Recording) -> None:
    """The labels do cross: the search that finds no image would find one."""
    source = open_dataset("camvid", recording.fleet.world.data_root)
    label_HWs = [resize_frame(source.load(ref), *IMAGE_SIZE).label_HW for ref in source.refs]
    edges = [label_HW[:, x : x + _WINDOW_BYTES].copy() for label_HW in label_HWs for x in (0, 8, 16, 24)]
    windows = [row for edge in edges for row in edge if len(set(row.tolist())) > 2]
    contents = list(_open_contents(recording))
    assert any(row.tobytes() in content for row in windows for content in contents)


@pytest.mark.parametrize("car", CARS)
def test_byte_counts_of_the_result_equal_what_the_bus_carried(car: str, recording: Recording) -> None:
    entry = recording.fleet.result()["vehicles"][car]
    sent, received = recording.carried[car]
    sent -= sum(recording.hellos[car][:-1])  # to a cloud that was not there yet
    assert entry["uplink_bytes"] == pytest.approx(sent, rel=0.02, abs=_HEARTBEAT_BYTES)
    assert entry["downlink_bytes"] == pytest.approx(received, rel=0.02, abs=_HEARTBEAT_BYTES)
    assert entry["uplink_bytes"] == sum(entry["uplink_bytes_by_type"].values())
    assert entry["downlink_bytes"] == sum(entry["downlink_bytes_by_type"].values())


def test_total_byte_counts_are_those_of_the_vehicles(recording: Recording) -> None:
    result = recording.fleet.result()
    for name in ("uplink_bytes", "downlink_bytes"):
        assert result[name] == sum(result["vehicles"][car][name] for car in CARS)


def test_labels_go_up_once_and_features_once_a_turn(recording: Recording) -> None:
    labels = [
        (vehicle, label.index)
        for vehicle, _, message in recording.messages
        if isinstance(message, Labels)
        for label, _ in message.labels
    ]
    assert len(set(labels)) == len(labels)
    uploads = [
        (vehicle, message.turn_id, message.split, frame)
        for vehicle, _, message in recording.messages
        if isinstance(message, Upload)
        for frame in message.frames
    ]
    assert len(set(uploads)) == len(uploads)
