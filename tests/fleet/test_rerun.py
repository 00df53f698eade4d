"""A run as a recording for the Rerun viewer, read back by Rerun's own tool."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from process_fixtures import wait_for
from report_fixtures import VEHICLES, build_comparison
from rich.console import Console

from fleet.cli.rerun_file import RerunFile
from fleet.errors import OperatorError


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(OperatorError, match=r"pip install 'blackfleet\[rerun\]'"):
        RerunFile(tmp_path / "run.rrd")


def test_recording_holds_frames_by_class_and_curves(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="no rerun-sdk: pip install 'blackfleet[rerun]'")
    for wrong in (tmp_path, tmp_path / "missing" / "run.rrd"):
        with pytest.raises(OperatorError, match="can't be written; name a file"):
            RerunFile(wrong)
    run_folder = build_comparison(tmp_path / "compare") / "split-seed0"
    curve = {"event": "curve", "time": 1e9, "round": 1, "val_miou": 0.2, "loss": None, "uplink_bytes": 5}
    (run_folder / "log.jsonl").write_text(json.dumps(curve) + '\n{"torn')
    path, said = tmp_path / "run.rrd", io.StringIO()
    with pytest.raises(OperatorError):
        RerunFile(path).write(tmp_path, Console(quiet=True))
    assert sorted(tmp_path.glob("*.rrd")) == []
    RerunFile(path).write(run_folder, Console(file=said, width=300))
    assert said.getvalue() == f"{path}: open it with rerun {path}\n"
    command = [sys.executable, "-m", "rerun_cli", "rrd"]
    assert subprocess.run([*command, "verify", path], capture_output=True, check=False).returncode == 0
    shown = subprocess.run([*command, "print", path], capture_output=True, text=True, check=True).stdout
    entities = set(re.findall(r" - (/\S*) - data columns: \[(\w+)", shown))
    for vehicle in VEHICLES:
        camera = f"/vehicles/{vehicle}/camera"
        assert {(camera, "EncodedImage"), (f"{camera}/truth", "SegmentationImage")} <= entities
        assert (f"{camera}/prediction", "SegmentationImage") in entities
    assert {("/", "AnnotationContext"), ("/curves/val_miou", "Scalars")} <= entities


def test_recording_is_served_to_this_machine_alone_until_ctrl_c(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="no rerun-sdk: pip install 'blackfleet[rerun]'")
    run_folder = build_comparison(tmp_path / "compare") / "split-seed0"
    (run_folder / "log.jsonl").write_text("")
    command = [sys.executable, "-m", "fleet.cli", "report", run_folder, "--rerun", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = next(line for line in process.stdout if line.startswith("look at "))
        [address, page_port] = re.findall(r"http://(127\.0\.0\.1):(\d+)\?", said)[0]
        wait_for(lambda: answers(f"http://{address}:{page_port}/"), "the page is there", 60)
        [data_port] = re.findall(r"%3A(\d+)%2F", said)
        assert {listens_at(int(port)) for port in (page_port, data_port)} == {"0100007F"}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert listens_at(int(page_port)) is None
    assert (run_folder / "run.rrd").is_file() and (run_folder / "report.html").is_file()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def listens_at(port: int) -> str | None:
    """The address at which somebody listens on a port, as proc(5) writes it; None: nobody does."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, _, number = local.partition(":")
        if int(number, 16) == port and state == "0A":
            return address
    return None
