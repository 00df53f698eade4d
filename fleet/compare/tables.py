"""What a comparison shows: means and deviations over seeds, as data, as Markdown and as a table on screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD

from fleet.compare import equal, milestones
from fleet.compare.failures import failures
from fleet.compare.spread import sample_deviation
from fleet.show.label_makers import label_makers
from fleet.show.progress import format_bytes
from fleet.show.screen import Column, FittedTable

COMPARISON_NAME = "compare.json"
_COLUMNS = (
    *("algorithm", "local mIoU", "OOD mIoU", "up", "down"),
    *("vehicle compute", "network steps", "frames seen", "queries", "time"),
)

_SCORES = (
    *("algorithm", "local mIoU", "OOD mIoU", "fleet mIoU", "final val mIoU", "reached by"),
    *("val mIoU at the budget", "spent"),
)
"""Columns that no terminal is too narrow for."""
_FLEET_COLUMN = "fleet mIoU"
_SOURCE_COLUMNS = ("source before", "source after")
_SOURCE_SCORES = ("initial_source_miou", "source_miou")


def summarise(algorithms: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry an algorithm, over the seeds of its runs (`algorithm` and `result` of each).

    mIoU: mean and sample standard deviation, which is 0 for a single seed; both None where no run has a
    value. Bytes, frames, queries and seconds: means.
    """
    return [
        _summary(algorithm, [run["result"] for run in runs if run["algorithm"] == algorithm])
        for algorithm in algorithms
    ]


def markdown(content: Mapping[str, Any]) -> str:
    """`compare.json`'s content as two Markdown tables: all algorithms, then vehicle by vehicle."""
    first = content["runs"][0]["result"]
    seeds = ", ".join(map(str, content["seeds"]))
    spread = ", mean ± standard deviation over them" if len(content["seeds"]) > 1 else ""
    source, fleet = _has(content, "source_miou"), _has(content, "fleet_miou")
    lines = [
        "# Comparison",
        "",
        f"{first['dataset']}, {len(first['vehicles'])} vehicles, {first['rounds']} rounds, seeds: {seeds}. "
        f"mIoU on test frames{spread}: local = a vehicle's own, OOD = other vehicles'"
        + (", fleet = the whole test split, mean over the vehicles scored on it" if fleet else "")
        + (", source = those of the domain that was pretrained on" if source else "")
        + ". Bytes, steps, frames seen, queries and time are those of one run; vehicle compute is in forward "
        "passes of its encoder for each train frame.",
        "",
        *_markdown_rows(
            _columns(fleet, source), (_row(entry, fleet, source) for entry in content["summary"])
        ),
        *(f"\n{sentence}" for sentence in _failures(content)),
        "",
        f"## Up to the quality of {content['milestones']['reference']}",
        "",
        milestones.caption(content["milestones"]),
        "",
        *_markdown_rows(milestones.COLUMNS, milestones.rows(content["milestones"])),
        "",
        *_equal_lines(content),
        "## Vehicle by vehicle",
        "",
        *_markdown_rows(
            ("vehicle", *(f"{name} {part}" for name in content["algorithms"] for part in ("local", "OOD"))),
            (
                [
                    vehicle,
                    *(cell for entry in content["summary"] for cell in _cells(entry["vehicles"][vehicle])),
                ]
                for vehicle in first["vehicles"]
            ),
        ),
    ]
    return "\n".join(lines) + "\n"


def comparison_tables(content: Mapping[str, Any]) -> tuple[FittedTable, ...]:
    """The tables that a comparison ends with: the summary, the milestones, and any cut at equal budgets."""
    first = content["runs"][0]["result"]
    source, fleet = _has(content, "source_miou"), _has(content, "fleet_miou")
    summary = _table(
        f"{first['dataset']}, {len(first['vehicles'])} vehicles, {first['rounds']} rounds, "
        f"seeds: {', '.join(map(str, content['seeds']))}; mIoU on test frames",
        _columns(fleet, source),
        (_row(entry, fleet, source) for entry in content["summary"]),
    )
    summary.caption = "\n".join(_failures(content))
    reference = content["milestones"]["reference"]
    reached = _table(
        f"training alone, up to the final mean validation mIoU of {reference}",
        milestones.COLUMNS,
        milestones.rows(content["milestones"]),
    )
    if (cut := content.get("equal")) is None:
        return summary, reached
    return summary, reached, _table(equal.caption(cut), equal.COLUMNS, equal.rows(cut))


