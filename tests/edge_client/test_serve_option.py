"""Class maps of what a camera sees now: the newest frame, the model's own answer, and how fast."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_predict import model_bytes, picture

from datasets.labels import CAMVID
from edge_client.predict.latency import Pace
from edge_client.predict.model import Model
from edge_client.predict.on_board import OnBoard
from edge_client.source.choice import Choice
from edge_client.source.settings import SourceConfig
from protocol.errors import SettingError


def test_newest_frame_is_served_and_others_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes())
    model, folder, alive = Model(path), tmp_path / "serving", []
    rgb_HWC = picture(3)
    with OnBoard(model, folder, alive=lambda: alive.append(1)) as serving:
        for seed in (1, 2):
            for _ in range(5):
                serving.offer(picture(seed)[:, :, ::-1])
        serving.offer(rgb_HWC[:, :, ::-1])
        deadline = time.monotonic() + 20
        while serving.dropped + serving.served < 11 and time.monotonic() < deadline:
            time.sleep(0.01)
    ids_HW = cv2.imread(str(folder / "classes.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(ids_HW, CAMVID.to_ids(model.predict(rgb_HWC)))
    told = json.loads((folder / "serving.json").read_text())
    assert told["served"] + told["dropped"] == 11 and told["dropped"] > 0
    assert set(told["latency_ms"]) == {"p50", "p95", "p99"}
    assert 0 <= told["uncertainty"] <= 1 and serving.uncertainty() is not None
    assert abs(told["taken_at"] - time.time()) < 30
    assert alive, "a supervisor hears of it"
    assert "class maps" in str(serving) and "on CPUExecutionProvider" in str(serving)


def test_pace_is_frames_a_second_and_percentiles_of_their_ages() -> None:
    pace = Pace()
    assert (pace.as_json(), str(pace)) == (
        {"served": 0, "rate_hz": 0.0, "latency_ms": {}},
        "0 class maps, 0.0 a second",
    )
    for number in range(101):
        pace.note(number / 10, number / 10 + (0.5 if number == 100 else number / 1000))
    assert pace.as_json() == {
        "served": 101,
        "rate_hz": round(101 / 10.5, 2),
        "latency_ms": {"p50": 50.0, "p95": 95.0, "p99": 99.0},
    }


def test_nobody_drives_with_a_drive_that_is_read_at_once(tmp_path: Path) -> None:
    drive = {"uri": "file://drive.mp4", "recording": str(tmp_path), "serve": "model.onnx"}
    with pytest.raises(SettingError, match="nobody drives with file"):
        SourceConfig(**drive)  # type: ignore[arg-type]
    assert SourceConfig(**drive, loop=True).is_played  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="nothing is served to"):
        SourceConfig(uri="csi://0", recording="r", serve_to="s")
    with pytest.raises(
        SettingError, match="only a model that is served says where it is unsure: give --serve"
    ):
        SourceConfig(uri="csi://0", recording="r", unsure=0.2)
    with pytest.raises(SettingError, match="unsure must be above 0 and below 1, got 1"):
        SourceConfig(uri="csi://0", recording="r", serve="cloud", unsure=1)


def test_of_the_frames_worth_keeping_the_share_stays_of_which_the_model_is_least_sure() -> None:
    random = np.random.default_rng(0)
    choice = Choice(every_s=1.0, changed=0.0, unsure=0.25)
    uncertainties = random.uniform(0.1, 0.5, 400)
    kept = [
        uncertainty
        for number, uncertainty in enumerate(uncertainties)
        # Ten frames a second, all as unsure: one of them is asked about.
        if any([choice.is_worth(picture(1), number + tenth / 10, uncertainty) for tenth in range(10)])
    ]
    assert 0.2 < len(kept) / len(uncertainties) < 0.32
    assert np.mean(np.array(kept[10:]) > 0.38) > 0.9, "once it is known what is unsure here"
    silent = Choice(every_s=1.0, changed=0.0, unsure=0.25)
    assert all(silent.is_worth(picture(1), float(second), None) for second in range(20)), "nobody says"
