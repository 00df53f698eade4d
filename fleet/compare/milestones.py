"""Who reaches the reference's quality with which bytes, and when: from the curves of training alone.

Training alone is what comes after the evaluation of the untrained start has been committed: its bytes and
seconds, and of course those of the final evaluation, are no part of any number here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fleet.show.progress import format_bytes

DEFAULT_REFERENCE = "blackfed-v2"
COLUMNS = (
    "algorithm",
    "final val mIoU",
    "bytes",
    "time",
    "reached by",
    "bytes to reach",
    "time to reach",
    "val mIoU at its bytes",
    "val mIoU at its time",
)
_NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Point:
    """How far training was when a stage was committed."""

    sent_bytes: int
    """Up and down together, of all vehicles, since training began."""
    wall_s: float
    """Since training began."""
    val_miou: float
    """Mean over all vehicles of the mIoU on their validation frames."""
    steps: int | None = None
    """First-order steps of networks since training began; None where the run does not say."""
    forward_equivalents: float | None = None
    """What all vehicles have computed since then, in forward passes of a frame; None as above."""


def find_milestones(
    algorithms: Sequence[str], reference: str, curves: Mapping[tuple[str, int], Sequence[Point]]
) -> dict[str, Any]:
    """`compare.json`'s `milestones`: each algorithm against the reference of the same seed.

    `curves` are by (algorithm, seed). mIoU, bytes and seconds are means over the seeds that have them, None
    where none has; those to reach the reference's final mIoU are over the `reached` of `seeds` that do.
    """
    return {
        "reference": reference,
        "algorithms": [_milestones_of(algorithm, reference, curves) for algorithm in algorithms],
    }


def rows(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS` from what `find_milestones` has returned."""
    return [
        (
            entry["algorithm"],
            _score(entry["final_val_miou"]),
            _bytes(entry["bytes"]),
            _seconds(entry["wall_s"]),
            f"{entry['reached']} of {entry['seeds']}",
            _bytes(entry["bytes_to_reach"]) + _share(entry["bytes_share"]),
            _seconds(entry["wall_s_to_reach"]),
            _score(entry["val_miou_at_bytes"]),
            _score(entry["val_miou_at_wall_s"]),
        )
        for entry in content["algorithms"]
    ]


def caption(content: Mapping[str, Any]) -> str:
    """What the rows say, in words."""
    reference = content["reference"]
    return (
        f"Training alone, up and down together, without the evaluations before and after it. Reached: the "
        f"mean validation mIoU that {reference} of the same seed ends with; in brackets the share of "
        f"{reference}'s bytes. The last two columns: how far the algorithm was when it had spent what "
        f"{reference} spends in all."
    )


def _milestones_of(
    algorithm: str, reference: str, curves: Mapping[tuple[str, int], Sequence[Point]]
) -> dict[str, Any]:
    pairs = [
        (curve, curves.get((reference, seed), ()))
        for (name, seed), curve in curves.items()
        if name == algorithm
    ]
    compared = [(curve, other[-1]) for curve, other in pairs if curve and other]
    reached = [
        (point, goal)
        for curve, goal in compared
        if (point := next((point for point in curve if point.val_miou >= goal.val_miou), None)) is not None
    ]
    ends = [curve[-1] for curve, _ in pairs if curve]
    return {
        "algorithm": algorithm,
        "seeds": len(pairs),
        "final_val_miou": _mean([end.val_miou for end in ends]),
        "bytes": _mean([end.sent_bytes for end in ends]),
        "wall_s": _mean([end.wall_s for end in ends]),
        "reached": len(reached),
        "bytes_to_reach": _mean([point.sent_bytes for point, _ in reached]),
        "bytes_share": _mean(
            [point.sent_bytes / goal.sent_bytes for point, goal in reached if goal.sent_bytes > 0]
        ),
        "wall_s_to_reach": _mean([point.wall_s for point, _ in reached]),
        "val_miou_at_bytes": _mean(
            _latest([(point.sent_bytes, point.val_miou) for point in curve], goal.sent_bytes)
            for curve, goal in compared
        ),
        "val_miou_at_wall_s": _mean(
            _latest([(point.wall_s, point.val_miou) for point in curve], goal.wall_s)
            for curve, goal in compared
        ),
    }


def _latest(steps: Sequence[tuple[float, float]], limit: float) -> float | None:
    """The mIoU of the last of (spent, mIoU) that has not spent more than `limit`."""
    within = [miou for spent, miou in steps if spent <= limit]
    return within[-1] if within else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _score(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _bytes(value: float | None) -> str:
    return _NONE if value is None else format_bytes(value)


def _share(value: float | None) -> str:
    return "" if value is None else f" ({value:.3g}x)"


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{round(value) // 60}:{round(value) % 60:02d}"
