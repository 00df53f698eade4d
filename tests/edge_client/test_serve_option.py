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
