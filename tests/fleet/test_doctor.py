"""`blackfleet doctor`: what is missing is said, with what to do, and by the exit code."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from process_fixtures import ROOT, run

from fleet import broker
from fleet.doctor import brokers, machine, packages
from fleet.doctor.certificates import check_certificate_file, check_certificate_of
from fleet.doctor.command import main
from fleet.doctor.computing import RELU, check_cuda, check_onnx_runtime
from fleet.doctor.finding import Finding
from protocol.errors import SettingError
from protocol.mqtt.certificates import CertificateFault, validity

# Packages --------------------------------------------------------------------------------------------------


def _asked(**extras: list[str]) -> packages.Requirements:
    return packages.Requirements(python="3.10", core=("numpy>=1.26",), extras=extras)


def test_all_parts_and_extras_of_the_project_are_known() -> None:
    asked = packages.read_requirements()
    assert asked is not None and set(packages.PARTS) <= set(asked.extras)
    assert {"torch", "onnxruntime", "typer"} <= set(asked.of("operator"))
    assert "torch" not in asked.of("vehicle")


@pytest.mark.parametrize(
    ("needed", "state", "said"),
    [
        (["msgspec>=0.1"], "ok", "all 2 of the extra operator"),
        (
            ["msgspec>=99", "no-such-package>=1"],
            "wrong",
            " is too old, needed is 99 or newer, no-such-package missing",
        ),
        (["opencv-of-another-build>=99"], "wrong", "missing"),
        (["blackfleet[other]"], "wrong", "1 of 2 won't do: nothing-like-this missing"),
    ],
)
def test_packages_that_are_missing_or_old_are_named(needed: list[str], state: str, said: str) -> None:
    found = next(packages.check_packages(_asked(operator=needed, other=["nothing-like-this"]), "operator"))
    assert found.state == state and said in found.found
    assert ("pip install" in found.advice) == (state == "wrong")


def test_a_package_of_another_build_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages._OTHER_BUILDS, "no-such-package", "msgspec")
    assert next(packages.check_packages(_asked(vehicle=["no-such-package>=4"]), "vehicle")).state == "ok"


def test_an_old_python_is_wrong() -> None:
    assert packages.check_python(_asked()).state == "ok"
    found = packages.check_python(packages.Requirements(python="99.1", core=()))
    assert found.state == "wrong" and "needed is 99.1" in found.found


# Machine ---------------------------------------------------------------------------------------------------


def test_a_folder_that_takes_nothing_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_disk(tmp_path / "not" / "yet").state in ("ok", "note")
    assert machine.check_disk(Path("/proc/nothing")).state == "wrong"
    monkeypatch.setattr(machine, "_LEAST_DISK_BYTES", 1e18)
    monkeypatch.setattr(machine, "_SCARCE_DISK_BYTES", 1e18)
    assert machine.check_disk(tmp_path).state == "wrong"


def test_cameras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [none] = machine.check_cameras(tmp_path, tmp_path)
    assert (none.state, none.found[:4]) == ("ok", "none")
    (tmp_path / "video0").touch()
    (tmp_path / "names" / "video0").mkdir(parents=True)
    (tmp_path / "names" / "video0" / "name").write_text("Front camera\n")
    [mine] = machine.check_cameras(tmp_path, tmp_path / "names")
    assert mine.state == "ok" and "video0 (Front camera)" in mine.found
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    [others] = machine.check_cameras(tmp_path, tmp_path / "names")
    assert others.state == "note" and "usermod" in others.advice


def test_ports_that_are_taken_are_wrong() -> None:
    with socket.socket() as held:
        held.bind((broker.HOST, 0))
        held.listen()
        port = held.getsockname()[1]
        assert brokers.check_port(port).state == "wrong"
    assert brokers.check_port(port).state == "ok"


# Computing -------------------------------------------------------------------------------------------------


def test_the_model_that_is_tried_is_one() -> None:
    model = onnx.load_from_string(RELU)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


def test_what_computes_here_is_tried() -> None:
    assert {"ONNX Runtime CPU": "ok"}.items() <= {f.about: f.state for f in check_onnx_runtime()}.items()
    [cuda] = check_cuda()
    assert cuda.state in ("ok", "note")


def test_a_runtime_that_does_not_run_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.doctor.computing.RELU", b"no model")
    assert {f.state for f in check_onnx_runtime() if f.about.endswith("CPU")} == {"wrong"}


# Broker and certificates -----------------------------------------------------------------------------------


def test_a_broker_is_started_and_ended() -> None:
    [found] = brokers.check_own_broker()
    assert found.state in ("ok", "note") and "starts and answers" in found.found


def test_no_broker_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(wanted: str = "auto") -> broker.Kind:
        raise SettingError("no broker is installed")

    monkeypatch.setattr(broker, "choose_kind", none)
    [found] = brokers.check_own_broker()
    assert found.state == "wrong" and "apt install mosquitto" in found.advice


def test_a_broker_that_is_not_there_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.run.reach._CONNECT_S", 0.2)
    [found] = brokers.check_broker(f"mqtt://{broker.HOST}:{broker.free_port()}")
    assert found.state == "wrong"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 90 days, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: install it")
    folder = tmp_path_factory.mktemp("certificates")
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=localhost"
    subprocess.run(
        [*made.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem"


def test_dates_are_those_that_openssl_reads(pem: Path) -> None:
    said = subprocess.run(
        ["openssl", "x509", "-in", pem, "-noout", "-dates"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    dates = [datetime.strptime(line.partition("=")[2], "%b %d %H:%M:%S %Y %Z") for line in said]
    found = validity(ssl.PEM_cert_to_DER_cert(pem.read_text()))
    assert [date.replace(tzinfo=None) for date in found] == dates


@pytest.mark.parametrize(
    ("days", "state", "said"),
    [
        (1, "ok", "valid from"),
        (70, "note", "19 days left"),
        (91, "wrong", "is over"),
        (-2, "wrong", "not yet"),
    ],
)
def test_certificates_are_judged_by_the_day(pem: Path, days: int, state: str, said: str) -> None:
    now = datetime.now(timezone.utc) + timedelta(days=days)
    [found] = check_certificate_file(pem, now)
    assert found.state == state and said in found.found


@given(st.binary(max_size=64))
def test_bytes_that_are_no_certificate_are_said_to_be_none(data: bytes) -> None:
    with pytest.raises(CertificateFault):
        validity(data)


@given(place=st.integers(0, 120), value=st.integers(0, 255))
def test_a_damaged_certificate_has_other_dates_or_is_none(pem: Path, place: int, value: int) -> None:
    damaged = bytearray(ssl.PEM_cert_to_DER_cert(pem.read_text()))
    damaged[place] = value
    with contextlib.suppress(CertificateFault):
        validity(bytes(damaged))


def test_files_that_hold_no_certificate_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    for path in (tmp_path / "key.pem", tmp_path / "missing.pem"):
        [found] = check_certificate_file(path)
        assert found.state == "wrong" and found.advice


def test_the_certificate_that_a_server_shows_is_looked_at(pem: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, pem.with_name("key.pem"))
    with socket.create_server((broker.HOST, 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            context.wrap_socket(client, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        [found] = check_certificate_of(broker.HOST, server.getsockname()[1])
        thread.join(10)
    assert found.state == "ok"


# The command -----------------------------------------------------------------------------------------------


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(capsys.readouterr().out)
    return loaded


def test_exit_code_and_json_agree(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--json", "--part", "vehicle", "--run-dir", str(tmp_path)]
    assert main(arguments) == 0
    assert _json(capsys)["ok"] is True
    assert main([*arguments, "--certificate", str(tmp_path / "missing.pem")]) == 1
    said = _json(capsys)
    assert said["ok"] is False
    assert {each["state"] for each in said["findings"]} <= {"ok", "note", "wrong"}
    assert set(said["findings"][0]) == set(Finding.__dataclass_fields__)


def test_a_wrong_option_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--part", "vehicle", "--broker", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("blackfleet: broker URL must start with mqtt://")


def test_it_works_where_no_package_is() -> None:
    done = run([sys.executable, "-S", "-m", "fleet.cli", "doctor"], cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    line = next(line for line in done.stdout.splitlines() if "packages" in line)
    assert line.startswith("wrong") and all(name in line for name in ("numpy missing", "torch missing"))
    assert done.stdout.splitlines()[-1].endswith("to mend, see → above")
