"""Builds the page: every number as the text that people read, then one template."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fleet.compare.failures import failures
from fleet.report import charts, tables, text
from fleet.report.audited import shown_audit
from fleet.report.data import ReportData, Summary, collect, dataset_entry
from fleet.report.gallery import FramePictures, Gallery, gather_pictures
from fleet.scenario import Scenario
from fleet.show.label_makers import label_makers
from fleet.watch.replay import write_replay
from protocol.atomic import write_bytes_atomic

REPORT_NAME = "report.html"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a class or of a share: `percent` of the whole width."""

    name: str
    percent: float
    text: str
    colour: str


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder or a comparison folder; returns the file.

    A replay of each run is written beside its log, `replay.html`, and linked.

    Raises:
        OperatorError: the folder is neither.
        OSError: it can't be written.
    """
    data = collect(folder)
    path = folder / REPORT_NAME
    write_bytes_atomic(path, render(data, gather_pictures(data), _replays(data)).encode())
    return path


def _replays(data: ReportData) -> list[tuple[str, str]]:
    """(run, address seen from the report) of each replay, which is written."""
    written = [(run, write_replay(run.folder)) for run in data.runs]
    return [
        (
            f"{run.algorithm}, seed {run.seed}" if data.is_comparison else "Replay of the run",
            quote(os.path.relpath(path, data.folder)),
        )
        for run, path in written
        if path is not None
    ]


def render(data: ReportData, gallery: Gallery, replays: Sequence[tuple[str, str]] = ()) -> str:
    """The page as HTML: complete in itself, without script and without any address to load from.

    `replays` are the runs that it links to: (name, relative address).
    """
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
        summary=tables.summary_table(rows, len(data.seeds)),
        milestones=tables.milestones_table(data),
        equal=tables.equal_table(data),
        vehicle_scores=tables.vehicle_table(data),
        curves=_curves(data),
        silent=[row.algorithm for row in rows if row.uplink_bytes == 0 and row.downlink_bytes == 0],
        seeds=len(data.seeds),
        classes=_class_bars(data),
        absent=_absent_classes(data),
        confusions=_confusions(data),
        traffic=tables.traffic_table(data),
        traffic_details=[(name, tables.traffic_details(data, name)) for name in data.algorithms],
        frames=tables.frames_table(data),
        histograms=_histograms(data),
        audit=None if data.is_comparison else shown_audit(data.folder),
        gallery=gallery,
        gallery_total=len(data.partition),
        conditions={vehicle: tables.sight_text(data, vehicle) for vehicle in data.vehicles},
        palette=_palette(data),
        none=text.NONE,
        replays=replays,
    )


def _title(data: ReportData) -> str:
    entry = dataset_entry(data.dataset)
    frames = entry.title if entry else data.dataset
    if data.is_comparison:
        return f"{text.count(len(data.algorithms), 'algorithm')} on {frames}"
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
        *([("test split", scenario.dataset.test_split)] if scenario.dataset.test_split else []),
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
        steps = text.count(learning.replay_steps, "step")
        facts.append(
            ("replay", f"{steps} after each, from at most {text.count(learning.cache_frames, 'frame')}")
        )
    if scenario.conditions:
        facts.append(("conditions", ", ".join(f"{k}: {v}" for k, v in scenario.conditions.items())))
    return facts


def _feature_coding(scenario: Scenario) -> str:
    if scenario.coding.frame_bytes is None:
        return f"{scenario.coding.bits} bits"
    return f"at most {scenario.coding.frame_bytes:,} bytes a frame and {scenario.coding.bits} bits"


def _problems(data: ReportData, rows: Sequence[Summary]) -> list[str]:
    """What should be there and is not, a sentence each."""
    problems = [
        f"{row.algorithm}: {row.finished} of {text.count(row.planned, 'run')} finished; "
        f"the numbers are of those."
        for row in rows
        if row.finished < row.planned
    ]
    without = [f"{run.algorithm} (seed {run.seed})" for run in data.runs if run.result and not run.points]
    if without:
        problems.append(f"No curve in the log of {', '.join(without)}.")
    problems += failures((run.algorithm, run.seed, run.result) for run in data.runs if run.result)
    told = [
        f"{run.algorithm} (seed {run.seed}): {text}."
        for run in data.runs
        for text in label_makers(run.result)
    ]
    return problems + told


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
                Bar(name=name, percent=100 * (score or 0), text=text.score(score), colour=colours[name])
                for name, score in scores.items()
            ]
            cards.append((trained.name, text.css(trained.color_rgb), bars))
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
                    colour=text.css(trained.color_rgb),
                )
                for trained in data.label_space.trained_classes
            ]
            drawn.append((vehicle, [bar for bar in bars if bar.percent > 0]))
    return drawn


def _palette(data: ReportData) -> dict[str, str]:
    return {trained.name: text.css(trained.color_rgb) for trained in data.label_space.trained_classes}
