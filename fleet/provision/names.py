"""Who there is: vehicles, and what every fleet has besides; in certificates FLEET.NAME, as `demo.car-01`.

The fleet is part of the name because a broker that takes the client id from the certificate has one session
for each name, whatever fleet it is of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fleet.errors import OperatorError
from protocol.session.observing import OBSERVER_NAME
from protocol.session.topics import CLOUD_ID, certificate_name, check_id

Role = Literal["vehicle", "cloud", "operator", "observer", "broker"]

OPERATOR = "operator"
BROKER = "broker"
RESERVED: dict[str, Role] = {CLOUD_ID: "cloud", OPERATOR: "operator", OBSERVER_NAME: "observer"}
"""Names that every fleet has, and what they are."""
MORE_OBSERVERS = f"{OBSERVER_NAME}-"
"""What the names of further ones begin with: one name is one session."""

_LONGEST = 64
"""Of a common name (RFC 5280, appendix A)."""


@dataclass(frozen=True)
class Identity:
    """One client of a broker, or the broker itself, which is of no fleet."""

    fleet: str
    name: str

    @property
    def role(self) -> Role:
        """What it is to do."""
        if self.fleet and self.name.startswith(MORE_OBSERVERS):
            return "observer"
        return RESERVED.get(self.name, "vehicle") if self.fleet else "broker"

    @property
    def common_name(self) -> str:
        """As its certificate and the broker's access list call it."""
        return certificate_name(self.fleet, self.name) if self.fleet else self.name

    def __str__(self) -> str:
        return self.common_name


BROKERS = Identity("", BROKER)


def identity(fleet: str, name: str) -> Identity:
    """A client of a fleet.

    Raises:
        SettingError: a name holds what can't be in a topic, such as a wildcard.
        OperatorError: both together are longer than a certificate takes.
    """
    made = Identity(check_id(fleet, "fleet id"), check_id(name, "vehicle id"))
    if len(made.common_name) > _LONGEST:
        raise OperatorError(
            f"{made} has {len(made.common_name)} characters, a certificate's name {_LONGEST} at most; "
            "shorten fleet or vehicle"
        )
    return made


def parse_common_name(text: str) -> Identity:
    """The client that a certificate names.

    Raises:
        OperatorError: it names none.
    """
    if text == BROKER:
        return BROKERS
    fleet, point, name = text.partition(".")
    try:
        if point:
            return identity(fleet, name)
    except ValueError:
        pass
    raise OperatorError(f"a client is called FLEET.VEHICLE in its certificate, as demo.car-01, not {text!r}")
