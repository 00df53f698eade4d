"""Events reach every recorder as JSON types, in order; the log on disk keeps them line by line."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloud_server.events import Events, Recorder
from cloud_server.storage.recorders import LOG_NAME, Board, RunLog, append_event


class _Heard(Recorder):
    def __init__(self, name: str, heard: list[tuple[Any, ...]]) -> None:
        self._name = name
        self._heard = heard

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        self._heard.append((self._name, name, dict(values)))

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._heard.append((self._name, tag, value, step))


def test_every_recorder_hears_in_the_order_of_subscription_and_no_nan() -> None:
    heard: list[tuple[Any, ...]] = []
    events = Events(_Heard("a", heard), Recorder(), _Heard("b", heard))
    events.event("learned", loss=math.nan, frames=3)
    events.scalar("loss", 0.5, 7)
    events.scalar("loss", math.inf, 8)
    told = {"loss": None, "frames": 3}
    assert heard == [
        ("a", "learned", told),
        ("b", "learned", told),
        ("a", "loss", 0.5, 7),
        ("b", "loss", 0.5, 7),
    ]


def test_log_keeps_events_and_stands_after_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / LOG_NAME).write_text('{"event": "tor')
    with RunLog(tmp_path) as log:
        Events(log).event("committed", stage=1, miou=math.nan)
        Events(log).scalar("loss", 0.5, 1)
    torn, line = (tmp_path / LOG_NAME).read_text().splitlines()
    assert torn == '{"event": "tor'
    content = json.loads(line)
    assert content.pop("time") > 0
    assert content == {"event": "committed", "stage": 1, "miou": None}


def test_cloud_and_launcher_write_whole_lines_side_by_side(tmp_path: Path) -> None:
    """Also long ones: those of a large fleet are longer than what a file's buffer holds."""
    many = {f"car-{number}": "x" * 20 for number in range(1000)}

    def launcher() -> None:
        for number in range(100):
            append_event(tmp_path, "crashed", {"number": number})

    with RunLog(tmp_path) as log:
        thread = threading.Thread(target=launcher)
        thread.start()
        for number in range(100):
            log.event("joined", {"number": number, **many})
        thread.join()
    events = [json.loads(line) for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    for name in ("joined", "crashed"):
        assert [event["number"] for event in events if event["event"] == name] == list(range(100))


def test_board_keeps_curves_alone(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        Events(board).event("committed", stage=1)
        Events(board).scalar("loss", 0.5, 1)
    [written] = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in written.read_bytes()
    assert b"committed" not in written.read_bytes()
