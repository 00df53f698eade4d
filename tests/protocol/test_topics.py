"""The table of topics, and that nothing but its topics is understood."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.config import CloudConfig
from edge_client.host import VehicleConfig
from protocol.errors import SettingError, WireError
from protocol.messages import Classes, Down, Events, Sight, Status, Up
from protocol.session import topics
from protocol.session.link import VehicleLink
from protocol.session.memory import MemoryBus
from protocol.session.transport import topic_matches

_ROOT = Path(__file__).resolve().parents[2]
_ids = st.from_regex(re.compile(r"[A-Za-z0-9_-]{1,64}"), fullmatch=True)


def test_table_is_what_the_design_says() -> None:
    rows = {
        channel.name: (channel.direction, channel.qos, channel.retained, channel.message_type)
        for channel in topics.CHANNELS.values()
    }
    assert rows == {
        "up": (topics.Direction.VEHICLE_TO_CLOUD, 1, False, Up),
        "down": (topics.Direction.CLOUD_TO_VEHICLE, 1, False, Down),
        "status": (topics.Direction.EVERYONE, 1, True, Status),
        "events": (topics.Direction.CLOUD_TO_OBSERVERS, 1, False, Events),
        "seen": (topics.Direction.VEHICLE_TO_CLOUD, 1, False, Sight),
        "classes": (topics.Direction.CLOUD_TO_VEHICLE, 1, False, Classes),
    }


def test_no_vehicle_is_called_as_the_cloud_is() -> None:
    assert topics.check_vehicle_id("cloud-1") == "cloud-1"
    for check in (
        topics.check_vehicle_id,
        lambda name: VehicleConfig(id=name, bundle="b", state="s"),
        lambda name: CloudConfig(fleet="demo", vehicles=("car-01", name)),
        lambda name: VehicleLink(MemoryBus().client(name), "demo", name),
    ):
        with pytest.raises(SettingError, match="'cloud' is the cloud's own id; name the vehicle otherwise"):
            check(topics.CLOUD_ID)


def test_client_ids_of_two_processes_differ_and_one_keeps_its_own() -> None:
    first, second = (topics.client_id("demo", "car-01", letter * 16) for letter in "ab")
    assert first == "demo-car-01-aaaaaaaa"
    assert first != second


def test_topic_of_a_vehicle() -> None:
    assert topics.topic(topics.UP, "demo", "car-01") == "blackfleet/v1/demo/car-01/up"
    assert topics.topic_filter(topics.STATUS, "demo") == "blackfleet/v1/demo/+/status"


@given(fleet=_ids, vehicle=_ids, channel=st.sampled_from(list(topics.CHANNELS.values())))
def test_parsing_undoes_building(fleet: str, vehicle: str, channel: topics.Channel) -> None:
    name = topics.topic(channel, fleet, vehicle)
    assert topics.parse(name) == topics.Address(fleet=fleet, vehicle=vehicle, channel=channel)
    assert topic_matches(topics.topic_filter(channel, fleet), name)
    assert not topic_matches(topics.topic_filter(channel, fleet + "x"), name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "up",
        "blackfleet/v1/demo/car-01",
        "blackfleet/v1/demo/car-01/up/more",
        "blackfleet/v1/demo/car-01/UP",
        "blackfleet/v1/demo//up",
        "blackfleet/v1//car-01/up",
        "blackfleet/v1/demo/car 01/up",
        "blackfleet/v1/demo/car-01\n/up",
        "blackfleet/v1/demo/" + 65 * "c" + "/up",
        "blackfleet/v2/demo/car-01/up",
        "/blackfleet/v1/demo/car-01/up",
        "x/blackfleet/v1/demo/car-01/up",
    ],
)
def test_other_topics_are_refused(name: str) -> None:
    with pytest.raises(WireError, match="not a blackfleet topic"):
        topics.parse(name)


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_wire_error(name: str) -> None:
    try:
        address = topics.parse(name)
    except WireError:
        return
    assert topics.topic(address.channel, address.fleet, address.vehicle) == name


@pytest.mark.parametrize("value", ["", "a/b", "+", "#", "a b", "ä", "a" * 65, "car\n", "..", "a.b"])
def test_ids_that_have_no_place_in_a_topic_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="vehicle id must be 1 to 64 letters, digits, '_' or '-', got"):
        topics.check_id(value, "vehicle id")


def test_nobody_else_writes_a_topic() -> None:
    packages = ("protocol", "datasets", "edge_client", "cloud_server", "fleet")
    sources = [path for package in packages for path in (_ROOT / package).rglob("*.py")]
    writers = [
        path.relative_to(_ROOT).as_posix()
        for path in sources
        if re.search(r"blackfleet/v\d|f\"[^\"]*/(up|down|status)\"", path.read_text())
    ]
    assert writers == ["protocol/session/topics.py"]
