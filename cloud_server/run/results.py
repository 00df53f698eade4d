"""`result.json`: what a run has shown, in one file for people and programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from cloud_server.algorithms.base import Scores, TrainingProgress
from cloud_server.algorithms.table import algorithm_row
from cloud_server.config import CloudConfig
from cloud_server.desk.declaration import Declaration
from cloud_server.desk.registry import Registry
from cloud_server.run.combinations import settled_adaptation
from datasets.label_files import NONE, PSEUDO
from datasets.labels import LabelSpace
from evaluation.scores import ConfusionMatrix

RESULT_NAME = "result.json"
"""In a run folder: that it is there means that the run is complete."""
RESULT_TOTALS = (
    "mean_local_miou",
    "mean_ood_miou",
    "initial_local_miou",
    "fleet_miou",
    "uplink_bytes",
    "downlink_bytes",
)
"""Of its keys, those that say in short how the run has ended."""


def assemble(
    config: CloudConfig,
    scores: Scores,
    progress: TrainingProgress,
    registry: Registry,
    label_space: LabelSpace,
    wall_s: float,
) -> dict[str, Any]:
    """The content of `result.json`: mIoU as fractions, bytes of whole PUBLISH packets, None = undefined.

    `confusion` counts pixels of all local test frames: row = ground truth, column = predicted class.
    Means and `confusion` are of the vehicles that have not failed. `fleet_…`: over the whole test split, of
    the vehicles whose models were scored on it.
    """
    vehicles, failed = {}, registry.failed
    for vehicle in config.vehicles:
        record = registry.vehicles[vehicle]
        frames = record.declared.frames if record.declared else {}
        vehicles[vehicle] = {
            "subspace": (settled_adaptation(config, record.declared).subspace if record.declared else None),
            "provider": record.hello.provider or None if record.hello else None,
            "labels": _labels_used(record.declared, config.adaptation.objective) if record.declared else {},
            "local_miou": _miou(scores.local.get(vehicle)),
            "ood_miou": _miou(scores.ood.get(vehicle)),
            "initial_local_miou": _miou(scores.initial.get(vehicle)),
            "fleet_miou": _miou(scores.fleet.get(vehicle)),
            "fleet_classes": _class_iou(scores.fleet.get(vehicle)),
            "source_miou": _miou(scores.source.get(vehicle)),
            "initial_source_miou": _miou(scores.initial_source.get(vehicle)),
            "frames_train": frames.get("train", 0),
            "frames_val": frames.get("val", 0),
            "frames_test": frames.get("test", 0),
            "frames_ood": frames.get("ood", 0),
            "frames_source": frames.get("source", 0),
            "frames_fleet": frames.get("fleet", 0),
            "uplink_bytes": sum(record.uplink.values()),
            "downlink_bytes": sum(record.downlink.values()),
            "uplink_bytes_by_type": dict(sorted(record.uplink.items())),
            "downlink_bytes_by_type": dict(sorted(record.downlink.items())),
            "fleet_uplink_bytes": record.fleet_bytes["up"],
            "fleet_downlink_bytes": record.fleet_bytes["down"],
            "repeated_bytes": record.repeated_bytes,
            "queries": record.queries,
            "forwards": record.work.forwards,
            "ways_back": record.work.ways_back,
            "forward_equivalents": record.work.forward_equivalents,
            "answers_per_frame": record.answers_per_frame,
            "answers": record.told.answers,
            "rejects": record.rejects,
            "served_frames": record.served.frames,
            "served_uplink_bytes": record.served.uplink_bytes,
            "served_downlink_bytes": record.served.downlink_bytes,
            "left_out": progress.left_out.get(vehicle, 0),
            "taken_back": progress.taken_back.get(vehicle, 0),
            "doubted": progress.doubted.get(vehicle, 0),
            "uploads": msgspec.to_builtins(record.uploads),
            "versions": msgspec.to_builtins(record.versions),
        }
    everything = ConfusionMatrix(label_space)
    for vehicle, matrix in scores.local.items():
        if vehicle not in failed:
            everything.merge(matrix)
    lasting = {vehicle: entry for vehicle, entry in vehicles.items() if vehicle not in failed}
    return {
        "algorithm": config.algorithm,
        "dataset": config.dataset,
        "seed": config.seed,
        "rounds": config.rounds,
        "objective": config.adaptation.objective,
        "scored_by": "vehicles" if algorithm_row(config.algorithm).needs.whole_network else "cloud",
        "vehicles": vehicles,
        "failed": failed,
        "strangers": registry.strangers,
        "mean_local_miou": _mean(lasting, "local_miou"),
        "mean_ood_miou": _mean(lasting, "ood_miou"),
        "initial_local_miou": _mean(lasting, "initial_local_miou"),
        **_fleet_scores(lasting),
        "mean_source_miou": _mean(lasting, "source_miou"),
        "initial_source_miou": _mean(lasting, "initial_source_miou"),
        "classes": _class_iou(everything),
        "confusion": everything.counts[:, :-1].tolist(),
        "frames_seen": progress.frames_seen,
        "steps": progress.steps,
        "forward_equivalents": total_work(registry),
        "uplink_bytes": sum(entry["uplink_bytes"] for entry in vehicles.values()),
        "downlink_bytes": sum(entry["downlink_bytes"] for entry in vehicles.values()),
        "fleet_uplink_bytes": sum(entry["fleet_uplink_bytes"] for entry in vehicles.values()),
        "fleet_downlink_bytes": sum(entry["fleet_downlink_bytes"] for entry in vehicles.values()),
        "wall_s": round(wall_s, 3),
    }


def _labels_used(declared: Declaration, objective: str) -> dict[str, dict[str, int]]:
    """By split: number of frames by whose labels were used, of training those that the objective takes."""
    used = dict(declared.labels)
    if objective != "labels":
        used["train"] = {PSEUDO if objective == "pseudo-labels" else NONE: declared.frames.get("train", 0)}
    return used


def total_work(registry: Registry) -> float | None:
    """Forward equivalents of all vehicles in turns of learning; None where one has not said."""
    known = [record.work.forward_equivalents for record in registry.vehicles.values()]
    return None if None in known else float(sum(value for value in known if value is not None))


def _miou(matrix: ConfusionMatrix | None) -> float | None:
    return None if matrix is None or matrix.pixels == 0 else _finite(matrix.mean_iou())


def _class_iou(matrix: ConfusionMatrix | None) -> dict[str, float | None] | None:
    if matrix is None:
        return None
    names, iou_K = matrix.label_space.train_names, matrix.class_iou().tolist()
    return {name: _finite(iou) for name, iou in zip(names, iou_K, strict=True)}


def _fleet_scores(vehicles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Over the vehicles scored on the test split: mean, sample standard deviation, each class's mean."""
    scored = [entry for entry in vehicles.values() if entry["fleet_miou"] is not None]
    mious = [entry["fleet_miou"] for entry in scored]
    classes = {
        name: [entry["fleet_classes"][name] for entry in scored if entry["fleet_classes"][name] is not None]
        for name in (scored[0]["fleet_classes"] if scored else ())
    }
    return {
        "fleet_miou": float(np.mean(mious)) if mious else None,
        "fleet_miou_std": (float(np.std(mious, ddof=1)) if len(mious) > 1 else 0.0) if mious else None,
        "fleet_classes": {name: float(np.mean(ious)) if ious else None for name, ious in classes.items()},
        "fleet_vehicles": len(mious),
    }


def _mean(vehicles: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    values = [entry[key] for entry in vehicles.values() if entry[key] is not None]
    return float(np.mean(values)) if values else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
