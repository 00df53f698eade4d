"""What faults of the road do to a fleet, and what its operator reads: a table, each line from a real log.

    python -m benchmarks.road_faults                       # half an hour without network, and ten more
    python -m benchmarks.road_faults --network-minutes 1

Each fault has a folder of its own below `--out`; what is done there is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import clock_back
from benchmarks.road_fleet import CARS, FLEET, Line, RoadFleet, prepare, run

CAR = CARS[0]
_LEARNS = "turn 1 begins"
_PATIENCE = {"retry_s": 1.0, "heartbeat_s": 2.0}
_VALID_S = 150
_ROOM_BYTES = 40_000_000


@dataclass(frozen=True)
class Options:
    """What the command was told."""

    out: Path
    network_minutes: float


@dataclass(frozen=True)
class Fault:
    """One row."""

    title: str
    act: Callable[[Options, RoadFleet], tuple[str, str]]
    """Does it in a fleet that has been made and not started; returns what happened, and the line."""
    environment: Callable[[Options], Mapping[str, str]] = lambda options: {}
    patience: Mapping[str, Any] = field(default_factory=dict)
    reference: str = "undisturbed"


def main() -> None:
    """Do every fault that has not been done, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.road_faults", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/road-faults"))
    parser.add_argument("--network-minutes", type=float, default=30.0, help="how long the network is gone")
    parser.add_argument("--only", help=f"names with commas between, of {', '.join(FAULTS)}; default: all")
    arguments = parser.parse_args()
    options = Options(arguments.out.resolve(), arguments.network_minutes)
    wanted = arguments.only.split(",") if arguments.only else list(FAULTS)
    prepare(options.out / "shared")
    for name in dict.fromkeys([*(FAULTS[name].reference for name in wanted), *wanted]):
        if not (options.out / f"{name}.json").exists():
            _do(name, options)
    print("| fault | what happened | nothing lost | what the operator reads |\n| --- | --- | --- | --- |")
    for name in wanted:
        if name not in _REFERENCES:
            print(_row(FAULTS[name], *(_read(options, each) for each in (name, FAULTS[name].reference))))


def _do(name: str, options: Options) -> None:
    fault, folder = FAULTS[name], options.out / name
    fleet = RoadFleet(
        folder,
        options.out / "shared",
        patience={**_PATIENCE, **fault.patience},
        environment=fault.environment(options),
    )
    began = time.monotonic()
    try:
        happened, line = fault.act(options, fleet)
    finally:
        fleet.stop()
    uploads = [entry["uploads"] for entry in fleet.result()["vehicles"].values()]
    content = {
        "happened": happened,
        "line": line,
        "seconds": round(time.monotonic() - began),
        "prints": fleet.fingerprint(),
        "acknowledged": sum(counts["acknowledged"] for counts in uploads),
        "trained": sum(counts["trained"] for counts in uploads),
        "repeated": sum(counts["repeated"] for counts in uploads),
    }
    (options.out / f"{name}.json").write_text(json.dumps(content, indent=1))


