"""The scenario's section about links, devices, absences and time."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from fleet.scenario_file import read_table
from fleet.simulation.availability import ALWAYS
from fleet.simulation.devices import DEVICES, DeviceProfile
from fleet.simulation.links import LINKS, CellProfile, LinkProfile, check_budget
from protocol.errors import BlackfleetError, SettingError
from protocol.noise import derive_seed, permutation
from protocol.plans.checks import Section

TIMES = ("real", "virtual")
_Profile = TypeVar("_Profile", LinkProfile, DeviceProfile, CellProfile)


class ProfilesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices, links and cells of the user's own, by name."""

    devices: dict[str, DeviceProfile] = {}
    links: dict[str, LinkProfile] = {}
    cells: dict[str, CellProfile] = {}


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
    budget_mb: float | None = None
    """10⁶ bytes that each vehicle may send and receive in a month of 30 days; None = what its link says."""
    budgets: dict[str, float] = msgspec.field(default_factory=dict)
    """Budgets of vehicles that have another one, by id."""
    cell: str | None = None
    """Cell that the vehicles are in, whose bandwidth they share; one of `profiles`. None = in none."""
    cells: dict[str, str] = msgspec.field(default_factory=dict)
    """Cells of vehicles that are in another one, by id."""
    cloud: str = "core"
    """Device of the cloud."""
    profiles: str | None = None
    """A YAML file with your own `devices`, `links` and `cells`, each by name."""

    def __post_init__(self) -> None:
        self._one_of(TIMES, "time")
        check_budget(self.key("budget_mb"), self.budget_mb)
        for vehicle, budget_mb in self.budgets.items():
            check_budget(f"{self.key('budgets')} of {vehicle}", budget_mb)
        if self.is_on:
            file = self._file()
            self._mix(file)
            _find(self.cloud, DEVICES, file.devices, self.key("cloud"))
            for name in (self.link or "ethernet", *self.links.values()):
                _find(name, LINKS, file.links, self.key("link"))
            for cell in (self.cell, *self.cells.values()):
                if cell is not None:
                    _find(cell, {}, file.cells, self.key("cell"))

    @property
    def is_on(self) -> bool:
        """Whether anything is simulated."""
        return (
            self.time == "virtual"
            or self.profile is not None
            or self.link is not None
            or bool(self.links)
            or self.budget_mb is not None
            or bool(self.budgets)
            or self.cell is not None
            or bool(self.cells)
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

    def budget_mb_of(self, vehicle: str, link: LinkProfile) -> float | None:
        """What a vehicle with this link may send and receive in a month; None: as much as it likes."""
        own = self.budgets.get(vehicle, self.budget_mb)
        return link.budget_mb if own is None else own

    @property
    def bounds_data(self) -> bool:
        """Whether a vehicle can use up its month."""
        if self.budget_mb is not None or self.budgets:
            return True
        names = (self.link or "ethernet", *self.links.values()) if self.is_on else ()
        return any(self.find_link(name).budget_mb is not None for name in names)

    def cell_name(self, vehicle: str) -> str | None:
        """The cell that a vehicle is in."""
        return self.cells.get(vehicle, self.cell)

    def find_cell(self, name: str) -> CellProfile:
        """A cell by its name."""
        return _find(name, {}, self._file().cells, self.key("cell"))

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


def read_part(section: object) -> SimulationPart:
    """A section as a file holds it; one that fits not at all is as if there were none: what is wrong in it is
    said where the scenario is made."""
    try:
        return msgspec.convert(section or {}, SimulationPart)
    except (msgspec.ValidationError, BlackfleetError):
        return SimulationPart()


def _find(name: str, ours: dict[str, _Profile], own: dict[str, _Profile], key: str) -> _Profile:
    known = {**ours, **own}
    if name not in known:
        some = f"one of: {', '.join(known)}; or " if known else ""
        raise SettingError(
            f"unknown {key} {name!r}, expected {some}one of your own, in the file that simulation.profiles "
            f"(--profiles) names"
        )
    return known[name]