def _equal_lines(content: Mapping[str, Any]) -> list[str]:
    if (cut := content.get("equal")) is None:
        return []
    lines = [f"## At equal {cut['by']}", "", equal.caption(cut), ""]
    return lines + ([*_markdown_rows(equal.COLUMNS, equal.rows(cut)), ""] if cut["algorithms"] else [])


def _failures(content: Mapping[str, Any]) -> list[str]:
    runs = content["runs"]
    return [
        *failures((run["algorithm"], run["seed"], run["result"]) for run in runs),
        *(
            f"{run['algorithm']} (seed {run['seed']}): {told}"
            for run in runs
            for told in label_makers(run["result"])
        ),
    ]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> FittedTable:
    lesser = [name for name in columns if name not in _SCORES]
    table = FittedTable(
        [Column(name, 0 if name in _SCORES else 1 + lesser.index(name)) for name in columns],
        title=title,
        box=SIMPLE_HEAD,
    )
    for row in rows:
        table.add_row(*row)
    return table


def _summary(algorithm: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        **_statistics("local_miou", [result["mean_local_miou"] for result in results]),
        **_statistics("ood_miou", [result["mean_ood_miou"] for result in results]),
        **_statistics("fleet_miou", [result.get("fleet_miou") for result in results]),
        **_statistics("source_miou", [result.get("mean_source_miou") for result in results]),
        **_statistics("initial_source_miou", [result.get("initial_source_miou") for result in results]),
        **{
            key: round(float(np.mean([result[key] for result in results])))
            for key in ("uplink_bytes", "downlink_bytes", "frames_seen")
        },
        "forwards_per_frame": _known_mean([forwards_per_frame(result) for result in results]),
        "steps": _known_mean([result.get("steps") for result in results]),
        "queries": round(
            float(np.mean([sum(v["queries"] for v in result["vehicles"].values()) for result in results]))
        ),
        "wall_s": round(float(np.mean([result["wall_s"] for result in results])), 3),
        "vehicles": {
            vehicle: {
                **_statistics(
                    "local_miou", [result["vehicles"][vehicle]["local_miou"] for result in results]
                ),
                **_statistics("ood_miou", [result["vehicles"][vehicle]["ood_miou"] for result in results]),
            }
            for vehicle in results[0]["vehicles"]
        },
    }


def forwards_per_frame(result: Mapping[str, Any]) -> float | None:
    """What the vehicles have computed in turns of learning, in forward passes for each train frame."""
    frames = sum(vehicle.get("frames_train", 0) for vehicle in result["vehicles"].values())
    total = result.get("forward_equivalents")
    return total / frames if total is not None and frames else None


def _known_mean(values: Sequence[float | None]) -> float | None:
    """None where a run does not say."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _statistics(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {f"{name}_mean": None, f"{name}_std": None}
    return {f"{name}_mean": float(np.mean(known)), f"{name}_std": sample_deviation(known)}


def _has(content: Mapping[str, Any], score: str) -> bool:
    """Whether `source_miou`, of runs from a pretrained start, or `fleet_miou`, of runs with a test split, was
    measured."""
    return any(entry.get(f"{score}_mean") is not None for entry in content["summary"])


def _columns(fleet: bool, source: bool) -> tuple[str, ...]:
    rare = ((_FLEET_COLUMN,) if fleet else ()) + (_SOURCE_COLUMNS if source else ())
    return (*_COLUMNS[:3], *rare, *_COLUMNS[3:])


def _row(entry: Mapping[str, Any], fleet: bool, source: bool) -> list[str]:
    seconds = round(entry["wall_s"])
    return [
        entry["algorithm"],
        *_cells(entry),
        *((_spread(entry["fleet_miou_mean"], entry["fleet_miou_std"]),) if fleet else ()),
        *(_spread(entry[f"{name}_mean"], entry[f"{name}_std"]) for name in _SOURCE_SCORES if source),
        format_bytes(entry["uplink_bytes"]),
        format_bytes(entry["downlink_bytes"]),
        _amount(entry["forwards_per_frame"], 1),
        _amount(entry["steps"], 0),
        f"{entry['frames_seen']:,}",
        f"{entry['queries']:,}",
        f"{seconds // 60}:{seconds % 60:02d}",
    ]


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [_spread(entry[f"{name}_mean"], entry[f"{name}_std"]) for name in ("local_miou", "ood_miou")]


def _amount(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _spread(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.3f} ± {deviation:.3f}" if deviation else f"{mean:.3f}"


def _markdown_rows(columns: Sequence[str], rows: Any) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" + " ---: |" * (len(columns) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
