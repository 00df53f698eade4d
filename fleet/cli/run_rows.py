"""Run folders as rows: which there are below a folder, which of them are wanted, and in what they differ."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cloud_server.run.results import RESULT_NAME
from datasets.yaml_files import YamlFault, load_yaml
from fleet.errors import OperatorError
from fleet.run.folder import LOCK_NAME, SCENARIO_NAME
from fleet.run.job import read_object
from fleet.run.resuming import flat, flatten
from fleet.scenario import load_scenario
from fleet.scenario_file import read_table
from protocol.errors import MENDABLE

DONE, RUNNING, STOPPED = "done", "running", "stopped"
_BULKY = ("vehicles", "confusion")
"""What of a result is not about all vehicles together in a few numbers."""
_OWN_TO_EACH = frozenset({"fleet"})
"""Settings in which runs differ by themselves."""
_CONDITION = re.compile(r"([^!<>=]+)(!=|>=|<=|=|>|<)(.*)", re.S)
_ORDERS = {
    ">": lambda found, wanted: found > wanted,
    "<": lambda found, wanted: found < wanted,
    ">=": lambda found, wanted: found >= wanted,
    "<=": lambda found, wanted: found <= wanted,
}


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run folder."""

    name: str
    """Its path below the folder that was looked through."""
    folder: Path
    state: str
    """`done`: it has a result; `running`: a launcher is at work in it; `stopped`: it can be resumed."""
    fault: str = ""
    """What of it can't be read; empty where all can."""
    settings: dict[str, Any] = field(default_factory=dict)
    """By dotted key."""
    result: dict[str, Any] = field(default_factory=dict)
    """What stands in its `result.json` for all vehicles together; empty before."""

    def value(self, key: str) -> Any:
        """What a condition or an order is about: `name`, `state`, a setting, or a number of the result."""
        if key in ("name", "state"):
            return getattr(self, key)
        return self.settings.get(key, self.result.get(key))

    @property
    def keys(self) -> set[str]:
        """What `value` knows something of."""
        scalars = {key for key, value in self.result.items() if not isinstance(value, dict | list)}
        return {"name", "state", *self.settings, *scalars}


def find_runs(folder: Path) -> list[RunRow]:
    """The runs in and below a folder, those of comparisons as well, by name.

    Raises:
        OperatorError: there is no such folder.
    """
    if not folder.is_dir():
        raise OperatorError(f"{folder} is no folder; name one with runs, such as runs/")
    locked = _locked_inodes()
    rows = (_row(path, folder, locked) for path in _run_folders(folder))
    return sorted(rows, key=lambda row: row.name)


def chosen(rows: Sequence[RunRow], conditions: Iterable[str], order: str | None = None) -> list[RunRow]:
    """The runs that meet every condition such as `algorithm=blackfed-*`, `vehicles>=8`, `state!=done`.

    `order`: a key; the highest numbers first, text by the alphabet, runs without it last.

    Raises:
        OperatorError: one is no condition, or names what no run has.
    """
    found = list(rows)
    for text in conditions:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise OperatorError(f"--where must be such as algorithm=fedavg or vehicles>=8, got {text!r}")
        key, sign, written = (part.strip() for part in match.groups())
        _check_key(key, rows, f"--where {text}")
        try:
            wanted = load_yaml(written.encode())
        except YamlFault as error:
            raise OperatorError(f"--where {text}: the value {error}") from error
        if sign in _ORDERS and not _is_number(wanted):
            raise OperatorError(f"--where {text}: {sign} is for numbers, got {written!r}")
        found = [row for row in found if _meets(row.value(key), sign, wanted)]
    if order is not None:
        _check_key(order, rows, f"--sort {order}")
        found.sort(key=lambda row: _rank(row.value(order)))
    return found


def differing_settings(rows: Sequence[RunRow]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, and what each run has; None where it has none."""
    keys = sorted({key for row in rows for key in row.settings} - _OWN_TO_EACH)
    columns = {key: [row.settings.get(key) for row in rows] for key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}


def _run_folders(folder: Path) -> Iterator[Path]:
    """A run's folder is not looked into; a comparison's has a scenario, too, and its runs below it."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    if (folder / SCENARIO_NAME).is_file() and not any((path / SCENARIO_NAME).is_file() for path in below):
        yield folder
        return
    for path in below:
        if os.access(path, os.R_OK | os.X_OK):
            yield from _run_folders(path)


def _row(folder: Path, root: Path, locked: frozenset[int]) -> RunRow:
    name = str(folder.relative_to(root)) if folder != root else folder.absolute().name
    settings: dict[str, Any] = {}
    result: dict[str, Any] = {}
    faults = []
    is_done = (folder / RESULT_NAME).is_file()
    try:
        settings = flatten(read_table(folder / SCENARIO_NAME))  # as written, where it is another version's
        settings = flat(load_scenario(folder / SCENARIO_NAME, {}))
    except MENDABLE as error:
        faults.append(str(error))
    try:
        result = read_object(folder / RESULT_NAME) if is_done else {}
    except MENDABLE as error:
        faults.append(str(error))
    for key in _BULKY:
        result.pop(key, None)
    lock = folder / LOCK_NAME
    is_held = lock.exists() and lock.stat().st_ino in locked
    state = RUNNING if is_held else DONE if is_done else STOPPED
    return RunRow(
        name=name, folder=folder, state=state, fault="; ".join(faults), settings=settings, result=result
    )


def _locked_inodes() -> frozenset[int]:
    """The files that processes hold a lock on, as Linux lists them: trying locks would disturb a launch."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return frozenset()
    found = (re.search(r" FLOCK .* [0-9a-f]+:[0-9a-f]+:(\d+) ", line) for line in lines)
    return frozenset(int(match.group(1)) for match in found if match)


def _check_key(key: str, rows: Sequence[RunRow], about: str) -> None:
    known = {key for row in rows for key in row.keys}
    if key not in known and rows:
        near = difflib.get_close_matches(key, known, n=1) or sorted(k for k in known if k.endswith(f".{key}"))
        hint = f"; did you mean {near[0]}?" if near else "; blackfleet runs --json shows what they have"
        raise OperatorError(f"{about}: no run here has {key!r}{hint}")


def _meets(found: Any, sign: str, wanted: Any) -> bool:
    if sign in _ORDERS:
        return _is_number(found) and bool(_ORDERS[sign](found, wanted))
    if isinstance(found, str) and wanted is not None:
        return fnmatchcase(found, str(wanted)) == (sign == "=")
    return bool(found == wanted) == (sign == "=")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rank(value: Any) -> tuple[int, float, str]:
    if _is_number(value):
        return (0, -value, "")
    return (1, 0.0, str(value)) if value is not None else (2, 0.0, "")
