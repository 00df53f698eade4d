"""SIGTERM, SIGHUP and SIGINT to `blackfleet`: one line, everything ended in order, exit code 130."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_fixtures import (
    CARS,
    ROOT,
    Launch,
    environment,
    is_alive,
    learnt,
    module,
    wait_for,
    write_scenario,
)

from fleet.cli.__main__ import run
from fleet.errors import OperatorError
from fleet.run.folder import held
from protocol.stopping import STOP_SIGNALS

pytestmark = pytest.mark.timeout(300)

COMMANDS = {
    "launch": (["launch", "--run-dir", "RUN"], "fleet.run.launch.launch"),
    "pretrain": (["pretrain", "RUN"], "fleet.run.pretrain.pretrain"),
    "compare": (["compare", "--algorithms", "split", "--compare-dir", "RUN"], "fleet.cli.sweep.compare"),
    "evaluate": (["evaluate", "RUN", "RUN"], "fleet.cli.evaluate.run_evaluate"),
    "report": (["report", "RUN"], "fleet.report.page.write_report"),
    "dataset generate": (["dataset", "generate", "RUN"], "datasets.generated.generate_dataset"),
    "encoder export": (["encoder", "export", "RUN"], "fleet.export.bundle.export_bundle"),
}
"""Arguments, and the function that does the command's work."""


@pytest.fixture
def restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stops_with_one_line(
    command: str,
    number: signal.Signals,
    restored_signals: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    arguments, function = COMMANDS[command]

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(function, interrupted)
    monkeypatch.setattr("sys.argv", ["blackfleet", *arguments])
    with pytest.raises(SystemExit) as ending:
        run()
    assert ending.value.code == 130
    [line] = capfd.readouterr().err.splitlines()
    by = "" if number is signal.SIGINT else f" by {number.name}"
    assert line.startswith(f"blackfleet: stopped{by}")


def test_a_run_that_is_ended_again_and_again_leaves_no_process_and_ends_as_if_undisturbed(
    tmp_path: Path, reference: Launch
) -> None:
    root = tmp_path / "data"
    launch = Launch(tmp_path / "run", write_scenario(tmp_path / "scenario.yaml", root))
    try:
        # Ctrl-C while frames are rendered: nothing has been learnt yet.
        launch.start()
        wait_for(lambda: any(root.rglob("*_labelIds.png")), "the first frame is rendered")
        launch.end_by(signal.SIGINT)

        # Ctrl-C while all are in one process; from here on there is a broker.
        launch.start("--resume", "--broker", "memory").until("validation", stage=1)
        launch.end_by(signal.SIGINT)

        # The terminal is closed while a vehicle has its turn.
        launch.start("--resume", "--broker", "amqtt").until("turn", stage=2)
        ids = launch.ids()
        assert len(ids) == 2 + len(CARS)
        launch.end_by(signal.SIGHUP)
        assert not [name for name, process_id in ids.items() if is_alive(process_id)]

        # The machine shuts down while the cloud trains.
        launch.start("--resume").until("learning", stage=2)
        _end_twice(launch)

        # The launcher itself is killed: its processes must notice by themselves.
        launch.start("--resume").until("turn", stage=4)
        ids = launch.ids()
        assert launch.process is not None
        launch.process.kill()
        launch.wait()
        wait_for(lambda: not any(map(is_alive, ids.values())), "the processes end after their launcher", 30)

        launch.start("--resume").complete()
    finally:
        launch.stop()
    assert learnt(launch.run_folder) == learnt(reference.run_folder)
    assert launch.result()["classes"] == reference.result()["classes"]


def _end_twice(launch: Launch) -> None:
    """The folder is held until the last process has ended, and a second signal ends that one."""
    cloud = launch.ids()["cloud"]
    os.kill(cloud, signal.SIGSTOP)  # it can't end by itself
    assert launch.process is not None
    launch.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    with pytest.raises(OperatorError, match="another launcher is at work"), held(launch.run_folder):
        pass
    assert is_alive(cloud)
    launch.process.send_signal(signal.SIGTERM)
    assert launch.process.wait(8) == 130, launch.report()
    assert not is_alive(cloud)
    with held(launch.run_folder):
        pass


@pytest.mark.parametrize("name", ["cloud_server", "edge_client"])
def test_process_ends_quietly_while_it_still_imports(name: str, tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    # Named and closed: what a signal raises in the destructor of a file that nobody holds is lost.
    (tmp_path / "msgspec.py").write_text(
        f"import time; file = open({str(loading)!r}, 'w'); file.close(); time.sleep(60)"
    )
    paths = os.pathsep.join((str(ROOT), str(tmp_path)))
    process = subprocess.Popen(
        module(name), env={**environment(), "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(loading.exists, "the first package is loaded")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (130, "")


def test_process_1_of_a_container_ends_by_sigterm(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    in_container = [unshare or "unshare", "--pid", "--fork", "--kill-child"]
    if unshare is None or subprocess.run([*in_container, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespace can be made here")
    generate = module("fleet.cli", "dataset", "generate", tmp_path / "data", "--frames", "5000")
    process = subprocess.Popen(
        [*in_container, *generate], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        wait_for(lambda: len(list(tmp_path.rglob("*_leftImg8bit.png"))) > 1, "frames are rendered")
        [first] = children.read_text().split()
        os.kill(int(first), signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert said.decode().splitlines() == ["blackfleet: stopped by SIGTERM; go on with the same command"]


def test_what_nohup_ignores_stays_ignored() -> None:
    program = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from fleet.cli.interrupts import interrupt_on_signals; interrupt_on_signals()\n"
        "import os; os.kill(os.getpid(), signal.SIGHUP); print('lives')"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.stdout == "lives\n", done.stderr
