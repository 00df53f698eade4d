"""Runs cut at the same budget."""

from __future__ import annotations

import pytest

from fleet.compare.equal import COLUMNS, caption, check_budget, find_equal, rows
from fleet.compare.milestones import Point
from fleet.errors import OperatorError


def curve(*points: tuple[int, int, float | None, float]) -> tuple[Point, ...]:
    """From (bytes, steps, forward equivalents, mIoU) of each."""
    return tuple(
        Point(sent_bytes=b, wall_s=0, val_miou=m, steps=s, forward_equivalents=c) for b, s, c, m in points
    )


CURVES = {
    ("thrifty", 0): curve((10, 4, 50, 0.1), (20, 8, 100, 0.2)),
    ("greedy", 0): curve((15, 4, 60, 0.3), (25, 8, 120, 0.4), (35, 12, 180, 0.5)),
    ("heavy", 0): curve((90, 9, 990, 0.9)),
}


@pytest.mark.parametrize(
    ("budget", "cut", "spent", "total"),
    [
        ("bytes", {"thrifty": 0.2, "greedy": 0.3, "heavy": None}, 15, 35),
        ("steps", {"thrifty": 0.2, "greedy": 0.4, "heavy": None}, 8, 12),
        ("compute", {"thrifty": 0.2, "greedy": 0.3, "heavy": None}, 60, 180),
    ],
)
def test_runs_are_cut_at_the_least_that_any_of_them_spends(
    budget: str, cut: dict[str, float | None], spent: float, total: float
) -> None:
    content = find_equal(budget, list(cut), CURVES)
    assert {entry["algorithm"]: entry["val_miou_mean"] for entry in content["algorithms"]} == cut
    assert content["budget"] == content["algorithms"][0]["spent"] == content["algorithms"][0]["total"]
    greedy = content["algorithms"][1]
    assert (greedy["spent"], greedy["total"], greedy["final_val_miou"]) == (spent, total, 0.5)
    assert all(len(row) == len(COLUMNS) for row in rows(content))
    assert rows(content)[2][1:3] == ("–", "–")
    assert "rates fell" in caption(content)


def test_each_seed_has_a_budget_of_its_own() -> None:
    curves = {**CURVES, ("thrifty", 1): curve((99, 1, 1, 0.4)), ("greedy", 1): curve((15, 1, 1, 0.6))}
    del curves["heavy", 0]
    thrifty, greedy = find_equal("bytes", ["thrifty", "greedy"], curves)["algorithms"]
    assert (thrifty["val_miou_mean"], thrifty["val_miou_std"]) == (0.2, 0.0), "seed 1 has none within it"
    assert greedy["val_miou_mean"] == pytest.approx((0.3 + 0.6) / 2)


def test_run_that_does_not_say_is_named() -> None:
    content = find_equal("compute", ["old", "greedy"], {**CURVES, ("old", 0): curve((5, 1, None, 0.1))})
    assert content["missing"] == ["old (seed 0)"] and rows(content) == []
    assert "can't be had" in caption(content) and "old (seed 0)" in caption(content)


@pytest.mark.parametrize(
    ("budget", "learns", "words"),
    [
        ("joules", True, "must be one of steps, bytes, compute, got 'joules'"),
        ("bytes", True, "centralized has no fleet that sends or computes anything"),
        ("compute", True, "centralized has no fleet"),
        ("steps", False, "no network takes any"),
    ],
)
def test_budget_that_runs_do_not_spend_is_refused(budget: str, learns: bool, words: str) -> None:
    check_budget("steps", ["split", "centralized"], network_learns=True)
    with pytest.raises(OperatorError, match=words):
        check_budget(budget, ["split", "centralized"], network_learns=learns)
