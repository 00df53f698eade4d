"""What `benchmarks.estimator_cosine` has measured, over batches: as rows, as tables, as JSON."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cosine_study import DEFAULTS, Measurement, Setting
from benchmarks.joint_training import Study


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Over batches: the median, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), least=min(values), greatest=max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One estimator with its setting at one checkpoint."""

    setting: Setting
    step: int
    subspace: str
    cosine: Spread
    training_cosine: Spread
    uplink_bytes: float
    """For each frame, the median over batches."""
    downlink_bytes: float


Key = tuple[Setting, int, str]
Table = Mapping[Key, Row]
"""(setting, step, subspace) → row."""


def tabulate(measurements: Iterable[Measurement]) -> dict[Key, Row]:
    """Summarise over batches."""
    groups: defaultdict[Key, list[Measurement]] = defaultdict(list)
    for each in measurements:
        groups[each.setting, each.step, each.subspace].append(each)
    return {
        key: Row(
            setting=key[0],
            step=key[1],
            subspace=key[2],
            cosine=Spread.of([each.cosine for each in group]),
            training_cosine=Spread.of([each.training_cosine for each in group]),
            uplink_bytes=statistics.median(each.uplink_bytes for each in group),
            downlink_bytes=statistics.median(each.downlink_bytes for each in group),
        )
        for key, group in groups.items()
    }


def title(setting: Setting) -> str:
    """How a row is called."""
    if setting.estimator == "spsa-gc":
        return f"`spsa-gc`, q = {setting.count}"
    if setting.estimator in ("surrogate", "region-spsa"):
        return f"`{setting.estimator}`, K = {setting.count}"
    if setting.estimator.startswith("activation"):
        stride = f", map stride {setting.map_stride}" if setting.map_stride > 1 else ""
        name, _, kind = setting.estimator.partition(", ")
        return f"`{name}`, K = {setting.count}{stride}" + (f", {kind}" if kind else "")
    if setting.estimator == "white-box":
        return f"white-box, gradients of {setting.gradient_bits} bits"
    return {
        "split": "white-box, batch statistics (`split`)",
        "local-loss": "local head (`local-loss`)",
    }.get(setting.estimator, setting.estimator)


def is_default(setting: Setting) -> bool:
    """Whether everything but K or q, and the map's stride, is as in a scenario that says nothing."""
    return not setting.estimator.startswith("activation") or (
        setting.scale == DEFAULTS.scale
        and setting.two_sided == DEFAULTS.two_sided
        and setting.box_width == DEFAULTS.box_width
    )


def main_table(table: Table, study: Study) -> str:
    """Every estimator as it is by default, checkpoint by checkpoint."""
    settings = list(dict.fromkeys(setting for setting, _, _ in table if is_default(setting)))
    steps = study.checkpoints
    head = ["estimator", *(f"step {step}" for step in steps), "film", "features", "to `split`", "up", "down"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for setting in settings:
        rows = [table[setting, step, "all"] for step in steps]
        film = [table[setting, step, "film"] for step in steps]
        cells = [title(setting), *(str(row.cosine) for row in rows)]
        cells += [f"{statistics.median(row.cosine.median for row in film):.2f}"]
        cells += [_at_features(table, setting, steps)]
        cells += [f"{statistics.median(row.training_cosine.median for row in rows):.2f}"]
        cells += [f"{statistics.median(row.uplink_bytes for row in rows) / 1000:.1f} kB"]
        cells += [f"{statistics.median(row.downlink_bytes for row in rows) / 1000:.1f} kB"]
        lines.append(_line(cells))
    return "\n".join(lines)


def _at_features(table: Table, setting: Setting, steps: Sequence[int]) -> str:
    """Over the checkpoints, of an estimator that has a gradient there."""
    keys = [key for step in steps if (key := (setting, step, "features")) in table]
    return f"{statistics.median(table[key].cosine.median for key in keys):.2f}" if keys else "–"


def sweep_table(table: Table, study: Study, seeds: int, subspace: str) -> str:
    """`activation` by scale, sidedness and window; medians over batches, then over checkpoints."""
    lines = [_line(["scale", "sides", *(f"box {width}" for width in study.box_widths)])]
    lines.append(_line(["---:"] * (2 + len(study.box_widths))))
    for scale in study.scales:
        for two_sided in (False, True):
            cells = [f"{scale:g}", "2" if two_sided else "1"]
            for width in study.box_widths:
                setting = Setting(
                    estimator="activation",
                    count=seeds,
                    scale=scale,
                    two_sided=two_sided,
                    box_width=width,
                    map_stride=1,
                )
                cells.append(f"{over_run(table, study, setting, subspace):.3f}")
            lines.append(_line(cells))
    return "\n".join(lines)


def over_run(table: Table, study: Study, setting: Setting, subspace: str) -> float:
    """The median over checkpoints of the medians over batches."""
    return statistics.median(table[setting, step, subspace].cosine.median for step in study.checkpoints)


def as_json(table: Table, study: Study, data: str) -> dict[str, Any]:
    """The content of the last line: every setting, its medians checkpoint by checkpoint."""
    rows = []
    for setting, step, subspace in table:
        if step == study.checkpoints[0]:
            along = [table[setting, each, subspace] for each in study.checkpoints]
            rows.append(
                {
                    **{name: value for name, value in asdict(setting).items() if value},
                    "subspace": subspace,
                    "cosine": [round(row.cosine.median, 4) for row in along],
                    "training_cosine": [round(row.training_cosine.median, 4) for row in along],
                    "uplink_bytes": round(statistics.median(row.uplink_bytes for row in along)),
                    "downlink_bytes": round(statistics.median(row.downlink_bytes for row in along)),
                }
            )
    return {
        "benchmark": "estimator_cosine",
        "data": data,
        "steps": study.steps,
        "batches": study.batches,
        "checkpoints": study.checkpoints,
        "rows": rows,
    }


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
