"""What can end a vehicle's work.

VehicleError            a mistake or a fault to show in one line; the process ends with exit code 2
├── StateError          the state folder is corrupt or belongs to something else
├── CloudSilent         nothing was heard of the cloud for too long
└── TurnRefused         this turn can't be done; the cloud is told why
"""

from __future__ import annotations

from protocol.errors import Mistake


class VehicleError(Mistake):
    """Ends the vehicle with one readable line."""


class StateError(VehicleError):
    """What lies in the state folder can't be used."""


class CloudSilent(VehicleError):
    """The cloud says nothing, or doesn't answer."""


class TurnRefused(VehicleError):
    """The vehicle can't do what the turn asks for."""
