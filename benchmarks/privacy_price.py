"""What each defence of features and labels costs, and how much harder it makes the frames to get back.

`python -m benchmarks.privacy_price` runs `blackfleet` with four vehicles that share CamVid's frames block by
block, with each defence and each seed, and lets an attacker who has the car's encoder train a decoder, and
another paint what labels tell. Prints a table and one JSON line. Runs and attacks that are done are kept in
`--out`; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.options import read_seeds, some_of
from benchmarks.runs import Run, finish
from fleet.audit.command import Settings, audit
from fleet.broker import MEMORY_BUS
from fleet.report.audited import Finding
from fleet.run.processes import die_with_parent

FEATURES, LABELS = "decoder-trained", "labels"
"""The attacks."""
_FOUR_CHANNELS = {"encoder.name": "stride8-c4"}
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "4 bits": {"coding.bits": 4},
    "2 bits": {"coding.bits": 2},
    "4 channels, 2 bits": {**_FOUR_CHANNELS, "coding.bits": 2},
    "decoder 0.1": {"privacy.decoder_weight": 0.1},
    "decoder 0.3": {"privacy.decoder_weight": 0.3},
    "labels in squares of 8": {"privacy.label_square": 8},
    "labels in squares of 16": {"privacy.label_square": 16},
    "decoder 0.1, 4 bits": {"privacy.decoder_weight": 0.1, "coding.bits": 4},
    "decoder 0.1, 4 channels, 4 bits": {**_FOUR_CHANNELS, "privacy.decoder_weight": 0.1, "coding.bits": 4},
}
"""What each puts over the settings that all share, by scenario key."""


def main() -> None:
    """Run and attack what is missing, and print table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy_price", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--seeds", type=read_seeds, default="0,1", help="default: 0,1")
    parser.add_argument(
        "--defences", type=some_of(DEFENCES), default=";".join(DEFENCES), help="some, with semicolons"
    )
    parser.add_argument("--steps", type=int, default=300, help="of the attack (default 300)")
    parser.add_argument("--jobs", type=int, default=2, help="at once, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/privacy-price"), help="folder of the runs")
    options = parser.parse_args()
    root = (options.data_root or camvid_folder()).resolve()
    runs = {
        (defence, seed): _run(options.out, root, defence, seed)
        for seed in options.seeds
        for defence in options.defences
    }
    finish(list(runs.values()), jobs=options.jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=die_with_parent) as pool:
        pending = {key: pool.submit(attacked, run.folder, options.steps) for key, run in runs.items()}
        found = {key: future.result() for key, future in pending.items()}
    report = {
        defence: summarise(
            [runs[defence, seed].result() for seed in options.seeds],
            [found[defence, seed] for seed in options.seeds],
        )
        for defence in options.defences
    }
    Console(width=110).print(table(report, options.seeds))
    print(json.dumps({"benchmark": "privacy_price", "seeds": options.seeds, "defences": report}))


def _run(out: Path, root: Path, defence: str, seed: int) -> Run:
    settings: dict[str, Any] = {
        "algorithm": "blackfleet",
        "dataset.name": "camvid",
        "dataset.root": str(root),
        "dataset.partition": "uniform",
        "dataset.frames_per_vehicle": 44,
        "vehicles": 4,
        "rounds": 4,
        "image_size": "128x96",
        "cores": 1,
        "broker": MEMORY_BUS,
        "seed": seed,
        "local_loss.warm_up_epochs": 30,
        "local_loss.epochs": 8,
        "evaluation.ood_frames": 4,
        "evaluation.overlays": 0,
        **DEFENCES[defence],
    }
    return Run(folder=out / f"{defence.replace(', ', '-').replace(' ', '-')}-{seed}", settings=settings)


def attacked(folder: Path, steps: int) -> dict[str, Finding]:
    """What the attacks on one run find, in this process, by one thread; always of the same vehicle."""
    settings = Settings(
        vehicle="car-01", attacks=(FEATURES, LABELS), frames=9, shadow_frames=120, steps=steps, threads=1
    )
    with (folder / "audit.log").open("a", encoding="utf-8") as log:
        findings = audit(folder, settings, Console(file=log, width=120)).findings
    return {finding.attack: finding for finding in findings}


def summarise(
    results: Sequence[Mapping[str, Any]], findings: Sequence[Mapping[str, Finding]]
) -> dict[str, float]:
    """Means over seeds: mIoU of the vehicles' own test frames, bytes up of the fleet, PSNR in dB and SSIM."""
    features, labels = ([found[attack] for found in findings] for attack in (FEATURES, LABELS))
    return {
        "miou": statistics.fmean(result["mean_local_miou"] for result in results),
        "uplink_bytes": statistics.fmean(result["uplink_bytes"] for result in results),
        "psnr_db": statistics.fmean(finding.scores.psnr_db or 0.0 for finding in features),
        "ssim": statistics.fmean(finding.scores.ssim or 0.0 for finding in features),
        "nothing_psnr_db": statistics.fmean(finding.nothing.psnr_db or 0.0 for finding in features),
        "labels_psnr_db": statistics.fmean(finding.scores.psnr_db or 0.0 for finding in labels),
        "labels_ssim": statistics.fmean(finding.scores.ssim or 0.0 for finding in labels),
    }


def table(report: Mapping[str, Mapping[str, float]], seeds: Sequence[int]) -> Table:
    """The report for people."""
    rows = Table(title=f"defences, seeds {', '.join(map(str, seeds))}; PSNR in dB, SSIM")
    for column in ("defence", "mIoU", "MB up", "features", "", "labels", "", "the mean frame"):
        rows.add_column(column, justify="left" if column == "defence" else "right")
    for defence, entry in report.items():
        numbers = (
            f"{entry['psnr_db']:.1f}",
            f"{entry['ssim']:.2f}",
            f"{entry['labels_psnr_db']:.1f}",
            f"{entry['labels_ssim']:.2f}",
            f"{entry['nothing_psnr_db']:.1f}",
        )
        rows.add_row(defence, f"{entry['miou']:.3f}", f"{entry['uplink_bytes'] / 1e6:.2f}", *numbers)
    return rows


if __name__ == "__main__":
    main()
