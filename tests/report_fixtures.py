"""A small comparison folder made by code: two algorithms, two seeds, two vehicles, one of them in fog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from datasets.frame import FrameSource
from datasets.labels import CITYSCAPES, VOID
from evaluation.predictions import write_prediction
from evaluation.scores import ConfusionMatrix
from fleet.compare.milestones import find_milestones
from fleet.compare.tables import summarise
from fleet.frames.allocation import open_data
from fleet.frames.partition_record import record_shares, settle_shares
from fleet.report.data import read_training
from fleet.scenario import Scenario, save_scenario

ALGORITHMS = ("blackfed-v2", "split")
SEEDS = (0, 1)
VEHICLES = ("car-01", "car-02")


def build_comparison(folder: Path) -> Path:
    """Write the folder, and its frames beside it into `<name>-data`; returns the folder."""
    scenario = msgspec.convert(
        {
            "vehicles": len(VEHICLES),
            "rounds": 2,
            "image_size": "64x48",
            "cores": 1,
            "conditions": {"car-02": "fog:5"},
            "first_order": {"replay_steps": 1},
            "dataset": {"frames_per_sequence": 8, "root": str(folder.parent / f"{folder.name}-data")},
        },
        Scenario,
    )
    source = open_data(scenario, folder, Console(quiet=True))
    runs = []
    for algorithm in ALGORITHMS:
        for seed in SEEDS:
            run_folder = folder / f"{algorithm}-seed{seed}"
            run_folder.mkdir(parents=True)
            # The frames are the same for all seeds here, so that they are rendered once.
            named = msgspec.structs.replace(scenario, algorithm=algorithm)
            (run_folder / "scenario.yaml").write_text(save_scenario(named), encoding="utf-8")
            result = _run(run_folder, source, named, seed)
            runs.append({"algorithm": algorithm, "seed": seed, "folder": run_folder.name, "result": result})
    content = {
        "algorithms": list(ALGORITHMS),
        "seeds": list(SEEDS),
        "runs": runs,
        "summary": summarise(ALGORITHMS, runs),
        "milestones": find_milestones(
            ALGORITHMS,
            ALGORITHMS[0],
            {
                (run["algorithm"], run["seed"]): read_training(
                    folder / run["folder"] / "log.jsonl", len(VEHICLES)
                )
                for run in runs
            },
        ),
    }
    (folder / "compare.json").write_text(json.dumps(content))
    return folder


def _run(folder: Path, source: FrameSource, scenario: Scenario, seed: int) -> dict[str, Any]:
    """Predictions that are the labels with noise, the result that they give, and a curve."""
    shares = settle_shares(scenario, folder, source)
    record_shares(folder, source, shares)
    draw = np.random.default_rng([seed, len(scenario.algorithm)])
    refs = {ref.key: ref for ref in source.refs}
    matrix = ConfusionMatrix(CITYSCAPES)
    for vehicle, share in shares.items():
        for key in share.test:
            label_HW = source.load_label(refs[key])
            wrong_HW = draw.random(label_HW.shape) < 0.2
            prediction_HW = np.where(wrong_HW | (label_HW == VOID), 2, label_HW).astype(np.uint8)
            matrix.add(label_HW, prediction_HW)
            write_prediction(folder / "predictions" / vehicle, key, prediction_HW, CITYSCAPES)
    scores = [float(score) for score in draw.uniform(0.2, 0.6, 2 * len(VEHICLES))]
    vehicles = {
        vehicle: {
            "local_miou": scores[2 * number],
            "ood_miou": scores[2 * number + 1],
            "uplink_bytes": 60_000,
            "downlink_bytes": 700,
            "uplink_bytes_by_type": {"labels": 10_000, "upload": 50_000},
            "downlink_bytes_by_type": {"ack": 700},
            "queries": 12 + seed,
            "frames_train": 30,
        }
        for number, vehicle in enumerate(VEHICLES)
    }
    result = {
        "algorithm": scenario.algorithm,
        "dataset": "generated",
        "seed": seed,
        "rounds": scenario.rounds,
        "vehicles": vehicles,
        "mean_local_miou": float(np.mean(scores[::2])),
        "mean_ood_miou": float(np.mean(scores[1::2])),
        "initial_local_miou": 0.01,
        "classes": {
            name: None if np.isnan(iou) else float(iou)
            for name, iou in zip(CITYSCAPES.train_names, matrix.class_iou(), strict=True)
        },
        "confusion": matrix.counts[:, :-1].tolist(),
        "frames_seen": 1440,
        "steps": 180,
        "forward_equivalents": 50.0 * 30 * len(VEHICLES),
        "uplink_bytes": 120_000,
        "downlink_bytes": 1_400,
        "wall_s": 75.4 + seed,
    }
    (folder / "result.json").write_text(json.dumps(result))
    stages = range(1, 5)
    start = {"event": "training", "stage": 0, "uplink_bytes": 9_000, "downlink_bytes": 50, "wall_s": 6.0}
    lines = [
        {
            "event": "curve",
            "stage": stage,
            "round": (stage + 1) // 2,
            "frames_seen": 360 * stage,
            "loss": 2.0 / stage,
            "val_miou": 0.1 * stage + 0.02 * seed,
            "validated": len(VEHICLES),
            "uplink_bytes": 30_000 * stage,
            "downlink_bytes": 350 * stage,
            "wall_s": 18.0 * stage + seed,
        }
        for stage in stages
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [start, *lines]))
    return result
