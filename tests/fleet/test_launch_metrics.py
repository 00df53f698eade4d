"""Metrics of a launched run, checked by Prometheus' own tool, and the dashboard that shows them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from pathlib import Path

import pytest
from fleet_fixtures import TinyFleet
from process_fixtures import ROOT
from rich.console import Console

import cloud_server.command as cloud_main
import edge_client.command as vehicle_main
from cloud_server.storage.recorders import LOG_NAME
from edge_client.host import Host
from edge_client.metrics import VehicleNow, host_families
from fleet.broker import free_port
from fleet.cli.observers import observed
from fleet.scenario import Scenario
from fleet.show.metrics import LaunchMetrics
from protocol.metrics import Family, MetricsServer, process_families
from protocol.mqtt.connect import connector
from protocol.mqtt.transport import NetworkLoop

LABELS = {"run": "tiny", "algorithm": "blackfed-v2", "dataset": "camvid", "seed": "0"}


def _hosts() -> list[Family]:
    return list(host_families(lambda: [VehicleNow("car-01", True, False, 3)]))


@pytest.fixture(scope="module")
def launched(undisturbed: TinyFleet) -> LaunchMetrics:
    """As it was when the run ended, however long ago other tests have run it."""
    ended_s = json.loads((undisturbed.run_folder / LOG_NAME).read_text().splitlines()[-1])["time"]
    return LaunchMetrics(undisturbed.run_folder, LABELS, clock=lambda: ended_s)


def test_numbers_are_those_of_the_result(undisturbed: TinyFleet, launched: LaunchMetrics) -> None:
    result = json.loads((undisturbed.run_folder / "result.json").read_text())
    found = {family.name: dict(family.samples) for family in launched.families()}
    assert found["blackfleet_run_complete"] == {(): 1}
    # What is said after the last turn, the farewell for instance, is in the result alone.
    sent = found["blackfleet_uplink_bytes_total"][()]
    assert isinstance(sent, int) and 0.95 * result["uplink_bytes"] < sent <= result["uplink_bytes"]
    assert found["blackfleet_queries_total"][()] == sum(v["queries"] for v in result["vehicles"].values())
    scores = found["blackfleet_test_miou_ratio"]
    assert scores["final", "test"] == pytest.approx(result["mean_local_miou"])
    assert scores["final", "ood"] == pytest.approx(result["mean_ood_miou"])
    for vehicle, entry in result["vehicles"].items():
        mine = found["blackfleet_vehicle_test_miou_ratio"]
        assert mine[vehicle, "test"] == pytest.approx(entry["local_miou"])


def test_a_folder_that_is_not_there_yet_has_no_numbers_and_then_has(
    undisturbed: TinyFleet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    metrics = LaunchMetrics(folder, LABELS)
    assert {f.name: f.samples for f in metrics.families()}["blackfleet_round"] == []
    (folder / "processes").mkdir(parents=True)
    (folder / "processes" / "processes.json").write_text(json.dumps({"cloud": os.getpid()}))
    shutil.copy(undisturbed.run_folder / LOG_NAME, folder / LOG_NAME)
    found = {family.name: dict(family.samples) for family in metrics.families()}
    assert found["blackfleet_run_complete"] == {(): 1}
    assert set(found["blackfleet_process_threads"]) == {("launcher",), ("cloud",)}


def test_promtool_has_nothing_to_say(launched: LaunchMetrics) -> None:
    pytest.importorskip("prometheus_client", reason="no prometheus-client: pip install 'blackfleet[metrics]'")
    with (
        MetricsServer("0", launched.families, _hosts) as server,
        urllib.request.urlopen(server.address, timeout=10) as answer,
    ):
        text = answer.read().decode()
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: install Debian's package prometheus")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _served(said: str) -> str:
    [address] = re.findall(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", said)
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_launch_a_cloud_and_a_host_serve_where_they_say(
    undisturbed: TinyFleet, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("prometheus_client", reason="no prometheus-client: pip install 'blackfleet[metrics]'")
    caplog.set_level("INFO")
    said = io.StringIO()
    console = Console(file=said, width=200)
    with observed(Scenario(), undisturbed.run_folder, watch_port=None, metrics="0", console=console):
        assert "blackfleet_run_complete 1.0" in _served(said.getvalue())
    with cloud_main._metrics(undisturbed.config, "0") as run:
        assert run is not None
        run.event("result", {})
        assert "blackfleet_run_complete 1.0" in _served(caplog.text)
    caplog.clear()
    with NetworkLoop() as loop:
        url = f"mqtt://127.0.0.1:{free_port()}"
        host = Host(
            undisturbed.host(*undisturbed.config.vehicles[:1]), connector(url, loop), threading.Event()
        )
        with vehicle_main._metrics(host, "0"):
            assert "blackfleet_host_connected{" in _served(caplog.text)


def test_names_are_the_project_s_with_units(launched: LaunchMetrics) -> None:
    families = [*launched.families(), *_hosts(), *process_families({})]
    assert all(family.name.startswith("blackfleet_") and family.help.endswith(".") for family in families)
    for family in families:
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert not re.search(r"_(ms|kb|mb|percent|s)(_total)?$", family.name), family.name


def test_the_dashboard_asks_for_what_there_is(launched: LaunchMetrics) -> None:
    there = {family.name: family for family in launched.families()}
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 20
    for query in queries:
        for name in re.findall(r"blackfleet_\w+", query):
            assert name.removesuffix("_bucket") in there, query
    legends = [(t["expr"], t["legendFormat"]) for panel in dashboard["panels"] for t in panel["targets"]]
    for query, legend in legends:
        [name, *_] = re.findall(r"blackfleet_\w+", query)
        assert set(re.findall(r"{{(\w+)}}", legend)) <= set(there[name.removesuffix("_bucket")].labels)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
