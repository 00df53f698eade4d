"""What waits on disk for the network: of one turn, within a quota, and whole or not there."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest
from turn_fixtures import empty_turn

from edge_client.spool import Spool
from protocol.messages import Turn

TURN = empty_turn(grant="a" * 16, turn_id=1)


def _spool(folder: Path, turn: Turn = TURN, *, model: str = "m", quota_bytes: int = 1000) -> Spool:
    spool = Spool(folder, quota_bytes)
    spool.begin(turn, model)
    return spool


def test_whoever_does_the_turn_again_finds_what_was_made_and_nobody_else(tmp_path: Path) -> None:
    first = _spool(tmp_path / "spool")
    assert first.put(b"features", b"123") and first.put(b"request", b"4", of_attempt=True)
    again = _spool(tmp_path / "spool", msgspec.structs.replace(TURN, grant="b" * 16))
    assert again.get(b"features") == b"123"
    assert again.get(b"request", of_attempt=True) is None, "requests belong to an attempt"
    assert (again.pieces, again.bytes) == (1, 3 + 16)
    assert _spool(tmp_path / "spool", model="after an update").get(b"features") is None
    again.put(b"features", b"123")
    assert _spool(tmp_path / "spool", msgspec.structs.replace(TURN, seed=1)).pieces == 0
    again.clear()
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: bytes([raw[0] ^ 1]) + raw[1:], lambda _: b""]
)
def test_damaged_piece_is_as_good_as_none(tmp_path: Path, damage: object) -> None:
    spool = _spool(tmp_path)
    spool.put(b"features", b"123")
    [path] = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert spool.get(b"features") is None
    assert spool.put(b"features", b"123") and spool.get(b"features") == b"123"


def test_quota_holds_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    spool = _spool(tmp_path, quota_bytes=100)
    assert spool.put(b"a", bytes(60)) and spool.put(b"a", bytes(70)), "in place of what was there"
    assert not spool.put(b"b", bytes(60)) and not spool.put(b"c", bytes(60))
    assert (spool.pieces, spool.bytes) == (1, 86)
    [record] = caplog.records
    assert (
        "has no room for more of this turn: it may take 0.0001 MB (--spool-mb); 1 pieces"
        in record.getMessage()
    )


def test_disk_without_room_is_said_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spool").touch()  # a file where the folder should be
    assert not _spool(tmp_path / "spool").put(b"a", b"1")
    assert "File exists" in caplog.records[0].getMessage()
