"""Every topic there is: its place, direction, quality of service and what travels on it.

`blackfleet/v1/<fleet>/<vehicle>/<channel>`; nobody writes a topic string anywhere else. The cloud is
the reserved vehicle id `cloud`, which has a status, and events for whoever may look on. What a vehicle sees
now and what the cloud makes of it have channels of their own: they wait for nothing that belongs to a turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from protocol import messages
from protocol.errors import SettingError, WireError

PREFIX = "blackfleet/v1"
CLOUD_ID = "cloud"

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Direction(Enum):
    """Who publishes on a channel."""

    VEHICLE_TO_CLOUD = "vehicle → cloud"
    CLOUD_TO_VEHICLE = "cloud → vehicle"
    EVERYONE = "everyone"
    CLOUD_TO_OBSERVERS = "cloud → observers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """One row of the table."""

    name: str
    direction: Direction
    qos: int
    retained: bool
    message_type: object
    """The msgspec union that a payload on this channel decodes to."""


UP = Channel(name="up", direction=Direction.VEHICLE_TO_CLOUD, qos=1, retained=False, message_type=messages.Up)
DOWN = Channel(
    name="down", direction=Direction.CLOUD_TO_VEHICLE, qos=1, retained=False, message_type=messages.Down
)
STATUS = Channel(
    name="status", direction=Direction.EVERYONE, qos=1, retained=True, message_type=messages.Status
)
EVENTS = Channel(
    name="events",
    direction=Direction.CLOUD_TO_OBSERVERS,
    qos=1,
    retained=False,
    message_type=messages.Events,
)
SEEN = Channel(
    name="seen", direction=Direction.VEHICLE_TO_CLOUD, qos=1, retained=False, message_type=messages.Sight
)
CLASSES = Channel(
    name="classes",
    direction=Direction.CLOUD_TO_VEHICLE,
    qos=1,
    retained=False,
    message_type=messages.Classes,
)
CHANNELS = {channel.name: channel for channel in (UP, DOWN, STATUS, EVENTS, SEEN, CLASSES)}
_OTHER_WAY = {UP.name: DOWN, DOWN.name: UP, SEEN.name: CLASSES, CLASSES.name: SEEN}


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A parsed topic."""

    fleet: str
    vehicle: str
    channel: Channel


def check_id(value: str, what: str) -> str:
    """Return `value` if it may stand in a topic.

    Raises:
        SettingError: it holds other characters than letters, digits, `_` and `-`, or is too long.
    """
    if not _ID.fullmatch(value):
        raise SettingError(f"{what} must be 1 to 64 letters, digits, '_' or '-', got {value!r}")
    return value


def check_vehicle_id(value: str) -> str:
    """Return `value` if a vehicle may be called so.

    Raises:
        SettingError: it may not stand in a topic, or is reserved.
    """
    if check_id(value, "vehicle id") == CLOUD_ID:
        raise SettingError(f"{CLOUD_ID!r} is the cloud's own id; name the vehicle otherwise")
    return value


def client_id(fleet: str, sender: str, session: str) -> str:
    """What a process calls itself to the broker; `sender` is a vehicle id or the cloud's.

    A broker ends the connection of whoever has the same client id. With the sender's session in it, a process
    that reconnects takes over from itself, and no other process of the same name can.
    """
    return f"{fleet}-{sender}-{session[:8]}"


def certificate_name(fleet: str, sender: str) -> str:
    """What a process is called in its certificate, and by brokers that take its name from there.

    With the fleet in it, fleets on one broker need not agree on names; a full stop is in no id: one reading.
    """
    return f"{fleet}.{sender}"


def topic(channel: Channel, fleet: str, vehicle: str) -> str:
    """The topic of one vehicle's channel, for instance `blackfleet/v1/demo/car-01/up`."""
    return f"{PREFIX}/{check_id(fleet, 'fleet id')}/{check_id(vehicle, 'vehicle id')}/{channel.name}"


def other_way(channel: Channel) -> Channel:
    """The channel on which the receiver of a message speaks to its sender."""
    return _OTHER_WAY.get(channel.name, UP)


def topic_filter(channel: Channel, fleet: str) -> str:
    """The subscription that covers a channel of every vehicle of a fleet."""
    return f"{PREFIX}/{check_id(fleet, 'fleet id')}/+/{channel.name}"


def clouds_filter() -> str:
    """The subscription that covers the statuses of all fleets' clouds."""
    return f"{PREFIX}/+/{CLOUD_ID}/{STATUS.name}"


def parse(topic_name: str) -> Address:
    """Take a topic apart.

    Raises:
        WireError: it is no topic of ours.
    """
    prefix, _, rest = topic_name.partition(f"{PREFIX}/")
    levels = rest.split("/")
    ids, channel = levels[:2], levels[-1]
    if prefix or len(levels) != 3 or channel not in CHANNELS or not all(map(_ID.fullmatch, ids)):
        raise WireError(f"not a blackfleet topic: {topic_name!r}")
    return Address(fleet=ids[0], vehicle=ids[1], channel=CHANNELS[channel])
