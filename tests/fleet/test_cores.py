"""The cores that a run is planned for are those that it may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from process_fixtures import environment

from fleet.cores import usable_cores
from fleet.scenario import Scenario

MANY = len(os.sched_getaffinity(0))


def _groups(folder: Path, membership: str, files: dict[str, str]) -> dict[str, Path]:
    """A tree of control groups, and the file that says where in it a process is."""
    process_groups, groups = folder / "cgroup", folder / "mounted"
    process_groups.write_text(membership)
    groups.mkdir()
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content)
    return {"process_groups": process_groups, "groups": groups}


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "190000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MANY),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}, MANY),
        # Set on a group around that of the process.
        (
            "0::/slurm/job/step\n",
            {"slurm/cpu.max": "100000 100000\n", "slurm/job/cpu.max": "max 100000\n"},
            1,
        ),
        # The host's path, in a container that sees its own group as the root.
        ("0::/docker/1234\n", {"cpu.max": "100000 100000\n"}, 1),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "50000\n"},
            1,
        ),
        ("4:cpu,cpuacct:/a\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, MANY),
        ("4:cpuset:/\nnonsense\n", {"cpu.max": "what\n"}, MANY),
        ("", {}, MANY),
    ],
)
def test_a_quota_of_any_kind_counts(
    tmp_path: Path, membership: str, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(**_groups(tmp_path, membership, files)) == cores


def test_one_core_of_many_is_what_a_scenario_plans_for() -> None:
    core = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, [{core}]); from fleet.scenario import Scenario; "
        "print(Scenario().core_count, Scenario(cores=7).core_count)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "7"]


def test_nothing_else_counts_cores() -> None:
    """One home: what the machine has is never asked elsewhere."""
    root = Path(__file__).resolve().parents[2]
    packages = ("protocol", "datasets", "evaluation", "edge_client", "cloud_server", "fleet", "benchmarks")
    asking = [
        path.relative_to(root).as_posix()
        for package in packages
        for path in (root / package).rglob("*.py")
        if "cpu_count" in path.read_text()
    ]
    assert asking == ["fleet/cores.py"]
    assert Scenario().core_count == usable_cores()
