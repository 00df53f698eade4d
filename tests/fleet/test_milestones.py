"""Milestones of a comparison: who reaches the reference's quality, from curves of training alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fleet.compare.milestones import COLUMNS, Point, find_milestones, rows
from fleet.report.data import read_training


def curve(*points: tuple[int, float, float]) -> tuple[Point, ...]:
    """From (bytes, seconds, mIoU) of each."""
    return tuple(Point(sent_bytes=b, wall_s=s, val_miou=m) for b, s, m in points)


REFERENCE = curve((1000, 10, 0.1), (2000, 20, 0.3), (3000, 30, 0.2))
"""Ends below its best: its end is what counts."""
FRUGAL = curve((20, 15, 0.19), (30, 25, 0.21), (40, 35, 0.25))
GREEDY = curve((5000, 1, 0.4))


def test_goal_is_the_end_of_the_reference_of_the_same_seed() -> None:
    content = find_milestones(
        ["ref", "frugal"],
        "ref",
        {
            ("ref", 0): REFERENCE,
            ("ref", 1): curve((3000, 30, 0.9)),
            ("frugal", 0): FRUGAL,
            ("frugal", 1): FRUGAL,
        },
    )
    reference, frugal = content["algorithms"]
    assert content["reference"] == "ref"
    assert (reference["reached"], reference["seeds"]) == (2, 2)
    assert reference["bytes_to_reach"] == pytest.approx((2000 + 3000) / 2)
    assert (frugal["reached"], frugal["seeds"]) == (1, 2)
    assert (frugal["bytes_to_reach"], frugal["wall_s_to_reach"]) == (30, 25)
    assert frugal["bytes_share"] == pytest.approx(30 / 3000)
    assert frugal["val_miou_at_bytes"] == pytest.approx(0.25)
    assert frugal["val_miou_at_wall_s"] == pytest.approx(0.21)
    assert (frugal["bytes"], frugal["wall_s"], frugal["final_val_miou"]) == (40, 35, 0.25)
    assert rows(content)[1] == (
        "frugal", "0.250", "40 B", "0:35", "1 of 2", "30 B (0.01x)", "0:25", "0.250", "0.210",
    )  # fmt: skip
    assert all(len(row) == len(COLUMNS) for row in rows(content))


def test_what_is_not_reached_or_not_known_is_none() -> None:
    content = find_milestones(
        ["ref", "slow", "greedy", "silent"],
        "ref",
        {("ref", 0): REFERENCE, ("slow", 0): curve((10, 99, 0.1)), ("greedy", 0): GREEDY, ("silent", 0): ()},
    )
    _, slow, greedy, silent = content["algorithms"]
    assert (slow["reached"], slow["bytes_to_reach"], slow["val_miou_at_wall_s"]) == (0, None, None)
    assert (greedy["reached"], greedy["val_miou_at_bytes"], greedy["val_miou_at_wall_s"]) == (1, None, 0.4)
    assert (silent["seeds"], silent["final_val_miou"], silent["reached"]) == (1, None, 0)
    without = find_milestones(["slow"], "ref", {("slow", 0): FRUGAL})["algorithms"][0]
    assert (without["reached"], without["val_miou_at_bytes"], without["final_val_miou"]) == (0, None, 0.25)
    assert rows(content)[3][1:] == ("–", "–", "–", "0 of 1", "–", "–", "–", "–")


def test_training_alone_begins_where_the_log_says_and_all_vehicles_are_known(tmp_path: Path) -> None:
    def line(stage: int, validated: int, **more: object) -> dict[str, object]:
        spent = {"uplink_bytes": 100 * stage + 500, "downlink_bytes": 7, "wall_s": 10.0 * stage}
        score = {"val_miou": 0.1 * stage, "validated": validated, "frames_seen": stage, "loss": 1.0}
        return {"event": "curve", "stage": stage, "round": 1, **spent, **score, **more}

    start = {"event": "training", "stage": 0, "uplink_bytes": 450, "downlink_bytes": 2, "wall_s": 4.0}
    log = tmp_path / "log.jsonl"

    def written(*lines: object) -> tuple[Point, ...]:
        log.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        return read_training(log, vehicles=2)

    points = written(start, line(1, 1), line(2, 2), line(3, 2), line(4, 2, val_miou=None))
    assert [(p.sent_bytes, p.wall_s) for p in points] == [(255, 16.0), (355, 26.0)]
    assert [p.val_miou for p in points] == pytest.approx([0.2, 0.3])
    assert written(line(1, 2)) == ()
    assert read_training(tmp_path / "none.jsonl", vehicles=2) == ()
