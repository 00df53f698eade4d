"""CamVid by its own split: vehicles divide `train`, and what they have learnt is scored on all of `val`.

`python -m benchmarks.camvid_split` runs three vehicles, one for each sequence of `train`, with a pretrained
encoder, by every algorithm in turn: the same frames, steps, flips and network for all. It prints the mIoU of
the fleet on `val` at the labels' full resolution, its share of `centralized`, bytes and time, and last one
JSON line. `--scratch` adds each algorithm that sends features with an encoder from scratch whose features
take as many bytes. Runs go one after the other, as time counts, unless `--jobs` says otherwise; finished
ones are kept in `--out`, one that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.options import add_device, read_seeds
from benchmarks.runs import Run, finish
from fleet.cli.sweep import parse_algorithms
from fleet.compare.spread import sample_deviation
from protocol.plans.adaptation import SUBSPACES

REFERENCE = "centralized"
ALGORITHMS = "centralized,fedavg,split,blackfed-v2,blackfleet"
PRETRAINED, SCRATCH = "efficientnet-lite0-s8", "stride8-c8"
"""Encoders whose features have the same shape, and so the same bytes: 8 channels at stride 8."""
SUBSPACE = "projection"
"""Of the pretrained encoder, whose way back costs next to nothing."""
SENDS_NO_FEATURES = frozenset({"centralized", "fedavg"})
WHOLE_NETWORK = frozenset({"fedavg", "fedprox"})
COMMON: dict[str, Any] = {
    "rounds": 8,
    "first_order.epochs": 4,
    "class_weights": "balanced",
    "augmentation.flip": True,
    "white_box.rate": 5e-3,
}
"""Budget and recipe, the same for every algorithm and size."""
REPLAY: dict[str, Any] = {"first_order.epochs": 2, "first_order.replay_steps": 1}
"""As many steps of the network; every other one on features uploaded earlier, by any vehicle."""
REPLAYING = frozenset({"split", "blackfed-v2"})
"""Algorithms that learn from one vehicle after another."""
OWN: dict[str, dict[str, Any]] = {
    "split": {"sharing.encoder": "weights"},
    "blackfed-v2": {
        "sharing.encoder": "weights",
        "zeroth_order.estimator": "surrogate",
        "zeroth_order.batches": 0,
        "surrogate.rate": 3e-3,
    },
    "blackfleet": {
        "sharing.encoder": "weights",
        "local_loss.warm_up_epochs": 6,
        "local_loss.epochs": 0,
        "blackfleet.serving": "latest",
    },
}
"""Of single algorithms: one encoder for the fleet; `blackfleet`'s learns before the first upload alone."""
NETWORKS: dict[str, dict[str, Any]] = {"compact": {}, "lite0-unet": {"first_order.rate": 4e-3}}
"""Of the cloud's networks: the smallest, and a pretrained one, with the best of four rates by validation."""
TARGETS: dict[str, dict[str, float]] = {
    "480x360": {"centralized": 0.66, "split": 0.63, "blackfed-v2": 0.60, "blackfleet": 0.60},
    "256x192": {"blackfleet": 0.50},
}
GAIN_TARGET = 0.08
"""Of pretrained over scratch at equal bytes."""


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camvid_split", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--image-size", choices=tuple(TARGETS), default="480x360", help="default: 480x360")
    parser.add_argument(
        "--algorithms", type=parse_algorithms, default=ALGORITHMS, help=f"default: {ALGORITHMS}"
    )
    parser.add_argument(
        "--network", choices=tuple(NETWORKS), default="compact", help="of the cloud (default: compact)"
    )
    parser.add_argument(
        "--subspace",
        choices=SUBSPACES,
        default=SUBSPACE,
        help=f"what of the pretrained encoder learns (default: {SUBSPACE})",
    )
    parser.add_argument("--scratch", action="store_true", help="also with an encoder from scratch")
    parser.add_argument(
        "--no-replay",
        action="store_true",
        help=f"let {' and '.join(sorted(REPLAYING))} take every step on what has just come up",
    )
    parser.add_argument("--seeds", type=read_seeds, default="0,1,2", help="default: 0,1,2")
    add_device(parser)
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs at once, each planned for one core; times then mean nothing (default: one, on all cores)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/camvid-split"), help="folder of the runs")
    options = parser.parse_args()
    root = str((options.data_root or camvid_folder()).resolve())
    rows = [(algorithm, PRETRAINED) for algorithm in options.algorithms]
    if options.scratch:
        rows += [(name, SCRATCH) for name in options.algorithms if name not in SENDS_NO_FEATURES]
    folder = options.image_size + ("-no-replay" if options.no_replay else "")
    if options.network != "compact":
        folder += f"-{options.network}"
    if options.subspace != SUBSPACE:
        folder += f"-{options.subspace}"
    runs = {
        (*row, seed): Run(
            folder=options.out / folder / f"{row[0]}-{row[1]}-{seed}",
            settings={
                **settings(root, options.image_size),
                **NETWORKS[options.network],
                "network.name": options.network,
                **_own(*row, subspace=options.subspace, replay=not options.no_replay),
                **_place(row[0], options),
                "seed": seed,
            },
        )
        for seed in options.seeds
        for row in rows
    }
    finish(list(runs.values()), jobs=options.jobs or 1)
    report = summarise({row: [runs[(*row, seed)].result() for seed in options.seeds] for row in rows})
    what = {"image_size": options.image_size, "network": options.network, "subspace": options.subspace}
    Console(width=140).print(table(report, what))
    print(json.dumps({"benchmark": "camvid_split", **what, "runs": report}))


