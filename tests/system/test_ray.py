"""A fleet on a Ray cluster: three nodes on this machine, one of which is lost in the middle."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_fixtures import ROOT, Launch, Refuse, learnt, write_scenario

pytestmark = pytest.mark.timeout(300)

MISSING = "ray is not installed (the extra `ray`)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray's own three nodes on one machine; the head has no room for vehicles."""
    pytest.importorskip("ray", reason=MISSING)
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ray", "auto"], ["package ray", "pip install"]),
        (["--ray", "127.0.0.1:1"], ["127.0.0.1:1", "ray status"]),
        (["--ray", "ray://head:10001"], ["auto or HOST:PORT", "'ray://head:10001'"]),
        (["--ray", "auto", "--ray-resources", "CPU=two"], ["--ray-resources", "NAME=AMOUNT", "'CPU=two'"]),
        (["--ray-cloud", "CPU=2"], ["--ray-cloud", "needs --ray"]),
    ],
)
def test_cluster_that_can_not_be_is_one_line(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    line = refuse("launch", "--run-dir", tmp_path / "run", *options)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_node_that_is_lost_changes_nothing_of_what_is_learnt(
    cluster: Any, tmp_path: Path, frames_root: Path
) -> None:
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2) for _ in range(3))}
    cluster.wait_for_nodes()
    scenario = write_scenario(
        tmp_path / "scenario.yaml",
        frames_root,
        vehicles=12,
        vehicles_per_host=4,
        first_order={"epochs": 1},
        zeroth_order={"batches": 1},
        evaluation={"ood_frames": 1, "overlays": 0},
    )
    calm, shaken = Launch(tmp_path / "calm", scenario), Launch(tmp_path / "shaken", scenario)
    try:
        calm.start().complete()
        shaken.start("--ray", cluster.address, "--ray-cloud", "CPU=1")
        # Of host-02's four vehicles one has had its second turn, one is in it, two are to come.
        shaken.until("turn", vehicle="car-06", round=2)
        log = shaken.run_folder / "processes" / "host-02.log"
        cluster.remove_node(nodes[log.read_text().splitlines()[0].split()[-1]], allow_graceful=False)
        shaken.complete()
    finally:
        calm.stop()
        shaken.stop()
    assert learnt(shaken.run_folder) == learnt(calm.run_folder)
    assert [line.split("--- ")[1].split(": ")[0] for line in log.read_text().splitlines() if "lost" in line]
    assert set(shaken.ids()) == {"broker"}
    hosts = [path.read_text() for path in log.parent.glob("host-*.log")]
    assert len(hosts) == 3 and all("on node" in host for host in hosts)
