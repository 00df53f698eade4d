"""Charts as inline SVG, in CSS variables of the page, so that they follow its light or dark scheme."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from itertools import count

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from cloud_server.algorithms.table import algorithm_row
from fleet.report.data import ReportData, Run, Summary
from protocol.errors import SettingError

# Drawn in these, then replaced by the page's variables.
_INK, _MUTED, _GRID, _CARD = "#010203", "#010204", "#010205", "#010206"
_HEAT, _HEAT_INK = "#010207", "#010208"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _CARD: "var(--card)",
    _HEAT: "var(--heat)",
    _HEAT_INK: "var(--heat-ink)",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
}
_MARKERS = "osD^vPX*<>"
_DASHES = ("-", (0, (3, 1.2)), "-", (0, (1.2, 1)))
_OTHER_COLOURS = ("#a9792b", "#6741d9", "#d6336c", "#5c940d")
_X_AXES = {
    "frames": ("train frames seen", lambda point: float(point.frames_seen)),
    "bytes": ("bytes sent, up and down", lambda point: float(point.sent_bytes)),
    "time": ("wall time in s", lambda point: point.wall_s),
}
_Y_AXES = {
    "loss": ("training loss", lambda point: point.loss),
    "val_miou": ("validation mIoU", lambda point: point.val_miou),
}
_FULL_LABELS = 13
"""Classes up to which a confusion matrix shows its larger shares as numbers."""
_numbers = count()


def colours(algorithms: Sequence[str]) -> dict[str, str]:
    """A colour for each algorithm, the same in every report where the algorithm is a known one."""
    others = iter(_OTHER_COLOURS * len(algorithms))
    colours = {}
    for name in algorithms:
        try:
            colours[name] = algorithm_row(name).colour
        except SettingError:  # of a run made elsewhere, with what is not installed here
            colours[name] = next(others)
    return colours


def scores_chart(rows: Sequence[Summary]) -> str:
    """Local and OOD mIoU of each algorithm, mean ± standard deviation over seeds, as a dot chart."""
    colour = colours([row.algorithm for row in rows])
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure, axes = _figure(4.0, 0.7 + 0.34 * len(rows))
        axes.grid(axis="y", visible=False)
        for place, row in enumerate(rows):
            ends = [spread.mean for spread in (row.local_miou, row.ood_miou) if spread]
            axes.plot([min(ends, default=0), max(ends, default=0)], [place] * 2, color=_GRID, zorder=1)
            for spread, fill, offset in ((row.local_miou, True, -0.08), (row.ood_miou, False, 0.08)):
                if spread is None:
                    continue
                axes.errorbar(
                    [spread.mean],
                    [place + offset],
                    xerr=[spread.deviation],
                    fmt="o",
                    markersize=8,
                    color=colour[row.algorithm],
                    markerfacecolor=colour[row.algorithm] if fill else _CARD,
                    markeredgewidth=1.8,
                    elinewidth=1.3,
                    capsize=0,
                )
            if not ends:
                axes.text(0.01, place, "no result", va="center", color=_MUTED)
        _rows_axis(axes, [row.algorithm for row in rows])
        axes.set_xlim(left=0)
        axes.set_xlabel("test mIoU (filled: own frames, hollow: other vehicles')")
        return _svg(figure, "Local and OOD mIoU of each algorithm; the table below has the numbers.")


def traffic_chart(rows: Sequence[Summary]) -> str:
    """Bytes up and down of each algorithm, as bars on a logarithmic axis."""
    colour = colours([row.algorithm for row in rows])
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure, axes = _figure(4.0, 0.7 + 0.34 * len(rows))
        axes.grid(axis="y", visible=False)
        known = [v for row in rows for v in (row.uplink_bytes, row.downlink_bytes) if v]
        axes.set_xscale("log")
        axes.set_xlim(min(known, default=1e3) / 3, max(known, default=1e6) * 4)
        for place, row in enumerate(rows):
            for value, offset, alpha in ((row.uplink_bytes, -0.19, 1.0), (row.downlink_bytes, 0.19, 0.45)):
                if value:
                    axes.barh(place + offset, value, 0.34, color=colour[row.algorithm], alpha=alpha)
                axes.text(
                    value * 1.12 if value else min(known, default=1e3) / 2.7,
                    place + offset,
                    "–" if value is None else ("nothing sent" if not value else _bytes_text(value)),
                    va="center_baseline",
                    fontsize=7.5,
                    color=_MUTED,
                )
        _rows_axis(axes, [row.algorithm for row in rows])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes_text(value)))
        axes.set_xlabel("bytes of one run (strong: up, pale: down)")
        return _svg(figure, "Bytes up and down of each algorithm; the table below has the numbers.")


def curve_chart(data: ReportData, y: str, x: str) -> str | None:
    """`loss` or `val_miou` against `frames`, `bytes` or `time`: mean over seeds, band from least to greatest.

    None where no run has two points to draw a line through, and no algorithm has one.
    """
    x_label, read_x = _X_AXES[x]
    y_label, read_y = _Y_AXES[y]
    colour = colours(data.algorithms)
    drawn = 0
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure, axes = _figure(3.7, 2.6)
        for number, algorithm in enumerate(data.algorithms):
            lines = [
                line
                for run in data.runs_of(algorithm)
                if len(line := _line(run, read_x, read_y, positive=x == "bytes"))
            ]
            if not lines:
                continue
            drawn += 1
            grid, mean, least, greatest = mean_curve(lines, logarithmic=x == "bytes")
            axes.plot(
                grid,
                mean,
                color=colour[algorithm],
                # Algorithms can coincide: through a dashed line the one below shows.
                linestyle=_DASHES[number % len(_DASHES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                markevery=max(1, len(grid) // 8),
            )
            if len(lines) > 1:
                axes.fill_between(grid, least, greatest, color=colour[algorithm], alpha=0.16, linewidth=0)
        if not drawn:
            return None
        if x == "bytes":
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 40 * low else (1,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes_text(value)))
            axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left", fontsize=9.5, color=_INK)
        return _svg(figure, f"{y_label} against {x_label}, a line for each algorithm")


def mean_curve(
    lines: Sequence[NDArray[np.float64]], *, logarithmic: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(x, mean, least, greatest) of lines [N, 2] that are seeds of one algorithm.

    Lines of the same number of points have them at the same stages: their x is averaged too. Others are
    averaged over the stretch that all of them cover, as straight between points. `logarithmic` averages and
    interpolates x on a logarithmic scale.
    """
    scaled = [np.log(line[:, 0]) if logarithmic else line[:, 0] for line in lines]
    if len({len(line) for line in lines}) == 1:
        x, y_SN = np.mean(scaled, axis=0), np.stack([line[:, 1] for line in lines])
        return (np.exp(x) if logarithmic else x), y_SN.mean(0), y_SN.min(0), y_SN.max(0)
    first, last = max(xs[0] for xs in scaled), min(xs[-1] for xs in scaled)
    if first > last:
        # Nothing in common: the longest line stands for all.
        longest = max(range(len(lines)), key=lambda index: len(lines[index]))
        line = lines[longest]
        return line[:, 0], line[:, 1], line[:, 1], line[:, 1]
    grid = np.unique(np.concatenate(scaled))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([np.interp(grid, xs, line[:, 1]) for xs, line in zip(scaled, lines, strict=True)])
    return (np.exp(grid) if logarithmic else grid), values.mean(0), values.min(0), values.max(0)


