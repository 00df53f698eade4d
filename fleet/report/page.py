"""Builds the page: every number as the text that people read, then one template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fleet import milestones
from fleet.progress import format_bytes
from fleet.report import charts
from fleet.report.data import ReportData, Spread, Summary, collect
from fleet.report.pictures import FramePictures, Gallery, gather_pictures
from fleet.scenario import Scenario
from protocol.atomic import write_bytes_atomic

REPORT_NAME = "report.html"
_NONE = "–"
_DATASET_TITLES = {"camvid": "CamVid", "cityscapes": "Cityscapes", "generated": "generated streets"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    best: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the cells to stress."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a class or of a share: `percent` of the whole width."""

    name: str
    percent: float
    text: str
    colour: str


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder or a comparison folder; returns the file.

    Raises:
        OperatorError: the folder is neither.
        OSError: it can't be written.
    """
    data = collect(folder)
    path = folder / REPORT_NAME
    write_bytes_atomic(path, render(data, gather_pictures(data)).encode())
    return path


def render(data: ReportData, gallery: Gallery) -> str:
    """The page as HTML: complete in itself, without script and without any address to load from."""
    environment = Environment(
        loader=PackageLoader("fleet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [data.summary(algorithm) for algorithm in data.algorithms]
    return environment.get_template("report.html.j2").render(
        title=_title(data),
        facts=_facts(data),
        algorithms=data.algorithms,
        colours=charts.colours(data.algorithms),
        problems=_problems(data, rows),
        hero=_hero(rows, gallery),
        glance=[Markup(charts.scores_chart(rows)), Markup(charts.traffic_chart(rows))],
        summary=_summary_table(rows, len(data.seeds)),
        milestones=_milestones_table(data),
        vehicle_scores=_vehicle_table(data),
        curves=_curves(data),
        silent=[row.algorithm for row in rows if row.uplink_bytes == 0 and row.downlink_bytes == 0],
        seeds=len(data.seeds),
        classes=_class_bars(data),
        absent=_absent_classes(data),
        confusions=_confusions(data),
        traffic=_traffic_table(data),
        traffic_details=[(name, _traffic_details(data, name)) for name in data.algorithms],
        frames=_frames_table(data),
        histograms=_histograms(data),
        gallery=gallery,
        gallery_total=len(data.partition),
        conditions={vehicle: _sight_text(data, vehicle) for vehicle in data.vehicles},
        palette=_palette(data),
        none=_NONE,
    )


def _title(data: ReportData) -> str:
    frames = _DATASET_TITLES.get(data.dataset, data.dataset)
    if data.is_comparison:
        return f"{_count(len(data.algorithms), 'algorithm')} on {frames}"
    return f"{data.algorithms[0]} on {frames}"


def _facts(data: ReportData) -> list[tuple[str, str]]:
    """The configuration that all runs share."""
    facts = [
        ("vehicles", str(len(data.vehicles))),
        ("seeds" if len(data.seeds) > 1 else "seed", ", ".join(map(str, data.seeds))),
    ]
    scenario = data.scenario
    if scenario is None:
        return [*facts, ("configuration", "no readable scenario.yaml")]
    learning = scenario.first_order
    facts += [
        ("rounds", str(scenario.rounds)),
        ("epochs a turn", f"{learning.epochs}, batches of {learning.batch_size}"),
        ("partition", scenario.dataset.partition),
        ("image size", scenario.image_size.replace("x", " × ")),
        ("encoder", ", ".join(dict.fromkeys([scenario.encoder.name, *scenario.encoders.values()]))),
        ("network", scenario.network.name),
        ("features", _feature_coding(scenario)),
        ("learning rate", f"{learning.rate:g}, {learning.schedule}"),
        ("loss", learning.loss),
    ]
    if scenario.uploads.train_frames is not None:
        facts.append(("uploads a turn", f"at most {scenario.uploads.train_frames} train frames"))
    if learning.replay_steps:
        steps = _count(learning.replay_steps, "step")
        facts.append(("replay", f"{steps} after each, from at most {_count(learning.cache_frames, 'frame')}"))
    if scenario.conditions:
        facts.append(("conditions", ", ".join(f"{k}: {v}" for k, v in scenario.conditions.items())))
    return facts


def _feature_coding(scenario: Scenario) -> str:
    if scenario.frame_bytes is None:
        return f"{scenario.bits} bits"
    return f"at most {scenario.frame_bytes:,} bytes a frame and {scenario.bits} bits"


def _problems(data: ReportData, rows: Sequence[Summary]) -> list[str]:
    """What should be there and is not, a sentence each."""
    problems = [
        f"{row.algorithm}: {row.finished} of {_count(row.planned, 'run')} finished; the numbers are of those."
        for row in rows
        if row.finished < row.planned
    ]
    without = [f"{run.algorithm} (seed {run.seed})" for run in data.runs if run.result and not run.points]
    if without:
        problems.append(f"No curve in the log of {', '.join(without)}.")
    return problems


def _hero(rows: Sequence[Summary], gallery: Gallery) -> tuple[str, str, FramePictures] | None:
    """(vehicle, algorithm, frame): the first vehicle's frame that the best algorithm sees best."""
    scored = [(row.local_miou.mean, row.algorithm) for row in rows if row.local_miou]
    for _, algorithm in sorted(scored, reverse=True):
        frames = [
            (picture.miou or 0.0, vehicle, frame)
            for vehicle, shown in gallery.vehicles.items()
            for frame in shown
            if (picture := frame.predictions[algorithm]) is not None
        ]
        if frames:
            _, vehicle, frame = max(frames, key=lambda entry: entry[0])
            return vehicle, algorithm, frame
    return None


