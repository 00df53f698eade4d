"""States of many vehicles in one file: as those in folders, and whole however their writer dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_client.errors import StateError
from edge_client.state import StateStore, VehicleState
from edge_client.state_files import StateDatabase

_WRITER = """
import sys
from pathlib import Path
import numpy as np
from edge_client.state import StateStore, VehicleState
from edge_client.state_files import StateDatabase

folder = Path(sys.argv[1])
files = StateDatabase(folder / "host.sqlite").of("car-1")
store = StateStore(folder, vehicle="car-1", bundle_digest="d", files=files)
for turn in range(1, 10**6):
    store.commit(turn, VehicleState(theta=np.full(20_000, turn, np.float32), optimizer={}))
    print(turn, flush=True)
"""


def _store(folder: Path, vehicle: str) -> StateStore:
    files = StateDatabase(folder / "host.sqlite").of(vehicle)
    return StateStore(folder / vehicle, vehicle=vehicle, bundle_digest="d", files=files)


def test_vehicles_of_one_file_keep_their_own_last_three_states(tmp_path: Path) -> None:
    stores = {name: _store(tmp_path, name) for name in ("car-1", "car-2")}
    for turn in (1, 3, 5, 7):
        for number, store in enumerate(stores.values()):
            state = VehicleState(theta=np.full(4, turn + number, np.float32), optimizer={"t": np.arange(2)})
            store.commit(turn, state, after_turn=None)
    for number, name in enumerate(stores):
        again = _store(tmp_path, name)
        for turn in (3, 5, 7):
            loaded = again.load(turn)
            assert loaded.theta.tobytes() == np.full(4, turn + number, np.float32).tobytes()
            assert loaded.optimizer["t"].tolist() == [0, 1]
        with pytest.raises(StateError, match=r"no state after turn 1 \(it has \[3, 5, 7\]\)"):
            again.load(1)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_writer_that_is_killed_leaves_whole_states_and_nothing_that_it_has_said_is_lost(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "1\n"
        time.sleep(0.1)
        os.kill(writer.pid, signal.SIGKILL)
        said = int((["1", *writer.stdout.read().split()])[-1])
    turns = StateDatabase(tmp_path / "host.sqlite").of("car-1").turns()
    assert turns[-1] in (said, said + 1) and len(turns) <= 4
    for turn in turns:
        assert set(_store(tmp_path, "car-1").load(turn).theta.tolist()) == {float(turn)}


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "host.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StateError, match=r"can't use .*host\.sqlite: .*; put an intact one back") as caught:
        StateDatabase(tmp_path / "host.sqlite")
    assert "\n" not in str(caught.value)
