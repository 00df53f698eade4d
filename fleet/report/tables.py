"""The tables of a report, every cell as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fleet.compare import equal, milestones
from fleet.report import text
from fleet.report.data import ReportData, Spread, Summary


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    best: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the cells to stress."""


def summary_table(rows: Sequence[Summary], seeds: int) -> Table:
    over = ", mean ± standard deviation over seeds" if seeds > 1 else ""
    fleet = any(row.fleet_miou for row in rows)
    scores = [(row.local_miou, row.ood_miou, *((row.fleet_miou,) if fleet else ())) for row in rows]
    source = any(row.source_miou for row in rows)
    return Table(
        caption=f"mIoU on test frames, 0 to 1{over}: local = a vehicle's own frames, OOD = other vehicles'"
        + (", fleet = the whole test split, mean over the vehicles scored on it" if fleet else "")
        + (", source = those of the domain that was pretrained on" if source else "")
        + ". Bytes, steps, frames seen, queries and time are those of one run; vehicle compute is in forward "
        "passes of its encoder for each train frame.",
        columns=(
            "algorithm",
            "local mIoU",
            "OOD mIoU",
            *(("fleet mIoU",) if fleet else ()),
            "at the start" if source else "untrained",
            *(("source before", "source after") if source else ()),
            "up",
            "down",
            "vehicle compute",
            "network steps",
            "frames seen",
            "queries",
            "time",
        ),
        rows=[
            (
                row.algorithm,
                text.spread(row.local_miou),
                text.spread(row.ood_miou),
                *((text.spread(row.fleet_miou),) if fleet else ()),
                text.score(row.untrained_miou),
                *((text.score(row.initial_source_miou), text.spread(row.source_miou)) if source else ()),
                text.byte_count(row.uplink_bytes),
                text.byte_count(row.downlink_bytes),
                text.NONE if row.forwards_per_frame is None else f"{row.forwards_per_frame:,.1f}",
                text.whole(row.steps),
                text.whole(row.frames_seen),
                text.whole(row.queries),
                text.duration(row.wall_s),
            )
            for row in rows
        ],
        best=frozenset(
            (place, column + 1)
            for column in range(3 if fleet else 2)
            for place in _greatest([entry[column] for entry in scores])
        ),
    )


def equal_table(data: ReportData) -> Table | None:
    if (content := data.equal) is None:
        return None
    return Table(caption=equal.caption(content), columns=equal.COLUMNS, rows=equal.rows(content))


def milestones_table(data: ReportData) -> Table | None:
    if (content := data.milestones) is None:
        return None
    rows, caption = milestones.rows(content), milestones.caption(content)
    return Table(caption=caption, columns=milestones.COLUMNS, rows=rows)


def vehicle_table(data: ReportData) -> Table:
    """Local and OOD mIoU of every vehicle by algorithm, and on the whole test split if there is one."""
    fleet = any(run.result.get("fleet_miou") is not None for run in data.runs)
    scores = {"local_miou": "local", "ood_miou": "OOD", **({"fleet_miou": "fleet"} if fleet else {})}
    rows = []
    for vehicle in data.vehicles:
        cells = [vehicle]
        for algorithm in data.algorithms:
            for key in scores:
                values = data.values(algorithm, _vehicle_value(vehicle, key))
                cells.append(text.score(float(np.mean(values)) if values else None))
        rows.append(tuple(cells))
    return Table(
        caption="mIoU of each vehicle" + (", means over seeds" if len(data.seeds) > 1 else ""),
        columns=("vehicle", *(f"{name} {part}" for name in data.algorithms for part in scores.values())),
        rows=rows,
    )


def _vehicle_value(vehicle: str, key: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda result: result["vehicles"][vehicle][key]


def _message_columns(data: ReportData, algorithms: Sequence[str]) -> list[tuple[str, str]]:
    """(`up` or `down`, message type) of every type that the runs of these algorithms have counted."""
    entries = [
        entry
        for algorithm in algorithms
        for run in data.runs_of(algorithm)
        for entry in (run.result.get("vehicles") or {}).values()
    ]
    return [
        (way, name)
        for way in ("up", "down")
        for name in sorted(
            {name for entry in entries for name in entry.get(f"{way}link_bytes_by_type") or {}}
        )
    ]


def _message_value(way: str, name: str, vehicle: str | None) -> Callable[[Mapping[str, Any]], Any]:
    """Reads the bytes of one message type, of one vehicle or (None) of all; None where there were none."""

    def read(result: Mapping[str, Any]) -> float | None:
        entries = result["vehicles"].values() if vehicle is None else [result["vehicles"][vehicle]]
        return sum(entry[f"{way}link_bytes_by_type"].get(name, 0) for entry in entries) or None

    return read


def traffic_table(data: ReportData) -> Table | None:
    """Bytes of all vehicles by message type; None where no message was counted."""
    columns = _message_columns(data, data.algorithms)
    if not columns:
        return None
    return Table(
        caption="Bytes of one run, all vehicles together, by message type: whole packets, ↑ up, ↓ down.",
        columns=("algorithm", *map(_arrow, columns)),
        rows=[
            (name, *(text.byte_count(data.mean(name, _message_value(*column, None))) for column in columns))
            for name in data.algorithms
        ],
    )


def traffic_details(data: ReportData, algorithm: str) -> Table | None:
    """Bytes of each vehicle by message type; None where no message was counted."""
    columns = _message_columns(data, [algorithm])
    if not columns:
        return None
    return Table(
        caption=f"{algorithm}: bytes of each vehicle by message type",
        columns=("vehicle", "↑ all", "↓ all", *map(_arrow, columns)),
        rows=[
            (
                vehicle,
                *(
                    text.byte_count(data.mean(algorithm, _vehicle_value(vehicle, f"{way}link_bytes")))
                    for way in ("up", "down")
                ),
                *(
                    text.byte_count(data.mean(algorithm, _message_value(*column, vehicle)))
                    for column in columns
                ),
            )
            for vehicle in data.vehicles
        ],
    )


def _arrow(column: tuple[str, str]) -> str:
    way, name = column
    return f"{'↑' if way == 'up' else '↓'} {name}"


def frames_table(data: ReportData) -> Table | None:
    if not data.partition:
        return None
    counts = [entry.get("frames") or {} for entry in data.partition.values()]
    source = tuple(split for split in ("source", "fleet") if any(split in count for count in counts))
    return Table(
        caption="Frames of each vehicle; OOD frames are test frames of other vehicles"
        + (", source frames of the domain that was pretrained on" if "source" in source else "")
        + (", fleet the test split of the whole fleet" if "fleet" in source else "")
        + ".",
        columns=("vehicle", "sees", "encoder", "train", "val", "test", "OOD", *source),
        rows=[
            (
                vehicle,
                sight_text(data, vehicle),
                str(entry.get("encoder") or text.NONE),
                *(
                    text.whole((entry.get("frames") or {}).get(split))
                    for split in ("train", "val", "test", "ood", *source)
                ),
            )
            for vehicle, entry in data.partition.items()
        ],
    )


def sight_text(data: ReportData, vehicle: str) -> str:
    condition = data.partition.get(vehicle, {}).get("condition")
    return str(condition).replace("_", " ").replace(":", " ") if condition else "clear"


def _greatest(values: Sequence[Spread | None]) -> list[int]:
    """Where the greatest mean is, if there are at least two to choose from."""
    means = {place: spread.mean for place, spread in enumerate(values) if spread}
    return [max(means, key=lambda place: means[place])] if len(means) > 1 else []
