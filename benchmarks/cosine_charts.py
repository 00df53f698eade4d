"""The picture of `benchmarks.estimator_cosine`: cosines against K and bytes, along the run, and by scale."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.cosine_study import DEFAULT_ACTIVATION, DEFAULTS, SPSA, Setting
from benchmarks.cosine_tables import Table
from benchmarks.joint_training import Study

MAX_BYTES = 300_000
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#2b6fe0", "#e8701a", "#2f9e55", "#d04a7a", "#8a94a3"


def draw(table: Table, study: Study, path: Path) -> None:
    """Write the picture as PNG."""
    figure = Figure(figsize=(11, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    against_count, against_bytes, along, by_scale = figure.subplots(2, 2).ravel()
    _against_count(against_count, table, study)
    _against_bytes(against_bytes, table, study)
    _along_the_run(along, table, study)
    _by_scale(by_scale, table, study)
    for axes in (against_count, against_bytes, along, by_scale):
        axes.axhline(0, color=_GREY, linewidth=0.8)
        axes.grid(color="#e4e7ec", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("cosine to the exact gradient", fontsize=9)
        axes.tick_params(labelsize=8.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=105)
    if path.stat().st_size > MAX_BYTES:
        raise AssertionError(f"{path} has {path.stat().st_size} bytes, more than {MAX_BYTES}")


def _activation(**changes: Any) -> Setting:
    return replace(DEFAULT_ACTIVATION, **changes)


def _spsa(count: int) -> Setting:
    return Setting(estimator="spsa-gc", count=count, scale=SPSA.perturbation)


def _against_count(axes: Axes, table: Table, study: Study) -> None:
    axes.set_title("θ, default settings, by checkpoint (band: all batches)", fontsize=10)
    shades = colormaps["viridis"]
    for number, step in enumerate(study.checkpoints):
        colour = shades(0.9 * number / max(1, len(study.checkpoints) - 1))
        for counts, setting_of, style in (
            (study.seeds, lambda count: _activation(count=count), "o-"),
            (study.queries, _spsa, "s--"),
        ):
            rows = [table[setting_of(count), step, "all"] for count in counts]
            label = f"step {step}" if style == "o-" else None
            axes.plot(counts, [row.cosine.median for row in rows], style, color=colour, ms=4, label=label)
            if style == "o-":
                least, greatest = [row.cosine.least for row in rows], [row.cosine.greatest for row in rows]
                axes.fill_between(counts, least, greatest, color=colour, alpha=0.13, linewidth=0)
    axes.plot([], [], "o-", color=_GREY, ms=4, label="activation")
    axes.plot([], [], "s--", color=_GREY, ms=4, label="spsa-gc")
    _log2(axes, sorted({*study.seeds, *study.queries}))
    axes.set_xlabel("K seeds of activation, q queries of spsa-gc", fontsize=9)
    axes.legend(fontsize=8, ncols=2, frameon=False)


def _against_bytes(axes: Axes, table: Table, study: Study) -> None:
    axes.set_title("against bytes up and down (median over checkpoints)", fontsize=10)

    def point(setting: Setting, subspace: str) -> tuple[float, float]:
        rows = [table[setting, step, subspace] for step in study.checkpoints]
        return (
            statistics.median(row.uplink_bytes + row.downlink_bytes for row in rows) / 1000,
            statistics.median(row.cosine.median for row in rows),
        )

    curves = [("activation", _BLUE, "o", [_activation(count=count) for count in study.seeds])]
    for stride, marker in zip([s for s in study.map_strides if s > 1], "v^", strict=False):
        coarse = [_activation(count=count, map_stride=stride) for count in study.seeds]
        curves.append((f"activation, map stride {stride}", "#74b3f0", marker, coarse))
    curves.append(("spsa-gc", _ORANGE, "s", [_spsa(count) for count in study.queries]))
    white = [Setting(estimator="white-box", gradient_bits=bits) for bits in (8, 32)]
    curves.append(("white-box, 8 and 32 bits", _GREEN, "D", white))
    for name, colour, marker, settings in curves:
        for subspace, style in (("all", "-"), ("film", ":")):
            if "stride" in name and subspace == "film":
                continue
            points = [point(setting, subspace) for setting in settings]
            axes.plot(
                *zip(*points, strict=True),
                style,
                marker=marker,
                color=colour,
                ms=5,
                markerfacecolor=colour if subspace == "all" else "white",
                label=name if subspace == "all" else None,
            )
    for subspace, style in (("all", "-"), ("film", ":")):
        _, height = point(Setting(estimator="local-loss"), subspace)
        label = "local head (no bytes)" if subspace == "all" else None
        axes.axhline(height, linestyle=style, color=_RED, linewidth=1.4, label=label)
    axes.plot([], [], "-", color=_GREY, label="solid: θ")
    axes.plot([], [], ":", color=_GREY, label="dotted: film")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("kB for each frame of the batch, messages of one estimate", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _along_the_run(axes: Axes, table: Table, study: Study) -> None:
    axes.set_title("θ, along the run (band: all batches)", fontsize=10)
    seeds = DEFAULTS.seeds if DEFAULTS.seeds in study.seeds else study.seeds[-1]
    for name, colour, style, setting in (
        (f"activation, K = {seeds}", _BLUE, "-", _activation(count=seeds)),
        (f"activation, K = {study.seeds[0]}", "#74b3f0", "-", _activation(count=study.seeds[0])),
        (f"spsa-gc, q = {study.queries[-1]}", _ORANGE, "-", _spsa(study.queries[-1])),
        ("local head", _RED, "-", Setting(estimator="local-loss")),
        (
            "white-box, settled statistics",
            _GREEN,
            "--",
            Setting(estimator="white-box, settled statistics", gradient_bits=32),
        ),
        ("white-box, batch statistics (split)", _GREEN, "-", Setting(estimator="split", gradient_bits=32)),
    ):
        rows = [table[setting, step, "all"] for step in study.checkpoints]
        axes.plot(
            study.checkpoints,
            [row.cosine.median for row in rows],
            style,
            marker="o",
            ms=4,
            color=colour,
            label=name,
        )
        axes.fill_between(
            study.checkpoints,
            [row.cosine.least for row in rows],
            [row.cosine.greatest for row in rows],
            color=colour,
            alpha=0.13,
            linewidth=0,
        )
    axes.set_xlabel("steps of white-box training", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _by_scale(axes: Axes, table: Table, study: Study) -> None:
    seeds = study.swept_seeds[-1]
    axes.set_title(f"θ, activation with K = {seeds} (median over checkpoints)", fontsize=10)
    shades = colormaps["viridis"]
    for number, width in enumerate(study.box_widths):
        colour = shades(0.9 * number / max(1, len(study.box_widths) - 1))
        for two_sided, style in ((False, "o-"), (True, "o:")):
            settings = [
                _activation(count=seeds, scale=scale, two_sided=two_sided, box_width=width)
                for scale in study.scales
            ]
            medians = [
                statistics.median(table[setting, step, "all"].cosine.median for step in study.checkpoints)
                for setting in settings
            ]
            label = f"box {width}" if not two_sided else None
            axes.plot(study.scales, medians, style, color=colour, ms=4, label=label)
    axes.plot([], [], ":", color=_GREY, label="two-sided")
    axes.set_xscale("log")
    axes.set_xticks(study.scales, [f"{scale:g}" for scale in study.scales])
    axes.minorticks_off()
    axes.set_xlabel("scale, in standard deviations of a channel", fontsize=9)
    axes.legend(fontsize=8, ncols=2, frameon=False)


def _log2(axes: Axes, counts: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