def _summary_table(rows: Sequence[Summary], seeds: int) -> Table:
    over = ", mean ± standard deviation over seeds" if seeds > 1 else ""
    scores = [(row.local_miou, row.ood_miou) for row in rows]
    source = any(row.source_miou for row in rows)
    return Table(
        caption=f"mIoU on test frames, 0 to 1{over}: local = a vehicle's own frames, OOD = other vehicles'"
        + (", source = those of the domain that was pretrained on" if source else "")
        + ". Bytes, frames seen, queries and time are those of one run.",
        columns=(
            "algorithm",
            "local mIoU",
            "OOD mIoU",
            "at the start" if source else "untrained",
            *(("source before", "source after") if source else ()),
            "up",
            "down",
            "frames seen",
            "queries",
            "time",
        ),
        rows=[
            (
                row.algorithm,
                _spread(row.local_miou),
                _spread(row.ood_miou),
                _score(row.untrained_miou),
                *((_score(row.initial_source_miou), _spread(row.source_miou)) if source else ()),
                _bytes(row.uplink_bytes),
                _bytes(row.downlink_bytes),
                _whole(row.frames_seen),
                _whole(row.queries),
                _duration(row.wall_s),
            )
            for row in rows
        ],
        best=frozenset(
            (place, column + 1)
            for column in (0, 1)
            for place in _greatest([entry[column] for entry in scores])
        ),
    )


def _milestones_table(data: ReportData) -> Table | None:
    if (content := data.milestones) is None:
        return None
    rows, caption = milestones.rows(content), milestones.caption(content)
    return Table(caption=caption, columns=milestones.COLUMNS, rows=rows)


def _vehicle_table(data: ReportData) -> Table:
    """Local and OOD mIoU of every vehicle by algorithm."""
    rows = []
    for vehicle in data.vehicles:
        cells = [vehicle]
        for algorithm in data.algorithms:
            for key in ("local_miou", "ood_miou"):
                values = data.values(algorithm, _vehicle_value(vehicle, key))
                cells.append(_score(float(np.mean(values)) if values else None))
        rows.append(tuple(cells))
    return Table(
        caption="mIoU of each vehicle" + (", means over seeds" if len(data.seeds) > 1 else ""),
        columns=("vehicle", *(f"{name} {part}" for name in data.algorithms for part in ("local", "OOD"))),
        rows=rows,
    )


