"""What computing takes on each device, and how long each one has computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fleet.simulation.devices import DeviceProfile
from protocol.charging import Charge, Computing


@dataclass
class Spent:
    """Seconds of simulated time, by vehicle, and of the cloud."""

    devices: Mapping[str, DeviceProfile]
    busy_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Computing."""

    def charge(self, name: str, take: Callable[[float], None]) -> Charge:
        """What is told of the work of `name`; `take` gets the seconds of each piece."""
        device = self.devices[name]

        def told(kind: Computing, frames: int, amount: float) -> None:
            seconds = device.seconds(kind, frames, amount)
            self.busy_s[name] += seconds
            take(seconds)

        return told
