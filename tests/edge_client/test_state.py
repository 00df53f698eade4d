"""A vehicle's state on disk: whole or not there, its own or refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_client.errors import StateError
from edge_client.state import StateStore, VehicleState


def _store(folder: Path, vehicle: str = "car-1", digest: str = "0123456789abcdef") -> StateStore:
    return StateStore(folder, vehicle=vehicle, bundle_digest=digest)


def _state(seed: int) -> VehicleState:
    random = np.random.default_rng(seed)
    return VehicleState(
        theta=random.normal(size=50).astype(np.float32),
        optimizer={"velocity": random.normal(size=50), "steps": np.array(seed, np.int64)},
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = _state(1)
    _store(tmp_path / "new" / "folder").commit(7, state)
    loaded = _store(tmp_path / "new" / "folder").load(7)
    assert loaded.theta.dtype == np.float32 and loaded.theta.tobytes() == state.theta.tobytes()
    assert set(loaded.optimizer) == {"velocity", "steps"}
    for name, array in state.optimizer.items():
        assert loaded.optimizer[name].dtype == array.dtype and loaded.optimizer[name].shape == array.shape
        assert loaded.optimizer[name].tobytes() == array.tobytes()


def test_same_state_gives_the_same_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        _store(tmp_path / folder).commit(1, _state(3))
    name = "turn-00000001.state"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_last_three_states_are_kept(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for turn in (1, 3, 5, 7):
        store.commit(turn, _state(turn))
    assert _names(tmp_path) == [f"turn-{turn:08d}.state" for turn in (3, 5, 7)]
    assert store.load(3).theta.tobytes() == _state(3).theta.tobytes()


def test_commit_of_an_earlier_turn_forgets_the_later_ones(tmp_path: Path) -> None:
    """A cloud that went back, or a new run in the same folder: what was learnt later never happened."""
    store = _store(tmp_path)
    for turn in (1, 3, 5):
        store.commit(turn, _state(turn))
    store.commit(3, _state(30))
    assert _names(tmp_path) == ["turn-00000001.state", "turn-00000003.state"]
    assert store.load(3).theta.tobytes() == _state(30).theta.tobytes()


def test_missing_state_names_what_is_there(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with pytest.raises(StateError, match=r"no state after turn 4 \(it has none\)"):
        store.load(4)
    store.commit(2, _state(2))
    with pytest.raises(StateError, match=r"it has \[2\]\); give the vehicle its old state folder back"):
        store.load(4)


@pytest.mark.parametrize("position", [0, 40, 100, -1], ids=["digest", "header", "middle", "end"])
def test_flipped_bit_is_found(position: int, tmp_path: Path) -> None:
    _store(tmp_path).commit(1, _state(1))
    path = tmp_path / "turn-00000001.state"
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"corrupt state file .*turn-00000001\.state: its checksum is wrong"):
        _store(tmp_path).load(1)


@pytest.mark.parametrize("keep", [0, 10, 32, 200])
def test_truncated_file_is_found(keep: int, tmp_path: Path) -> None:
    _store(tmp_path).commit(1, _state(1))
    path = tmp_path / "turn-00000001.state"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StateError, match=r"corrupt state file|unreadable state file") as caught:
        _store(tmp_path).load(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"turn_id": 9},
        {"extra": 1},
        {"arrays": {}},
        {"arrays": {"theta": ["<f4", [3], b"12345678"]}},
        {"arrays": {"theta": ["object", [1], b"12345678"]}},
        {"arrays": {"theta": ["nonsense", [1], b"1234"]}},
    ],
    ids=["version", "turn", "unknown key", "no theta", "wrong shape", "python objects", "unknown dtype"],
)
def test_file_of_another_format_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    _store(tmp_path).commit(1, _state(1))
    path = tmp_path / "turn-00000001.state"
    content = msgspec.msgpack.decode(path.read_bytes()[32:]) | change
    body = msgspec.msgpack.encode(content)
    path.write_bytes(hashlib.sha256(body).digest() + body)
    with pytest.raises(StateError) as caught:
        _store(tmp_path).load(1)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [{"vehicle": "car-2"}, {"digest": "f" * 16}], ids=["vehicle", "bundle"])
def test_state_of_another_vehicle_or_bundle_is_refused(other: dict[str, str], tmp_path: Path) -> None:
    _store(tmp_path).commit(1, _state(1))
    with pytest.raises(StateError, match="belongs to vehicle 'car-1' with bundle 0123456789ab, not to"):
        _store(tmp_path, **other).load(1)


def test_failing_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path)
    store.commit(1, _state(1))

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            store.commit(2, _state(2))
    assert _names(tmp_path) == ["turn-00000001.state"]
    assert store.load(1).theta.tobytes() == _state(1).theta.tobytes()


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path: Path) -> None:
    _store(tmp_path).commit(1, _state(1))
    (tmp_path / ".turn-00000002.state.abc.tmp").write_bytes(b"half a st")
    (tmp_path / "notes.txt").write_text("the operator's")
    assert _store(tmp_path).load(1).theta.tobytes() == _state(1).theta.tobytes()
    assert _names(tmp_path) == ["notes.txt", "turn-00000001.state"]
