"""What an observer learns of each algorithm's frames: small runs, and an audit of each.

`python -m benchmarks.audits` runs every algorithm on CamVid and on generated frames, from scratch and with a
pretrained encoder, and attacks what crossed. Prints a table and one JSON line. Runs and attacks that are done
are kept in `--out`; the same command goes on. On a quiet core a cell takes two minutes or three.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.options import some_of
from benchmarks.runs import Run, finish
from fleet.audit.command import Settings, audit
from fleet.broker import MEMORY_BUS
from fleet.report.audited import Audit, Finding
from fleet.run.processes import die_with_parent

ALGORITHMS = ("blackfleet", "blackfed-v2", "split", "fedavg", "centralized")
DATASETS = ("camvid", "generated")
ENCODERS = {"scratch": "stride8-c8", "pretrained": "efficientnet-lite0-s8"}
WIDTHS = ("decoder-trained-32bit", "decoder-trained-4bit", "decoder-trained-2bit")
_ON_FEATURES = ("labels", "membership", "planted-decoder", "decoder-unknown", "decoder-initial")
ATTACKS: dict[str, tuple[str, ...]] = {
    "blackfleet": (*_ON_FEATURES, "decoder-trained", *WIDTHS),
    "blackfed-v2": (*_ON_FEATURES, "decoder-trained", *WIDTHS),
    "split": (*_ON_FEATURES, "decoder-trained"),
    "fedavg": ("membership", "planted-gradient", "gradient-one-frame"),
    "centralized": ("membership", "planted-decoder", "decoder-trained"),
}
"""Of each algorithm; a width that the run itself has is left out."""
_FRAMES, _SHADOW_FRAMES = 8, 60


def main() -> None:
    """Run and attack what is missing, and print table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audits", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument(
        "--algorithms",
        type=some_of(ALGORITHMS),
        default=";".join(ALGORITHMS),
        help="some, with semicolons",
    )
    parser.add_argument(
        "--datasets", type=some_of(DATASETS), default=";".join(DATASETS), help="some, with semicolons"
    )
    parser.add_argument(
        "--encoders", type=some_of(ENCODERS), default=";".join(ENCODERS), help="some, with semicolons"
    )
    parser.add_argument("--steps", type=int, default=200, help="of each attack (default 200)")
    parser.add_argument("--jobs", type=int, default=2, help="at once, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/audits"), help="folder of the runs")
    options = parser.parse_args()
    runs = {
        (dataset, encoder, algorithm): _run(options, dataset, encoder, algorithm)
        for dataset in options.datasets
        for encoder in options.encoders
        for algorithm in options.algorithms
    }
    finish(list(runs.values()), jobs=options.jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=die_with_parent) as pool:
        pending = {
            cell: pool.submit(audited, run.folder, cell[2], options.steps) for cell, run in runs.items()
        }
        found = {cell: future.result() for cell, future in pending.items()}
    report = [_cell(cell, run.result(), found[cell]) for cell, run in runs.items()]
    Console(width=130).print(table(report))
    print(json.dumps({"benchmark": "audits", "steps": options.steps, "cells": report}))


def _run(options: argparse.Namespace, dataset: str, encoder: str, algorithm: str) -> Run:
    root = str((options.data_root or camvid_folder()).resolve()) if dataset == "camvid" else None
    settings: dict[str, Any] = {
        "algorithm": algorithm,
        "dataset.name": dataset,
        "dataset.root": root,
        "dataset.frames_per_vehicle": 40,
        "encoder.name": ENCODERS[encoder],
        "vehicles": 2,
        "rounds": 2,
        "image_size": "128x96",
        "cores": 1,
        "broker": MEMORY_BUS,
        "first_order.epochs": 5,
        "local_loss.warm_up_epochs": 8,
        "local_loss.epochs": 4,
        "evaluation.ood_frames": 4,
        "evaluation.overlays": 0,
    }
    return Run(folder=options.out / dataset / encoder / algorithm, settings=settings)


def audited(folder: Path, algorithm: str, steps: int) -> Audit:
    """The audit of one run, in this process, by one thread."""
    settings = Settings(
        attacks=ATTACKS[algorithm],
        frames=_FRAMES,
        shadow_frames=_SHADOW_FRAMES,
        steps=steps,
        threads=1,
    )
    with (folder / "audit.log").open("a", encoding="utf-8") as log:
        return audit(folder, settings, Console(file=log, width=120))


def _cell(cell: tuple[str, str, str], result: Mapping[str, Any], found: Audit) -> dict[str, Any]:
    dataset, encoder, algorithm = cell
    return {
        "dataset": dataset,
        "encoder": encoder,
        "algorithm": algorithm,
        "miou": result["mean_local_miou"],
        "bytes_up": result["uplink_bytes"],
        "findings": {finding.attack: _numbers(finding) for finding in found.findings},
    }


def _numbers(finding: Finding) -> dict[str, float]:
    """What a finding says in numbers; `nothing_…`: of one who sees nothing."""
    numbers = {} if finding.bits_a_frame is None else {"bits_a_frame": finding.bits_a_frame}
    for prefix, scores in (("", finding.scores), ("nothing_", finding.nothing)):
        for name in scores.__struct_fields__:
            if (value := getattr(scores, name)) is not None:
                numbers[prefix + name] = value
    return numbers


def table(report: list[dict[str, Any]]) -> Table:
    """The report for people: PSNR in dB, SSIM, AUC; in brackets of one who sees nothing."""
    rows = Table(title="audits of small runs, one seed", caption="(in brackets: one who sees nothing)")
    for column in ("frames", "encoder", "algorithm", "mIoU", "attack", "bits a frame", "PSNR", "SSIM", "AUC"):
        rows.add_column(
            column, justify="left" if column in ("frames", "encoder", "algorithm", "attack") else "right"
        )
    for cell in report:
        first = [cell["dataset"], cell["encoder"], cell["algorithm"], f"{cell['miou']:.3f}"]
        for attack, numbers in cell["findings"].items():
            bits = f"{numbers['bits_a_frame']:,.0f}" if "bits_a_frame" in numbers else "–"
            shown = [
                _shown(numbers, name, digits) for name, digits in (("psnr_db", 1), ("ssim", 2), ("auc", 2))
            ]
            rows.add_row(*first, attack, bits, *shown)
            first = [""] * 4
        rows.add_section()
    return rows


def _shown(numbers: Mapping[str, float], name: str, digits: int) -> str:
    if name not in numbers:
        return "–"
    nothing = numbers.get("nothing_" + name)
    return f"{numbers[name]:.{digits}f}" + ("" if nothing is None else f" ({nothing:.{digits}f})")


if __name__ == "__main__":
    main()
