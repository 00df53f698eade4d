"""What benchmarks share: runs that are kept; and the sums behind their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import adaptation, narrow_link
from benchmarks.gap_closed import summarise
from benchmarks.runs import Run, finish
from fleet.compare.milestones import Point

_TINY: dict[str, Any] = {
    "broker": "memory",
    "vehicles": 1,
    "cores": 1,
    "rounds": 1,
    "image_size": "64x48",
    "encoder.name": "stride8-c4",
    "encoder.mode": "bind",
    "dataset.frames_per_sequence": 6,
    "first_order.epochs": 1,
    "algorithm": "frozen",
}


def test_runs_are_done_once_and_kept_and_others_are_refused_in_their_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {key: value for key, value in _TINY.items() if key != "cores"}  # a run keeps those it has had
    runs = [Run(folder=tmp_path / f"seed-{seed}", settings={**tiny, "seed": seed}) for seed in (0, 1)]
    finish(runs, jobs=1)
    results = [run.result() for run in runs]
    assert [result["seed"] for result in results] == [0, 1]
    written = (tmp_path / "seed-0" / "result.json").stat().st_mtime_ns
    finish(runs, jobs=1)
    assert (tmp_path / "seed-0" / "result.json").stat().st_mtime_ns == written
    assert "2 of 2 runs are complete already" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="other settings"):
        finish([Run(folder=tmp_path / "seed-0", settings={**tiny, "seed": 0, "rounds": 2})], jobs=1)


def test_a_run_that_fails_names_its_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"wrong failed: .*'nonsense'"):
        finish([Run(folder=tmp_path / "wrong", settings={**_TINY, "algorithm": "nonsense"})], jobs=1)


def _result(miou: float, uplink_bytes: int) -> dict[str, Any]:
    vehicles = {"car-01": {"frames_train": 320}}
    return {
        "mean_local_miou": miou,
        "uplink_bytes": uplink_bytes,
        "downlink_bytes": 10,
        "vehicles": vehicles,
    }


def test_gap_closed_is_the_share_of_the_way_from_frozen_to_split() -> None:
    report = summarise(
        {
            "frozen": [_result(0.2, 50), _result(0.4, 50)],
            "split": [_result(0.4, 100), _result(0.6, 100)],
            "blackfleet": [_result(0.45, 60), _result(0.45, 80)],
        }
    )
    assert report["frozen"]["gap_closed"] == 0
    assert report["split"]["gap_closed"] == 1
    assert report["blackfleet"]["gap_closed"] == pytest.approx(0.75)
    assert report["split"]["miou_mean"] == pytest.approx(0.5)
    assert report["split"]["miou_std"] == pytest.approx(0.02**0.5)
    assert report["blackfleet"]["uplink_bytes"] == 70


def test_no_gap_leaves_its_share_undefined() -> None:
    report = summarise({"frozen": [_result(0.4, 1)], "split": [_result(0.3, 1)]})
    assert report["split"]["gap_closed"] is None


def test_another_number_of_train_frames_is_refused() -> None:
    result = _result(0.4, 1)
    result["vehicles"]["car-01"]["frames_train"] = 100
    with pytest.raises(SystemExit, match="100 train frames, not 320"):
        summarise({"frozen": [result]})


def _adapted(before: float, after: float) -> dict[str, Any]:
    return {
        "initial_local_miou": before,
        "mean_local_miou": after,
        "initial_source_miou": 0.4,
        "mean_source_miou": 0.3,
        "uplink_bytes": 100,
        "downlink_bytes": 10,
        "vehicles": {"car-01": {"taken_back": 1}, "car-02": {"taken_back": 0}},
    }


def test_adaptation_is_measured_in_shares_of_the_white_box_gain() -> None:
    cell, bound = ("labels", "fog", "activation"), ("labels", "fog", "white-box")
    everything = {
        cell: [_adapted(0.1, 0.2), _adapted(0.1, 0.22)],
        bound: [_adapted(0.1, 0.24), _adapted(0.1, 0.24)],
    }
    row = adaptation.entry(cell, 1e-3, everything[cell], everything)
    assert row["share_of_white_box"] == pytest.approx(0.11 / 0.14)
    assert row["miou_before"] == pytest.approx(0.1)
    assert row["miou_std"] == pytest.approx(0.0002**0.5)
    assert (row["source_miou_before"], row["source_miou"]) == (0.4, 0.3)
    assert row["taken_back"] == 2
    everything[bound] = [_adapted(0.1, 0.05)] * 2
    assert adaptation.entry(cell, 1e-3, everything[cell], everything)["share_of_white_box"] is None


def test_every_adaptation_setting_has_the_methods_that_it_allows() -> None:
    assert not adaptation.means_something("no labels", "local-loss")
    assert not adaptation.means_something("labels", "cloud alone")
    assert adaptation.means_something("labels, the network learns", "cloud alone")
    for setting in adaptation.SETTINGS:
        bound = "nobody learns" if setting == adaptation.UNLABELLED else "white-box"
        assert adaptation.means_something(setting, bound)


def test_bytes_of_training_are_shares_of_the_reference() -> None:
    ends = {
        narrow_link.REFERENCE: [Point(sent_bytes=1000, wall_s=10, val_miou=0.3)],
        "blackfleet": [Point(sent_bytes=20, wall_s=5, val_miou=0.4)],
    }
    report = narrow_link.summarise({name: [_result(0.3, 1)] for name in ends}, ends)
    assert report["blackfleet"]["bytes_share"] == pytest.approx(1 / 50)
    assert report[narrow_link.REFERENCE]["bytes_share"] == 1
