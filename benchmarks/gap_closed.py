"""How much of the gap between a random encoder and white-box split learning each way of learning closes.

`python -m benchmarks.gap_closed` runs one vehicle that owns CamVid's frames (256x192, stride-8 encoder of 8
channels) on the in-memory bus: 20 rounds of one pass over 320 frames, 800 first-order steps of 8 frames for
every method. It prints a table and last one JSON line: for each method mIoU over the seeds, the closed part
of the gap, (method − frozen) / (split − frozen), and what crossed the network. Finished runs are kept in
`--out` and not run again.
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
from benchmarks.options import add_device, read_seeds, some_of
from benchmarks.runs import Run, finish, local_start
from fleet.broker import MEMORY_BUS
from fleet.compare.spread import sample_deviation
from fleet.frames.allocation import open_data
from fleet.scenario import load_scenario
from protocol.plans.adaptation import SUBSPACES

UPLINK_TARGET = 1.1
"""Of `blackfleet`, times that of `split`."""
GAP_TARGET = 0.9
_ROUNDS = 20
_WARM_UP_PASSES = 20
_TRAIN_FRAMES = 320
_DATASETS: dict[str, dict[str, Any]] = {
    "camvid": {"dataset.frames_per_vehicle": 455},
    "generated": {"dataset.frames_per_sequence": 457},
}
"""The settings that leave the vehicle `_TRAIN_FRAMES` frames to train on."""

_SPSA = {"algorithm": "blackfed-v1", "zeroth_order.batches": 0, "zeroth_order.estimator": "spsa-gc"}
_ACTIVATION = {**_SPSA, "zeroth_order.estimator": "activation"}
_SURROGATE = {**_SPSA, "zeroth_order.estimator": "surrogate", "surrogate.seeds": 1, "surrogate.rate": 2e-3}
_REGIONS = {**_SPSA, "zeroth_order.estimator": "region-spsa", "zeroth_order.batches": 31}
_SPSA_ONE = {**_SPSA, "spsa.queries": 1, "zeroth_order.batches": 20}
"""The last two with as many batches a round as have the uplink of `surrogate`, which takes all 40."""
_LOCAL = {
    "algorithm": "blackfleet",
    "blackfleet.serving": "latest",
    "local_loss.warm_up_epochs": 0,
    "local_loss.epochs": 1,
    "local_loss.weight_power": 0,
}
_WARMED_UP = {**_LOCAL, "local_loss.warm_up_epochs": _WARM_UP_PASSES}
_BLACKFLEET = {**_WARMED_UP, "local_loss.weight_power": 0.5}
_SPREAD = {
    **_BLACKFLEET,
    "local_loss.warm_up_epochs": 0,
    "local_loss.epochs": 1 + _WARM_UP_PASSES // _ROUNDS,
}
"""As many local passes, the same in each round: loss maps weight all but the first."""
_NO_FEEDBACK = {"algorithm": "blackfleet-no-feedback"}

METHODS: dict[str, dict[str, Any]] = {
    "frozen": {"algorithm": "frozen"},
    "split": {"algorithm": "split"},
    "spsa-gc": _SPSA,
    "activation K=1": {**_ACTIVATION, "activation.seeds": 1},
    "activation K=4": {**_ACTIVATION, "activation.seeds": 4},
    "activation K=16": {**_ACTIVATION, "activation.seeds": 16},
    "surrogate K=1": _SURROGATE,
    "region-spsa, equal bytes": _REGIONS,
    "spsa-gc, equal bytes": _SPSA_ONE,
    "local-loss": _LOCAL,
    "local-then-frozen": {**_WARMED_UP, "local_loss.epochs": 0},
    "blackfleet-no-feedback": {**_BLACKFLEET, **_NO_FEEDBACK},
    "blackfleet": _BLACKFLEET,
    "blackfleet-no-feedback, spread": {**_SPREAD, **_NO_FEEDBACK},
    "blackfleet, spread": _SPREAD,
    "split, local start": {"algorithm": "split", "evaluation.source_frames": 0},
}
"""What each method puts over the settings that all share, by scenario key."""
STARTED = {"split, local start": "local-then-frozen"}
"""Methods whose encoder starts where another method's has ended: local steps flatter none."""


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap_closed", description=__doc__)
    parser.add_argument("--dataset", choices=sorted(_DATASETS), default="camvid", help="default: camvid")
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--encoder", default="stride8-c8", help="default: stride8-c8")
    parser.add_argument(
        "--subspace", choices=SUBSPACES, help="what of it learns (default: what it says itself)"
    )
    parser.add_argument("--seeds", type=read_seeds, default="0,1,2", help="default: 0,1,2")
    parser.add_argument(
        "--methods",
        type=some_of(METHODS),
        default=";".join(METHODS),
        help="some of the methods, with semicolons",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/gap-closed"), help="folder of the runs")
    options = parser.parse_args()
    for method, source in STARTED.items():
        if method in options.methods and source not in options.methods:
            parser.error(f"{method!r} begins where {source!r} ends: name both")
    shared = {seed: _settings(options, seed) for seed in options.seeds}
    if options.dataset == "generated":
        for seed in options.seeds:
            open_data(load_scenario(None, shared[seed]), options.out, Console(stderr=True))
    what = options.encoder if options.subspace is None else f"{options.encoder}-{options.subspace}"
    place = options.out / f"{options.dataset}-{what}"
    runs = {
        (method, seed): Run(
            folder=place / f"{_folder_name(method)}-{seed}", settings=shared[seed] | METHODS[method]
        )
        for seed in options.seeds
        for method in options.methods
        if method not in STARTED
    }
    finish(list(runs.values()), jobs=options.jobs)
    for method, source in ((method, STARTED[method]) for method in options.methods if method in STARTED):
        for seed in options.seeds:
            start = local_start(runs[source, seed], place / f"start-{_folder_name(source)}-{seed}")
            runs[method, seed] = Run(
                folder=place / f"{_folder_name(method)}-{seed}",
                settings=shared[seed] | METHODS[method] | {"start": str(start.resolve())},
            )
    finish([run for (method, _), run in runs.items() if method in STARTED], jobs=options.jobs)
    report = summarise(
        {method: [runs[method, seed].result() for seed in options.seeds] for method in options.methods}
    )
    title = f"{options.dataset}, {what}, seeds {', '.join(map(str, options.seeds))}"
    Console().print(table(report, title))
    print(json.dumps({"benchmark": "gap_closed", "what": title, "methods": report}))


def _folder_name(method: str) -> str:
    return method.replace(" ", "-").replace("=", "").replace(",", "")


def _settings(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What all methods share, by scenario key."""
    if options.dataset == "camvid":
        root = options.data_root or camvid_folder()
    else:
        root = options.data_root or options.out / f"generated-{seed}"
    return {
        "dataset.name": options.dataset,
        "dataset.root": str(root.resolve()),
        **_DATASETS[options.dataset],
        "vehicles": 1,
        "device": options.device,
        "cores": 1,
        "broker": MEMORY_BUS,
        "encoder.name": options.encoder,
        "adaptation.subspace": options.subspace,
        "rounds": _ROUNDS,
        "seed": seed,
        "first_order.epochs": 1,
        "first_order.schedule": "one-cycle",
        "white_box.rate": 2e-3,
        "evaluation.overlays": 0,
    }


def summarise(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By method, from its runs' results: mIoU over seeds, closed part of the gap, mean bytes of a run.

    `gap_closed` is None where frozen or split is missing, or split is not better.
    """
    for method, entries in results.items():
        for entry in entries:
            [vehicle] = entry["vehicles"].values()
            if vehicle["frames_train"] != _TRAIN_FRAMES:
                raise SystemExit(f"{method} had {vehicle['frames_train']} train frames, not {_TRAIN_FRAMES}")
    means = {
        method: statistics.fmean(entry["mean_local_miou"] for entry in entries)
        for method, entries in results.items()
    }
    gap = means["split"] - means["frozen"] if {"split", "frozen"} <= set(means) else 0.0
    return {
        method: {
            "miou_mean": means[method],
            "miou_std": sample_deviation([entry["mean_local_miou"] for entry in entries]),
            "gap_closed": (means[method] - means["frozen"]) / gap if gap > 0 else None,
            "uplink_bytes": round(statistics.fmean(entry["uplink_bytes"] for entry in entries)),
            "downlink_bytes": round(statistics.fmean(entry["downlink_bytes"] for entry in entries)),
            "seeds": len(entries),
        }
        for method, entries in results.items()
    }


def table(report: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """The report for people, and whether its targets are met."""
    rows = Table(title=title)
    for column in ("method", "mIoU", "gap closed", "up, MB", "down, MB"):
        rows.add_column(column, justify="left" if column == "method" else "right")
    for method, entry in report.items():
        rows.add_row(
            method,
            f"{100 * entry['miou_mean']:.1f} ± {100 * entry['miou_std']:.1f}",
            _share(entry["gap_closed"]),
            f"{entry['uplink_bytes'] / 1e6:.1f}",
            f"{entry['downlink_bytes'] / 1e6:.2f}",
        )
    if {"blackfleet", "split"} <= set(report):
        uplink = report["blackfleet"]["uplink_bytes"] / report["split"]["uplink_bytes"]
        rows.caption = (
            f"blackfleet: gap closed {_share(report['blackfleet']['gap_closed'])} (target {GAP_TARGET}), "
            f"uplink {uplink:.2f} of split's (at most {UPLINK_TARGET})"
        )
    return rows


def _share(gap_closed: float | None) -> str:
    return "–" if gap_closed is None else f"{gap_closed:.2f}"


if __name__ == "__main__":
    main()