def confusion_chart(counts: NDArray[np.int64], names: Sequence[str], label: str) -> str:
    """Shares of each true class (row) by predicted class (column) as a heat map; `counts` [K, K] pixels."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    size = len(names)
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure, axes = _figure(4.2, 4.0)
        axes.grid(visible=False)
        for row in range(size):
            for column in range(size):
                share = float(shares[row, column])
                if share >= 0.005:
                    axes.add_patch(
                        matplotlib.patches.Rectangle(
                            (column - 0.48, row - 0.48), 0.96, 0.96, facecolor=_HEAT, alpha=share, linewidth=0
                        )
                    )
                if share >= 0.05 and size <= _FULL_LABELS:
                    axes.text(
                        column,
                        row,
                        f"{round(100 * share)}",
                        ha="center",
                        va="center_baseline",
                        fontsize=6.8,
                        color=_HEAT_INK if share > 0.6 else _INK,
                    )
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        # Anchored at their ends: the page's font is narrower than the one measured here.
        axes.set_xticks(
            range(size), list(names), rotation=90, rotation_mode="anchor", ha="right", va="center"
        )
        axes.set_yticks(range(size), list(names))
        axes.set_xlabel("predicted")
        axes.set_ylabel("ground truth")
        return _svg(figure, label)


def _line(run: Run, read_x: object, read_y: object, *, positive: bool) -> NDArray[np.float64]:
    """[N, 2] of x and y where both are known."""
    assert callable(read_x) and callable(read_y)
    pairs: Mapping[float, float] = {
        read_x(point): read_y(point)
        for point in run.points
        if read_y(point) is not None and (read_x(point) > 0 or not positive)
    }
    return np.asarray(sorted(pairs.items()), np.float64).reshape(-1, 2)


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _rows_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names), color=_INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)


def _bytes_text(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("the loop ends with GB")


def _svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element for a page: scalable, described, its ids unique, its colours variables."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "blackfleet"}):
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    prefix = f"c{next(_numbers)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    for drawn, variable in _VARIABLES.items():
        text = text.replace(drawn, variable)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    text = re.sub(r"\n\s*", "\n", text)
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    view_box = re.search(r'viewBox="[^"]*"', head.group())
    assert view_box is not None
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg" '
        f'{view_box.group()} role="img" aria-label="{html.escape(label)}">' + text[head.end() :]
    )