def _vehicle_value(vehicle: str, key: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda result: result["vehicles"][vehicle][key]


def _curves(data: ReportData) -> list[Markup]:
    drawn = [
        charts.curve_chart(data, y, x) for y in ("val_miou", "loss") for x in ("frames", "bytes", "time")
    ]
    return [Markup(chart) for chart in drawn if chart is not None]


def _class_bars(data: ReportData) -> list[tuple[str, str, list[Bar]]]:
    """(class, its colour, a bar for each algorithm) for classes that any algorithm has a score for."""
    colours = charts.colours(data.algorithms)
    cards = []
    for trained in data.label_space.trained_classes:
        scores = {name: data.mean(name, _class_value(trained.name)) for name in data.algorithms}
        if any(score is not None for score in scores.values()):
            bars = [
                Bar(name=name, percent=100 * (score or 0), text=_score(score), colour=colours[name])
                for name, score in scores.items()
            ]
            cards.append((trained.name, _css(trained.color_rgb), bars))
    return cards


def _class_value(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda result: result["classes"][name]


def _absent_classes(data: ReportData) -> list[str]:
    shown = {name for name, _, _ in _class_bars(data)}
    return [name for name in data.label_space.train_names if name not in shown]


def _confusions(data: ReportData) -> list[tuple[str, Markup | None]]:
    """(algorithm, heat map over the classes that occur); None where nothing was counted."""
    drawn: list[tuple[str, Markup | None]] = []
    for algorithm in data.algorithms:
        counts = data.confusion(algorithm)
        if counts is None or not counts.any():
            drawn.append((algorithm, None))
            continue
        occurs = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
        names = [data.label_space.train_names[index] for index in occurs]
        label = f"Confusion matrix of {algorithm}: share of each true class by predicted class"
        drawn.append(
            (algorithm, Markup(charts.confusion_chart(counts[np.ix_(occurs, occurs)], names, label)))
        )
    return drawn


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


def _traffic_table(data: ReportData) -> Table | None:
    """Bytes of all vehicles by message type; None where no message was counted."""
    columns = _message_columns(data, data.algorithms)
    if not columns:
        return None
    return Table(
        caption="Bytes of one run, all vehicles together, by message type: whole packets, ↑ up, ↓ down.",
        columns=("algorithm", *map(_arrow, columns)),
        rows=[
            (name, *(_bytes(data.mean(name, _message_value(*column, None))) for column in columns))
            for name in data.algorithms
        ],
    )


def _traffic_details(data: ReportData, algorithm: str) -> Table | None:
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
                    _bytes(data.mean(algorithm, _vehicle_value(vehicle, f"{way}link_bytes")))
                    for way in ("up", "down")
                ),
                *(_bytes(data.mean(algorithm, _message_value(*column, vehicle))) for column in columns),
            )
            for vehicle in data.vehicles
        ],
    )


def _arrow(column: tuple[str, str]) -> str:
    way, name = column
    return f"{'↑' if way == 'up' else '↓'} {name}"


def _frames_table(data: ReportData) -> Table | None:
    if not data.partition:
        return None
    counts = [entry.get("frames") or {} for entry in data.partition.values()]
    source = ("source",) if any("source" in count for count in counts) else ()
    return Table(
        caption="Frames of each vehicle; OOD frames are test frames of other vehicles"
        + (", source frames of the domain that was pretrained on." if source else "."),
        columns=("vehicle", "sees", "encoder", "train", "val", "test", "OOD", *source),
        rows=[
            (
                vehicle,
                _sight_text(data, vehicle),
                str(entry.get("encoder") or _NONE),
                *(
                    _whole((entry.get("frames") or {}).get(split))
                    for split in ("train", "val", "test", "ood", *source)
                ),
            )
            for vehicle, entry in data.partition.items()
        ],
    )


def _histograms(data: ReportData) -> list[tuple[str, list[Bar]]]:
    """(vehicle, shares of its labelled pixels by class); vehicles without counted pixels are left out."""
    drawn = []
    for vehicle, entry in data.partition.items():
        pixels = entry.get("class_pixels") or {}
        total = sum(pixels.values())
        if total:
            bars = [
                Bar(
                    name=trained.name,
                    percent=100 * pixels.get(trained.name, 0) / total,
                    text=f"{100 * pixels.get(trained.name, 0) / total:.1f} %",
                    colour=_css(trained.color_rgb),
                )
                for trained in data.label_space.trained_classes
            ]
            drawn.append((vehicle, [bar for bar in bars if bar.percent > 0]))
    return drawn


def _sight_text(data: ReportData, vehicle: str) -> str:
    condition = data.partition.get(vehicle, {}).get("condition")
    return str(condition).replace("_", " ").replace(":", " ") if condition else "clear"


def _palette(data: ReportData) -> dict[str, str]:
    return {trained.name: _css(trained.color_rgb) for trained in data.label_space.trained_classes}


def _css(color_rgb: tuple[int, int, int]) -> str:
    return f"#{bytes(color_rgb).hex()}"


def _greatest(values: Sequence[Spread | None]) -> list[int]:
    """Where the greatest mean is, if there are at least two to choose from."""
    means = {place: spread.mean for place, spread in enumerate(values) if spread}
    return [max(means, key=lambda place: means[place])] if len(means) > 1 else []


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return _NONE
    return f"{spread.mean:.3f} ± {spread.deviation:.3f}" if spread.deviation else f"{spread.mean:.3f}"


def _score(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _bytes(value: float | None) -> str:
    return _NONE if value is None else format_bytes(value)


def _whole(value: float | None) -> str:
    return _NONE if value is None else f"{round(value):,}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