def settings(root: str, image_size: str) -> dict[str, Any]:
    """What all runs have in common, by scenario key."""
    return {
        "dataset.name": "camvid",
        "dataset.root": root,
        "dataset.partition": "sequence",
        "dataset.test_split": "val",
        "dataset.parts": "94/3/3",
        "vehicles": 3,
        "image_size": image_size,
        "evaluation.overlays": 0,
        "evaluation.ood_frames": 0,
        **COMMON,
    }


def _place(algorithm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Where a run computes; vehicles that train the whole network do so on the cloud's kind of device."""
    trains = algorithm in WHOLE_NETWORK and options.device == "cuda"
    return {
        "device": options.device,
        **({"encoder.training_device": "cuda"} if trains else {}),
        **({"cores": 1} if options.jobs else {}),
    }


def _own(algorithm: str, encoder: str, *, subspace: str, replay: bool) -> dict[str, Any]:
    """`fedavg`, and who has an encoder from scratch, trains everything."""
    whole = encoder == SCRATCH or algorithm == "fedavg"
    part = {} if whole else {"adaptation.subspace": subspace}
    steps = REPLAY if replay and algorithm in REPLAYING else {}
    return {"algorithm": algorithm, "encoder.name": encoder, **part, **steps, **OWN.get(algorithm, {})}


def summarise(results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One entry a row, over its seeds: mean and deviation of the fleet's mIoU on `val`, means of the rest."""
    entries = []
    for (algorithm, encoder), runs in results.items():
        mious = [run["fleet_miou"] for run in runs]
        entries.append(
            {
                "algorithm": algorithm,
                "encoder": encoder,
                "val_miou_mean": statistics.fmean(mious),
                "val_miou_std": sample_deviation(mious),
                "vehicles_std": statistics.fmean(run["fleet_miou_std"] for run in runs),
                "uplink_bytes": round(statistics.fmean(run["uplink_bytes"] for run in runs)),
                "downlink_bytes": round(statistics.fmean(run["downlink_bytes"] for run in runs)),
                "wall_s": statistics.fmean(run["wall_s"] for run in runs),
            }
        )
    best = next((entry["val_miou_mean"] for entry in entries if entry["algorithm"] == REFERENCE), None)
    for entry in entries:
        entry["share"] = entry["val_miou_mean"] / best if best else None
    return entries


def table(report: Sequence[Mapping[str, Any]], what: Mapping[str, str]) -> Table:
    """The entries with their targets."""
    shown = Table(title=f"CamVid val, {', '.join(what.values())}, mIoU at the labels' full resolution")
    columns = ("algorithm", "encoder", "val mIoU", "target", f"of {REFERENCE}", "up, MB", "down, MB", "time")
    for column in columns:
        shown.add_column(column, justify="left" if column in columns[:2] else "right")
    for entry in report:
        target = (
            TARGETS[what["image_size"]].get(entry["algorithm"]) if entry["encoder"] == PRETRAINED else None
        )
        shown.add_row(
            entry["algorithm"],
            entry["encoder"],
            f"{entry['val_miou_mean']:.3f} ± {entry['val_miou_std']:.3f}",
            f"{target:.2f}" if target else "",
            f"{entry['share']:.2f}" if entry["share"] else "",
            f"{entry['uplink_bytes'] / 1e6:.1f}",
            f"{entry['downlink_bytes'] / 1e6:.1f}",
            f"{entry['wall_s'] // 60:.0f}:{entry['wall_s'] % 60:02.0f}",
        )
    return shown


if __name__ == "__main__":
    main()
