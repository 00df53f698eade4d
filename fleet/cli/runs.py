"""`blackfleet runs`: what runs there are, as a table, side by side, or for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console

from fleet.cli.run_rows import RunRow, chosen, differing_settings, find_runs
from fleet.errors import OperatorError
from fleet.show.progress import format_bytes
from fleet.show.screen import Column, FittedTable

_NAME_CELLS = 40
"""Columns go before names are cut to less: runs are often told apart by their ends."""
_MOST_FAULTS = 5
_SIDE_BY_SIDE = 8
"""Most runs that are compared as columns."""
_SCORES = {
    "start": "initial_local_miou",
    "local": "mean_local_miou",
    "OOD": "mean_ood_miou",
    "fleet": "fleet_miou",
}
_BYTES = {"up": "uplink_bytes", "down": "downlink_bytes"}


def show_runs(
    folder: Path,
    conditions: Sequence[str],
    *,
    order: str | None,
    compare: bool,
    as_json: bool,
    console: Console,
) -> None:
    """List the runs that meet the conditions; with `compare` also what they differ in.

    Raises:
        OperatorError: there is no such folder or key, or there are too many to stand side by side.
    """
    every = find_runs(folder)
    rows = chosen(every, conditions, order)
    if as_json:
        content: dict[str, Any] = {"runs": [_plain(row) for row in rows]}
        if compare:
            content["differences"] = differing_settings(rows)
        print(json.dumps(content))
        return
    if compare and len(rows) > _SIDE_BY_SIDE:
        raise OperatorError(
            f"{len(rows)} runs are too many to stand side by side, at most {_SIDE_BY_SIDE} do: choose some "
            f"with --where, or take --json"
        )
    console.print(_list(rows, numbered=compare))
    hidden = f", {len(every) - len(rows)} others are not asked for" if len(rows) < len(every) else ""
    console.print(f"{len(rows)} {'run' if len(rows) == 1 else 'runs'} in {folder}{hidden}", soft_wrap=True)
    faults = [f"{row.name}: {row.fault}" for row in rows if row.fault]
    for fault in faults[:_MOST_FAULTS]:
        console.print(fault, soft_wrap=True)
    if len(faults) > _MOST_FAULTS:
        console.print(f"and {len(faults) - _MOST_FAULTS} more that can't be read in full, see --json")
    if compare:
        console.print(_side_by_side(rows))


def _plain(row: RunRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "folder": str(row.folder),
        "state": row.state,
        "fault": row.fault,
        "settings": row.settings,
        "result": row.result,
    }


def _list(rows: Sequence[RunRow], *, numbered: bool) -> FittedTable:
    shown = [name for name, key in _SCORES.items() if any(row.result.get(key) is not None for row in rows)]
    table = FittedTable(
        (
            Column("run"),
            Column("state", 1, left=True),
            Column("algorithm", 2, left=True),
            Column("dataset", 7, left=True),
            Column("vehicles", 8),
            Column("rounds", 9),
            Column("seed", 6),
            *(Column(name, 10 if name == "start" else 0) for name in shown),
            *(Column(name, 5) for name in _BYTES),
            Column("time", 4),
        ),
        box=box.SIMPLE_HEAD,
        name_cells=_NAME_CELLS,
    )
    for number, row in enumerate(rows, 1):
        keys = ("algorithm", "dataset.name", "vehicles", "rounds", "seed")
        table.add_row(
            f"{number}: {row.name}" if numbered else row.name,
            row.state,
            *(str(row.settings.get(key, "–")) for key in keys),
            *(_score(row.result.get(_SCORES[name])) for name in shown),
            *(_size(row.result.get(key)) for key in _BYTES.values()),
            _time(row.result.get("wall_s")),
        )
    return table


def _side_by_side(rows: Sequence[RunRow]) -> FittedTable:
    """A line for each setting that differs, and for each score; the runs by their numbers in the list."""
    table = FittedTable(
        (Column("what differs"), *(Column(str(number)) for number, _ in enumerate(rows, 1))),
        box=box.SIMPLE_HEAD,
        name_cells=_NAME_CELLS,
    )
    for key, values in differing_settings(rows).items():
        table.add_row(key, *(_text(value) for value in values))
    table.add_section()
    for name, key in _SCORES.items():
        if any(row.result.get(key) is not None for row in rows):
            table.add_row(f"mIoU {name}", *(_score(row.result.get(key)) for row in rows))
    for name, key in _BYTES.items():
        table.add_row(name, *(_size(row.result.get(key)) for row in rows))
    table.add_row("time", *(_time(row.result.get("wall_s")) for row in rows))
    classes = dict.fromkeys(name for row in rows for name in row.result.get("classes") or {})
    for name in classes:
        table.add_row(f"IoU {name}", *(_score((row.result.get("classes") or {}).get(name)) for row in rows))
    return table


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _size(value: int | None) -> str:
    return "–" if value is None else format_bytes(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
