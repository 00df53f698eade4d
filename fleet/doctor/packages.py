"""Python, and the packages that a part of the fleet needs, as the project's own metadata names them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from fleet.doctor.finding import Finding

PROJECT = "blackfleet"
PARTS = ("operator", "cloud", "vehicle")
"""Extras, each what one part of a fleet needs; all others are optional, or for developers."""
_FOR_DEVELOPERS = ("dev", "federated")
_OTHER_BUILDS = {"onnxruntime": "onnxruntime", "opencv-python-headless": "cv2", "torch": "torch"}
"""Modules that builds of other names bring, too: NVIDIA's on a Jetson, for instance."""
_CHECKOUT = Path(__file__).resolve().parents[2]
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?\s*(?:>=\s*([0-9][0-9.]*))?")
_EXTRA = re.compile(r"extra\s*==\s*[\"']([^\"']+)[\"']")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What the project asks for."""

    python: str
    """The lowest version."""
    core: tuple[str, ...]
    extras: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def of(self, extra: str) -> dict[str, str]:
        """Lowest version, or empty, by package; what an extra takes of other extras included."""
        found: dict[str, str] = {}
        for text in self.extras.get(extra, ()):
            match = _REQUIREMENT.match(text)
            assert match, text
            name, extras, lowest = match.groups()
            if name == PROJECT:
                for other in (extras or "").split(","):
                    found |= self.of(other.strip())
            else:
                found[name] = lowest or ""
        return found


def read_requirements() -> Requirements | None:
    """Of the checkout that this file is in, which may be newer than what was installed, or as installed.

    None: nobody says.
    """
    project = _CHECKOUT / "pyproject.toml"
    if project.is_file() and sys.version_info >= (3, 11):
        import tomllib

        table = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if table.get("name") == PROJECT:
            return Requirements(
                python=table["requires-python"].lstrip(">= "),
                core=tuple(table["dependencies"]),
                extras=table["optional-dependencies"],
            )
    try:
        installed = metadata.metadata(PROJECT)
    except metadata.PackageNotFoundError:
        return None
    extras: dict[str, list[str]] = {}
    core: list[str] = []
    for text in metadata.requires(PROJECT) or ():
        requirement, _, marker = text.partition(";")
        extra = _EXTRA.search(marker)
        (extras.setdefault(extra.group(1), []) if extra else core).append(requirement.strip())
    return Requirements(
        python=(installed["Requires-Python"] or "3").lstrip(">= "), core=tuple(core), extras=extras
    )


def check_python(asked: Requirements) -> Finding:
    """Whether this Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= _numbers(asked.python)[:2]:
        return Finding(about="Python", state="ok", found=f"{version}, {sys.executable}")
    return Finding(
        about="Python",
        state="wrong",
        found=f"{version}, needed is {asked.python} or newer",
        advice="make a virtual environment with a newer Python",
    )


def check_packages(asked: Requirements, part: str) -> Iterator[Finding]:
    """What a part of the fleet needs, and the optional extras."""
    needed = Requirements(python="", core=(), extras={"core": asked.core}).of("core") | asked.of(part)
    faults = {name: fault for name, lowest in needed.items() if (fault := _fault(name, lowest))}
    if faults:
        listed = ", ".join(f"{name} {fault}" for name, fault in faults.items())
        builds = any(name in _OTHER_BUILDS for name in faults)
        yield Finding(
            about="packages",
            state="wrong",
            found=f"{len(faults)} of {len(needed)} won't do: {listed}",
            advice=install(part) + (" (on a Jetson, NVIDIA's builds)" if builds else ""),
        )
    else:
        yield Finding(about="packages", state="ok", found=f"all {len(needed)} of the extra {part}")
    for extra in asked.extras:
        if extra in PARTS or extra in _FOR_DEVELOPERS:
            continue
        missing = [name for name, lowest in asked.of(extra).items() if _fault(name, lowest)]
        yield Finding(
            about=f"extra {extra}",
            state="note" if missing else "ok",
            found=f"without {', '.join(missing)} (optional)" if missing else "installed",
            advice=install(extra) if missing else "",
        )


def install(extra: str) -> str:
    """The command that brings an extra, in a checkout with the versions that are known to work."""
    if (_CHECKOUT / "constraints.txt").is_file():
        return f"in {_CHECKOUT}: pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install -U '{PROJECT}[{extra}]'"


def _fault(name: str, lowest: str) -> str:
    """Why a package won't do; empty where it does."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        module = _OTHER_BUILDS.get(name)
        is_there = module is not None and importlib.util.find_spec(module) is not None
        return "" if is_there else "missing"
    if lowest and _numbers(version) < _numbers(lowest):
        return f"{version} is too old, needed is {lowest} or newer"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()
