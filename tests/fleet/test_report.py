"""The report's content, from folders built here: numbers, pictures, and what is missing."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from report_fixtures import ALGORITHMS, VEHICLES, build_comparison
from rich.console import Console
from typer.testing import CliRunner

from cloud_server.algorithms import table
from datasets.labels import CITYSCAPES
from evaluation.predictions import prediction_name
from fleet.cli.app import app
from fleet.errors import OperatorError
from fleet.frames.allocation import allocate, open_data
from fleet.report.charts import colours, mean_curve
from fleet.report.data import collect, read_curve
from fleet.report.gallery import gather_pictures
from fleet.report.page import write_report


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_comparison(tmp_path_factory.mktemp("report") / "compare")


@pytest.fixture(scope="module")
def page(comparison: Path) -> str:
    return write_report(comparison).read_text(encoding="utf-8")


def row_of(page: str, first: str) -> list[str]:
    """The texts of the first table row that begins with `first`."""
    for row in re.findall(r"<tr>.*?</tr>", page, flags=re.S):
        cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)]
        if cells[0] == first:
            return cells
    raise AssertionError(f"no row {first}")


def images_of(page: str) -> list[np.ndarray]:
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        for data in re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    ]


@pytest.mark.parametrize("algorithm", table.ALGORITHMS)
def test_colour_of_an_algorithm_is_the_same_whoever_stands_beside_it(algorithm: str) -> None:
    beside = colours(["somebody's", "another", *reversed(table.ALGORITHMS)])
    assert colours([algorithm])[algorithm] == beside[algorithm]
    assert len(set(beside.values())) == len(beside)


def test_summary_row_equals_the_comparison(comparison: Path, page: str) -> None:
    content = json.loads((comparison / "compare.json").read_text())
    for entry in content["summary"]:
        cells = row_of(page, entry["algorithm"])
        assert cells[1] == f"{entry['local_miou_mean']:.3f} ± {entry['local_miou_std']:.3f}"
        assert cells[2] == f"{entry['ood_miou_mean']:.3f} ± {entry['ood_miou_std']:.3f}"
        assert (
            cells[6:8] == [f"{entry['forwards_per_frame']:.1f}", f"{entry['steps']:,.0f}"] == ["50.0", "180"]
        )
        assert cells[8] == f"{entry['frames_seen']:,}"
        assert cells[9] == f"{entry['queries']:,}"


def test_confusion_is_summed_over_seeds(comparison: Path) -> None:
    data = collect(comparison)
    for algorithm in ALGORITHMS:
        counts = data.confusion(algorithm)
        assert counts is not None
        expected = sum(np.asarray(run.result["confusion"]) for run in data.runs_of(algorithm))
        assert (counts == expected).all()


def test_pictures_are_predictions_in_the_colours_of_the_classes(comparison: Path, page: str) -> None:
    data = collect(comparison)
    gallery = gather_pictures(data)
    assert set(gallery.vehicles) == set(VEHICLES)
    frame = gallery.vehicles["car-01"][0]
    picture = frame.predictions["split"]
    assert picture is not None
    drawn = images_of(f'src="{picture.uri}"')[0]
    path = comparison / "split-seed0" / "predictions" / "car-01" / prediction_name(frame.key)
    expected = CITYSCAPES.colorize(CITYSCAPES.to_train_ids(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
    assert (drawn == expected).all()
    assert picture.uri in page
    assert all(image.size for image in images_of(page))


def test_frame_is_shown_as_its_vehicle_sees_it(comparison: Path) -> None:
    data = collect(comparison)
    assert data.scenario is not None
    source = open_data(data.scenario, comparison, Console(quiet=True))
    refs = {ref.key: ref for ref in source.refs}
    for vehicle, share in allocate(data.scenario, source).items():
        shown = gather_pictures(data).vehicles[vehicle][0]
        image = source.load_image(refs[shown.key])
        seen = share.sight.sight().apply(image, shown.key) if share.sight else image
        [drawn] = images_of(f'src="{shown.frame.uri}"')
        assert drawn.shape == seen.shape
        # What JPEG changes is little beside fog.
        assert np.abs(drawn.astype(float) - seen).mean() < 8
        assert share.sight is None or np.abs(drawn.astype(float) - image).mean() > 20


def test_what_runs_did_beside_the_usual_is_stated(page: str) -> None:
    assert "car-02: fog:5" in page
    assert "1 step after each, from at most 512 frames" in page


def test_page_loads_nothing_and_stays_small(comparison: Path, page: str) -> None:
    assert len(page) < 4_000_000
    # It links replays beside it, each a file of its own; a link loads nothing.
    links = re.findall(r'<a href="([^#"][^"]*)"', page)
    assert links and all((comparison / link).name == "replay.html" for link in links)
    assert all((comparison / link).is_file() for link in links)
    assert not re.search(r'(?:src|href)="(?!data:|#|[\w/-]+/replay\.html")', page)
    assert "@import" not in page and "<script" not in page
    assert not re.search(r"url\((?!#)", page)


def test_ids_on_the_page_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 10


def test_milestones_stand_in_a_table(comparison: Path) -> None:
    page = write_report(comparison).read_text()
    rows = page[page.index("Up to the reference's quality") :]
    assert f"that {ALGORITHMS[0]} of the same seed ends with" in rows
    assert row_of(rows, "split")[1:] == [
        "0.410", "112.3 kB", "1:06", "2 of 2", "112.3 kB (1x)", "1:06", "0.410", "0.410",
    ]  # fmt: skip
    assert "Up to the reference" not in write_report(comparison / "split-seed0").read_text()


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    folder = build_comparison(tmp_path / "compare")
    content = json.loads((folder / "compare.json").read_text())
    for run in content["runs"]:
        if run["algorithm"] == "split":
            run["algorithm"] = "<b>split & co"
    content["algorithms"] = [ALGORITHMS[0], "<b>split & co"]
    (folder / "compare.json").write_text(json.dumps(content))
    page = write_report(folder).read_text()
    assert "<b>split" not in page
    assert "&lt;b&gt;split &amp; co" in page


def test_single_run_makes_a_report(comparison: Path) -> None:
    page = write_report(comparison / "split-seed0").read_text()
    assert "split on generated streets" in page
    assert len(row_of(page, "split")) == 11


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = build_comparison(tmp_path / "compare")
    content = json.loads((folder / "compare.json").read_text())
    failed = next(run for run in content["runs"] if run["algorithm"] == "split" and run["seed"] == 1)
    failed["result"] = None
    (folder / "compare.json").write_text(json.dumps(content))
    (folder / f"{ALGORITHMS[0]}-seed0" / "log.jsonl").unlink()
    for path in (folder / "split-seed0" / "predictions" / "car-02").iterdir():
        path.unlink()
    page = write_report(folder).read_text()
    assert "split: 1 of 2 runs finished" in page
    assert f"No curve in the log of {ALGORITHMS[0]} (seed 0)" in page
    assert "no prediction" in page
    assert "±" not in row_of(page, "split")[1]


def test_bare_result_makes_a_report(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"algorithm": "frozen"}')
    page = write_report(tmp_path).read_text()
    assert row_of(page, "frozen")[1:] == ["–"] * 10
    assert "No run has logged a curve" in page
    assert "partition.json" in page


def test_frames_that_are_gone_are_named(tmp_path: Path) -> None:
    folder = build_comparison(tmp_path / "compare")
    for path in sorted((tmp_path / "compare-data").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert "The frames can&#39;t be read" in write_report(folder).read_text()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "holds neither result.json nor compare.json"),
        ({"result.json": "{"}, "is not JSON"),
        ({"result.json": "[]"}, "must hold a JSON object"),
        ({"result.json": "{}"}, "names no algorithm"),
        ({"compare.json": "{}"}, "names no runs"),
    ],
)
def test_folder_without_a_result_is_refused(
    tmp_path: Path, content: dict[str, str] | None, expected: str
) -> None:
    for name, text in (content or {}).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(OperatorError, match=expected) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_command_writes_the_page_and_prints_its_path(comparison: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(comparison)])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(comparison / "report.html")


def test_curve_of_a_torn_log_keeps_the_last_of_each_stage(tmp_path: Path) -> None:
    def event(stage: int, frames: int, miou: float | None) -> str:
        return json.dumps(
            {"event": "curve", "stage": stage, "round": 1, "frames_seen": frames, "loss": 1.0,
             "val_miou": miou, "uplink_bytes": 3, "downlink_bytes": 4, "wall_s": 1.5}
        )  # fmt: skip

    log = tmp_path / "log.jsonl"
    log.write_text("\n".join([event(1, 10, 0.1), event(1, 10, 0.2), '{"event": "cur', event(2, 20, None)]))
    points = read_curve(log)
    assert [(point.frames_seen, point.val_miou, point.sent_bytes) for point in points] == [
        (10, 0.2, 7),
        (20, None, 7),
    ]


def test_mean_curve_of_lines_with_other_points() -> None:
    short = np.array([[0.0, 0.0], [2.0, 2.0]])
    longer = np.array([[0.0, 2.0], [1.0, 2.0], [4.0, 2.0]])
    x, mean, least, greatest = mean_curve([short, longer], logarithmic=False)
    np.testing.assert_allclose(x, [0, 1, 2])
    np.testing.assert_allclose(mean, [1, 1.5, 2])
    np.testing.assert_allclose(least, [0, 1, 2])
    np.testing.assert_allclose(greatest, [2, 2, 2])


def test_mean_curve_of_stages_averages_where_they_lie() -> None:
    lines = [np.array([[1.0, 0.1], [3.0, 0.3]]), np.array([[2.0, 0.3], [5.0, 0.5]])]
    x, mean, least, greatest = mean_curve(lines, logarithmic=False)
    np.testing.assert_allclose(x, [1.5, 4])
    np.testing.assert_allclose(mean, [0.2, 0.4])
    np.testing.assert_allclose(least, [0.1, 0.3])
    np.testing.assert_allclose(greatest, [0.3, 0.5])
