"""A file is the old one or the new one, whenever its writer dies or finds no room; and what storms add up."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from benchmarks.storm import add_up
from benchmarks.storm_faults import FaultWithin, Within, arm
from protocol.atomic import write_bytes_atomic

OLD, NEW = b"old" * 1000, b"new" * 1000


def _write(fault: FaultWithin, path: Path) -> None:
    arm(fault, path.parent)
    try:
        write_bytes_atomic(path, NEW)
    except OSError:
        raise SystemExit(2) from None


@pytest.mark.parametrize(
    ("kind", "moments", "code"),
    [
        # before: opening, fsync, rename, opening the folder, its fsync
        ("killed in a write", range(1, 6), -signal.SIGKILL),
        ("no room", range(1, 6), 2),
        ("torn write", [1, 1500, 2999], -signal.SIGXFSZ),
        ("file too large", [1, 1500, 2999], 2),
    ],
)
def test_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, kind: Within, moments: list[int], code: int
) -> None:
    path, met = tmp_path / "state", 0
    for moment in moments:
        path.write_bytes(OLD)
        process = multiprocessing.get_context("fork").Process(
            target=_write, args=(FaultWithin(kind, moment), path)
        )
        process.start()
        process.join()
        met += process.exitcode == code
        assert path.read_bytes() in (OLD, NEW)
        assert process.exitcode in (code, 0)
        if process.exitcode == 0:
            assert path.read_bytes() == NEW
    assert met >= 3


def test_results_of_machines_add_up_and_a_seed_counts_once() -> None:
    def line(seed: int, case: str, **faults: int) -> dict[str, object]:
        return {"seed": seed, "case": case, "same_bits": True, "surprises": [], "faults": faults}

    rows = add_up([line(1, "split", killed=3), line(2, "fedavg", killed=1), line(1, "split", killed=3)])
    assert list(rows) == ["split", "fedavg", "all"]
    assert (rows["all"]["runs"], rows["all"]["same"], rows["all"]["faults"]["killed"]) == (2, 2, 4)
