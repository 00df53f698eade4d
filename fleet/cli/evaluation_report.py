"""What an evaluation found, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.box import HEAVY_HEAD
from rich.console import Console

from evaluation.official import OfficialComparison
from evaluation.scores import ScoreTable
from fleet.show.screen import Column, FittedTable


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The scores of one folder of predictions."""

    dataset: str
    """Name of the label space whose classes were scored."""
    frames: int
    """Predictions scored, each with its ground truth."""
    ground_truth_frames: int
    """Frames that have a ground truth, whether predicted or not."""
    summary: ScoreTable
    weighted: bool = False
    """Whether objects would be scored if every frame told them apart."""
    vehicles: dict[str, float | None] = field(default_factory=dict)
    """For a run folder: mIoU of each vehicle's own test frames, None where undefined."""
    official: OfficialComparison | None = None
    models: dict[str, EvaluationReport] = field(default_factory=dict)
    """For a run folder with a test split: of the model that serves each vehicle scored on it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of evaluation.json: strict JSON, None for undefined scores."""
        content: dict[str, Any] = {
            "dataset": self.dataset,
            "frames": self.frames,
            "ground_truth_frames": self.ground_truth_frames,
            **self.summary,
        }
        if self.vehicles:
            content["vehicles"] = self.vehicles
        if self.official is not None:
            content["official"] = self.official.to_dict()
        if self.models:
            content["models"] = {vehicle: model.to_dict() for vehicle, model in self.models.items()}
        return content


def print_report(report: EvaluationReport, console: Console) -> None:
    """Print the scores as tables for people, in percent."""
    summary, official = report.summary, report.official
    has_instances = bool(summary["instance_classes"])
    console.print(
        _table(
            "class",
            summary["classes"],
            summary["instance_classes"],
            summary["mean_iou"],
            summary["mean_iiou"],
        )
    )
    console.print(
        _table(
            "category",
            summary["categories"],
            summary["instance_categories"],
            summary["mean_category_iou"],
            summary["mean_category_iiou"],
        )
    )
    if report.vehicles:
        table = _scores_table("vehicle", "local mIoU %")
        for vehicle, score in report.vehicles.items():
            table.add_row(vehicle, _percent(score))
        console.print(table)
    if report.models:
        _print_models(report.models, console)
    unpredicted = report.ground_truth_frames - report.frames
    console.print(f"{report.frames} {report.dataset} frames, {summary['pixels']:,} labelled pixels")
    if not summary["pixels"]:
        console.print("all labels of these frames are void: there is no score", style="yellow")
    if unpredicted:
        console.print(f"without a prediction and not counted: {unpredicted} labelled frames")
    if not has_instances and report.weighted:
        console.print("no iIoU: not every frame has instance ids")
    if official is not None:
        means = f"mIoU {_percent(official.scores['mean_iou'])} %"
        if has_instances:
            means += f", iIoU {_percent(official.scores['mean_iiou'])} %"
        console.print(
            f"official evaluation: {means}; largest difference of a score {official.largest_difference:.1e}",
            style="green" if official.agrees else "bold red",
            soft_wrap=True,
        )


def _print_models(models: Mapping[str, EvaluationReport], console: Console) -> None:
    """On the test split of the whole fleet, model by model."""
    checked = any(model.official is not None for model in models.values())
    table = _scores_table("model", "fleet mIoU %", *(["official %", "difference"] if checked else []))
    for vehicle, model in models.items():
        official = model.official
        cells = (
            [_percent(official.scores["mean_iou"]), f"{official.largest_difference:.1e}"] if official else []
        )
        style = "" if official is None or official.agrees else "bold red"
        table.add_row(vehicle, _percent(model.summary["mean_iou"]), *cells, style=style)
    console.print(table)


def _table(
    what: str,
    scores: Mapping[str, float | None],
    instance_scores: Mapping[str, float | None],
    mean: float | None,
    instance_mean: float | None,
) -> FittedTable:
    table = _scores_table(what, "IoU %", *(["iIoU %"] if instance_scores else []))
    for name, score in scores.items():
        cells = [_percent(instance_scores.get(name))] if name in instance_scores else []
        table.add_row(name, _percent(score), *cells)
    table.add_section()
    table.add_row(
        "mean", _percent(mean), *([_percent(instance_mean)] if instance_scores else []), style="bold"
    )
    return table


def _scores_table(what: str, *columns: str) -> FittedTable:
    return FittedTable([Column(what), *(Column(name) for name in columns)], box=HEAVY_HEAD)


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}"
