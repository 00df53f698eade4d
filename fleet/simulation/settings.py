"""The scenario's section about links, devices, absences and time."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from fleet.scenario_file import read_table
from fleet.simulation.availability import ALWAYS
from fleet.simulation.devices import DEVICES, DeviceProfile
from fleet.simulation.links import LINKS, LinkProfile
from protocol.errors import BlackfleetError, SettingError
from protocol.noise import derive_seed, permutation
from protocol.plans.checks import Section

TIMES = ("real", "virtual")
_Profile = TypeVar("_Profile", LinkProfile, DeviceProfile)


class ProfilesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices and links of the user's own, by name."""

    devices: dict[str, DeviceProfile] = {}
    links: dict[str, LinkProfile] = {}


class SimulationPart(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies between vehicles and cloud, and what they compute on, in a simulated fleet."""

    section = "simulation"

    time: str = "real"
    """`virtual`: whoever waits skips to what happens next, so that a run takes what its computing takes here,
    and tells what it would take in the fleet; `real`: with a link or device, packets and vehicles wait."""
    profile: str | None = None
    """Device of the vehicles, or a mix such as `orin-nano:60,agx-orin:30,car-cpu:10` that is drawn with the
    seed; None = `core` where there is a link, or virtual time."""
    link: str | None = None
    """Link of the vehicles; None = `ethernet` where there is a device, or virtual time."""
    links: dict[str, str] = msgspec.field(default_factory=dict)
    """Links of vehicles that have another one, by id."""
    availability: str = ALWAYS
    """When vehicles have a link: `always`, `windows:0-600,900-`, `markov:THERE/AWAY` in seconds on average,
    or a CSV file with the columns vehicle, from_s, to_s, there."""
    cloud: str = "core"
    """Device of the cloud."""
    profiles: str | None = None
    """A YAML file with devices and links of your own, under `devices` and `links`, by name."""

    def __post_init__(self) -> None:
        self._one_of(TIMES, "time")
        if self.is_on:
            file = self._file()
            self._mix(file)
            _find(self.cloud, DEVICES, file.devices, self.key("cloud"))
            for name in (self.link or "ethernet", *self.links.values()):
                _find(name, LINKS, file.links, self.key("link"))

    @property
    def is_on(self) -> bool:
        """Whether anything is simulated."""
        return (
            self.time == "virtual"
            or self.profile is not None
            or self.link is not None
            or bool(self.links)
            or self.availability != ALWAYS
        )

    @property
    def cloud_device(self) -> DeviceProfile:
        """What the cloud computes on."""
        return _find(self.cloud, DEVICES, self._file().devices, self.key("cloud"))

    def link_names(self, vehicles: tuple[str, ...]) -> dict[str, str]:
        """By vehicle."""
        return {vehicle: self.links.get(vehicle, self.link or "ethernet") for vehicle in vehicles}

    def find_link(self, name: str) -> LinkProfile:
        """A link by its name."""
        return _find(name, LINKS, self._file().links, self.key("link"))

    def device_names(self, vehicles: tuple[str, ...], seed: int) -> dict[str, str]:
        """By vehicle: of a mix, each name as often as its weight says, in an order drawn with the seed."""
        mix = self._mix(self._file())
        total, n = sum(mix.values()), len(vehicles)
        shares = np.cumsum(list(mix.values())) * n / total
        bounds = np.rint(shares).astype(int)
        places = np.searchsorted(bounds, np.arange(n), side="right")
        names = list(mix)
        order = permutation(derive_seed(seed, "devices"), n)
        return {vehicles[order[place]]: names[which] for place, which in enumerate(places)}

    def find_device(self, name: str) -> DeviceProfile:
        """A device by its name."""
        return _find(name, DEVICES, self._file().devices, self.key("profile"))

    def _mix(self, file: ProfilesFile) -> dict[str, float]:
        mix: dict[str, float] = {}
        for entry in (self.profile or "core").split(","):
            name, colon, weight = entry.strip().partition(":")
            _find(name, DEVICES, file.devices, self.key("profile"))
            try:
                value = float(weight) if colon else 1.0
            except ValueError:
                value = 0.0
            if not 0 < value < float("inf") or name in mix:
                raise SettingError(
                    f"{self.key('profile')} must be DEVICE or DEVICE:WEIGHT,…, each once, with weights above "
                    f"0, got {entry.strip()!r} in {self.profile!r}"
                )
            mix[name] = value
        return mix

    def _file(self) -> ProfilesFile:
        if self.profiles is None:
            return ProfilesFile()
        try:
            return msgspec.convert(read_table(Path(self.profiles)), ProfilesFile)
        except msgspec.ValidationError as error:
            raise SettingError(f"{self.profiles}: {error}") from error


def is_simulated(section: object) -> bool:
    """Whether a section as a file holds it asks for virtual time, a link or a device; what is wrong in it is
    said where the scenario is made."""
    try:
        return msgspec.convert(section or {}, SimulationPart).is_on
    except (msgspec.ValidationError, BlackfleetError):
        return False


def _find(name: str, ours: dict[str, _Profile], own: dict[str, _Profile], key: str) -> _Profile:
    known = {**ours, **own}
    if name not in known:
        raise SettingError(
            f"unknown {key} {name!r}, expected one of: {', '.join(known)}; or one of your own, in the file "
            f"that simulation.profiles (--profiles) names"
        )
    return known[name]