def _read(options: Options, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((options.out / f"{name}.json").read_text())
    return content


def _row(fault: Fault, done: Mapping[str, Any], calm: Mapping[str, Any]) -> str:
    same = "the bits of the undisturbed run" if done["prints"] == calm["prints"] else "OTHER BITS"
    counts = f"{done['trained']} of {done['acknowledged']} frames trained, {done['repeated']} twice"
    return f"| {fault.title} | {done['happened']} | {same}; {counts} | `{done['line']}` |"


# What is done ------------------------------------------------------------------------------------------


def _begin(fleet: RoadFleet) -> None:
    fleet.start("broker", "cloud", *CARS)


def _undisturbed(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    del options
    _begin(fleet)
    fleet.finish()
    return "", ""


def _kill(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    del options
    _begin(fleet)
    fleet.until(CAR, _LEARNS)
    fleet.kill(CAR)
    fleet.start(CAR)
    fleet.finish()
    return "started again, its turn starts over", fleet.line("cloud", "turn 1 of vehicle car-1 starts over")


def _power_cut(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    del options
    _begin(fleet)
    fleet.until(CAR, _LEARNS)
    fleet.kill("broker", "cloud", *CARS)
    _begin(fleet)
    fleet.finish()
    return "all started again, the cloud resumes", fleet.line("cloud", "the run is resumed")


def _full_disk(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    del options
    state = fleet.folder / "state" / CAR
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOM_BYTES}", "tmpfs", str(state)], check=True)
    try:
        _begin(fleet)
        fleet.until(CAR, _LEARNS)
        filler = state / "others-files"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(65536))
            except OSError:
                pass
        fleet.until("cloud", "waiting for vehicle car-1")
        filler.unlink()
        fleet.finish()
        kept = fleet.folder / "kept"
        shutil.copytree(state, kept)
    finally:
        subprocess.run(["umount", str(state)], check=True)
    shutil.copytree(kept, state, dirs_exist_ok=True)
    line = fleet.line("cloud", "waiting for vehicle car-1")
    return "the run waits; with room again the vehicle is started anew, and goes on", line


def _clock_back(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    mark = options.out / "clock-is-back"
    mark.unlink(missing_ok=True)
    _begin(fleet)
    fleet.until(CAR, _LEARNS)
    mark.touch()
    fleet.finish()
    stamps = re.findall(r"^\d{4}-\d\d-\d\d (\d\d):(\d\d):(\d\d)", fleet.log(CAR).read_text(), re.MULTILINE)
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in stamps]
    back = [b - a for a, b in itertools.pairwise(seconds) if b - a < -3000]
    if not back:
        raise ValueError("the clock was not set back")
    happened = f"the times in the logs go back by {-back[0] / 60:.0f} minutes; nobody takes notice"
    return happened, fleet.line(CAR, "turn 1 done")


def _network(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    line = Line(fleet.port)
    fleet.ports[CAR] = line.port
    _begin(fleet)
    fleet.until(CAR, _LEARNS)
    line.cut()
    gone_until = time.monotonic() + 60 * options.network_minutes
    fleet.wait_for(lambda: time.monotonic() > gone_until, "the network is back")
    waited = len(list((fleet.folder / "state" / CAR / "spool").glob("*.kept")))
    line.mend()
    fleet.finish()
    happened = (
        f"{options.network_minutes:g} minutes: it learns to the turn's end, {waited} pieces wait on its disk "
        f"and then go up; meanwhile the cloud says: `{fleet.line('cloud', 'waiting for vehicle car-1')}`"
    )
    return happened, fleet.line(CAR, "pieces had waited on disk")


def _certificate(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    del options
    ids = fleet.folder / "ids"
    names = ("--fleet", FLEET, "--vehicles", ",".join(CARS))
    run("fleet.cli", "provision", ids, *names, "--port", str(fleet.port))
    fleet.scheme, fleet.host, fleet.options = "mqtts", "localhost", f"?identity={ids / FLEET}"
    # Signed a day ago, as it were, but for what it takes to begin.
    ends_at = time.monotonic() + _VALID_S
    earlier = {**os.environ, **clock_back.environment(fleet.folder, fleet.folder, 86400 - _VALID_S)}
    certificate = ids / FLEET / f"{CAR}.crt"
    _sign_again(ids, certificate, earlier)
    _begin(fleet)
    fleet.until(CAR, _LEARNS)
    fleet.kill("broker")  # a session that is there would go on
    fleet.wait_for(lambda: time.monotonic() > ends_at + 2, "it has expired")
    fleet.start("broker")
    fleet.until(CAR, "expired", after=fleet.said_so_far(CAR))
    line = fleet.line(CAR, "expired")
    run("fleet.cli", "provision", ids, "--renew", CAR)
    fleet.finish()
    return "refused at the next connection; with the renewed file the same process goes on", line


def _sign_again(ids: Path, certificate: Path, environment: Mapping[str, str]) -> None:
    """The same name and key, until the end of a day that began when `environment` says."""
    key, request = certificate.with_suffix(".key"), certificate.with_suffix(".csr")
    name = ["-subj", f"/CN={FLEET}.{certificate.stem}"]
    subprocess.run(["openssl", "req", "-new", "-key", key, *name, "-out", request], check=True)
    words = ["openssl", "x509", "-req", "-in", request, "-CA", ids / "ca.crt", "-CAkey", ids / "ca.key"]
    words += ["-set_serial", "4711", "-days", "1", "-out", certificate]
    subprocess.run(words, check=True, env=environment, stderr=subprocess.DEVNULL)
    request.unlink()


def _camera(fleet: RoadFleet) -> Path:
    """A folder that a camera's program fills, with labels beside the pictures."""
    camera = fleet.folder / "camera"
    camera.mkdir()
    drive = fleet.shared / CAR
    for picture in sorted(drive.glob("leftImg8bit/*/*/*.png")):
        name = picture.name.replace("_leftImg8bit.png", "")
        shutil.copy2(picture, camera / f"{name}.png")
        [label] = drive.glob(f"gtFine/*/*/{name}_gtFine_labelIds.png")
        shutil.copy2(label, camera / f"{name}_labelIds.png")
    fleet.sources[CAR] = camera
    return camera


def _with_camera(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    _camera(fleet)
    return _undisturbed(options, fleet)


def _unplugged(options: Options, fleet: RoadFleet) -> tuple[str, str]:
    del options
    camera = _camera(fleet)
    _begin(fleet)
    fleet.until(CAR, _LEARNS)
    camera.rename(fleet.folder / "unplugged")
    fleet.until(CAR, "is gone; nothing is recorded")
    fleet.kill(CAR)  # it has its frames, whatever becomes of the camera
    fleet.start(CAR)
    fleet.finish()
    return "the run goes on with the frames of its snapshot, also after a kill", fleet.line(CAR, "is gone")


def _clock_of(options: Options) -> dict[str, str]:
    return clock_back.environment(options.out / "shared", options.out / "clock-is-back", 3600)


_REFERENCES = ("undisturbed", "with-camera")
FAULTS: Mapping[str, Fault] = {
    "undisturbed": Fault("none", _undisturbed),
    "with-camera": Fault("none", _with_camera, reference="with-camera"),
    "kill": Fault("a vehicle is killed in its turn", _kill),
    "power-cut": Fault("power cut: SIGKILL of broker, cloud and vehicles", _power_cut),
    "full-disk": Fault("a vehicle's disk is full", _full_disk),
    "clock": Fault("the clock of cloud and vehicles is set back an hour", _clock_back, _clock_of),
    "certificate": Fault("a vehicle's certificate expires", _certificate),
    "camera": Fault("camera unplugged", _unplugged, reference="with-camera"),
    "network": Fault("a vehicle has no network", _network, patience={"give_up_s": 20.0}),
}


if __name__ == "__main__":
    main()
