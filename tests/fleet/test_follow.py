"""The log of a run in other processes, followed while it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloud_server.events import Recorder
from cloud_server.storage.recorders import LOG_NAME
from fleet.show.follow import LogFollower


class _Heard(Recorder):
    def __init__(self) -> None:
        self.names: list[str] = []

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        self.names.append(name)


def test_only_whole_new_lines_are_told_each_once(tmp_path: Path) -> None:
    log = tmp_path / LOG_NAME
    log.write_text('{"event": "of an earlier process"}\n')
    heard = _Heard()
    follower = LogFollower(tmp_path, heard)
    follower.update()
    with log.open("a") as file:
        file.write('{"event": "a", "n": 1}\n{"event": "to')
        file.flush()
        follower.update()
        assert heard.names == ["a"]
        file.write('rn\n{"event": "b"}\n')
        file.flush()
        follower.update()
    assert heard.names == ["a", "b"]


def test_log_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    heard = _Heard()
    follower = LogFollower(tmp_path, heard)
    follower.update()
    (tmp_path / LOG_NAME).write_text('{"event": "run"}\n')
    follower.update()
    assert heard.names == ["run"]
