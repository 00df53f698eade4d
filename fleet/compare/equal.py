"""Runs cut at the same budget: how far each was when it had spent what the thriftiest spends in all.

From the curves of training alone, like the milestones; no run is made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cloud_server.algorithms.table import algorithm_row
from fleet.compare.milestones import Point
from fleet.compare.spread import sample_deviation
from fleet.errors import OperatorError
from fleet.show.progress import format_bytes

BUDGETS = {
    "steps": "first-order steps of networks",
    "bytes": "up and down",
    "compute": "forward passes' worth of computing on the vehicles",
}
"""What runs can be cut by."""
COLUMNS = ("algorithm", "val mIoU at the budget", "spent", "spends in all", "val mIoU at its end")
_NONE = "–"


def check_budget(budget: str, algorithms: Sequence[str], *, network_learns: bool) -> None:
    """Refuse a budget that runs of these algorithms don't spend.

    Raises:
        OperatorError: the message says which, and what to do.
    """
    if budget not in BUDGETS:
        raise OperatorError(f"--equal must be one of {', '.join(BUDGETS)}, got {budget!r}")
    without_fleet = [name for name in algorithms if algorithm_row(name).build is None]
    if budget != "steps" and without_fleet:
        raise OperatorError(
            f"--equal {budget}: {', '.join(without_fleet)} has no fleet that sends or computes "
            f"anything; leave it out of --algorithms, or give --equal steps"
        )
    if budget == "steps" and not network_learns:
        raise OperatorError(
            "--equal steps: no network takes any (network.learns is false); give --equal bytes or compute"
        )


def find_equal(
    budget: str, algorithms: Sequence[str], curves: Mapping[tuple[str, int], Sequence[Point]]
) -> dict[str, Any]:
    """`compare.json`'s `equal`. `curves` are by (algorithm, seed).

    `missing` names the runs that don't say what they have spent; then there are no entries. Budgets and
    spendings are means over seeds; mIoU is None where no seed has a commit within its budget.
    """
    totals = {run: _spent(curve[-1], budget) if curve else None for run, curve in curves.items()}
    missing = [f"{algorithm} (seed {seed})" for (algorithm, seed), total in totals.items() if not total]
    content: dict[str, Any] = {"by": budget, "missing": missing, "algorithms": []}
    if missing:
        return content
    seeds = dict.fromkeys(seed for _, seed in curves)
    budgets = {seed: min(totals[algorithm, seed] or 0 for algorithm in algorithms) for seed in seeds}
    content["budget"] = _mean(list(budgets.values()))
    for algorithm in algorithms:
        cuts = [_cut(curves[algorithm, seed], budget, limit) for seed, limit in budgets.items()]
        scores = [point.val_miou for point in cuts if point is not None]
        content["algorithms"].append(
            {
                "algorithm": algorithm,
                "val_miou_mean": _mean(scores),
                "val_miou_std": sample_deviation(scores) if scores else None,
                "spent": _mean([_spent(point, budget) or 0 for point in cuts if point is not None]),
                "total": _mean([totals[algorithm, seed] or 0 for seed in seeds]),
                "final_val_miou": _mean([curves[algorithm, seed][-1].val_miou for seed in seeds]),
            }
        )
    return content


def caption(content: Mapping[str, Any]) -> str:
    """What the rows say, in words; or why there are none."""
    if content["missing"]:
        return (
            f"Cut at equal {content['by']}: can't be had, these runs don't say what they have spent: "
            f"{', '.join(content['missing'])}; run them again in another folder."
        )
    amount = f"{_amount(content['budget'], content['by'])} {BUDGETS[content['by']]}"
    return (
        f"Cut at equal {content['by']}: {amount}, the least that any of these runs spends in training, seed "
        f"by seed. Each at its last commit within that, read off the run as it was: its rates fell over all "
        f"its rounds."
    )


def rows(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS`."""
    by = content["by"]
    return [
        (
            entry["algorithm"],
            _spread(entry["val_miou_mean"], entry["val_miou_std"]),
            _amount(entry["spent"], by),
            _amount(entry["total"], by),
            _spread(entry["final_val_miou"], None),
        )
        for entry in content["algorithms"]
    ]


def _cut(curve: Sequence[Point], budget: str, limit: float) -> Point | None:
    """The last point that has spent no more than `limit`."""
    within = [point for point in curve if (_spent(point, budget) or 0) <= limit]
    return within[-1] if within else None


def _spent(point: Point, budget: str) -> float | None:
    return {"steps": point.steps, "bytes": point.sent_bytes, "compute": point.forward_equivalents}[budget]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _amount(value: float | None, by: str) -> str:
    if value is None:
        return _NONE
    return format_bytes(value) if by == "bytes" else f"{value:,.0f}"


def _spread(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return _NONE
    return f"{mean:.3f} ± {deviation:.3f}" if deviation else f"{mean:.3f}"
