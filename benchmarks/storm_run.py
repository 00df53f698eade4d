"""One run of a small fleet in a storm, to its end, and whether that end is the undisturbed one's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.small_fleets import Life, copy_settings, live, start_broker
from benchmarks.storm_faults import CLOCK, BreakingLine, FaultWithin, Within, arm, heed_clock
from fleet import broker
from protocol.atomic import write_json_atomic
from protocol.mqtt.broker_url import BROKER_VARIABLE

KILLS = ("killed", "broker killed", "killed in a write", "torn write")
OTHERS = ("stopped", "line cut", "line silent", "broker anew", "no room", "file too large", "clock jump")
_WITHIN: Sequence[Within] = ("killed in a write", "torn write", "no room", "file too large")
_CLOCK_NAME = "clock"
_FAREWELL_S = 20.0
_MOST_SURPRISES = 3
_MISTAKE = 2
"""The exit code of whoever can't go on until somebody has seen to it."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How much befalls a run."""

    faults: int
    """From outside; those within processes come on top, and end with them."""
    within_share: float
    """Of the processes that start, how many meet a fault in their writing."""
    limit_s: float = 600.0
    """For the whole run; on a busy machine one may need more."""


@dataclass(kw_only=True)
class Outcome:
    """Of one run."""

    seed: int
    case: str
    faults: Counter[str] = field(default_factory=Counter)
    """What has struck: a fault whose moment never came is not counted."""
    ended: bool = True
    """False: it was still at work when its time was over, which says nothing of its bits."""
    same_bits: bool = False
    differences: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    """Ends of processes that no fault explains."""
    seconds: float = 0.0


@dataclass
class _Role:
    """A process of the table; it has lives one after the other."""

    name: str
    module: str
    arguments: list[str]
    process: ForkServerProcess | None = None
    fault: FaultWithin | None = None
    lives: int = 0
    over: bool = False
    log: Path = Path()


class Storm:
    """`run` does all of it; what was drawn, and from what, is the seed's."""

    def __init__(
        self, template: Path, folder: Path, seed: int, case: str, weather: Weather, context: ForkServerContext
    ) -> None:
        """`template`: the folder of the undisturbed run; `folder` is made, for this run alone."""
        self._template, self._folder, self._seed, self._weather = template, folder, seed, weather
        self._context = context
        self._random = random.Random(f"{seed} from outside")
        self.outcome = Outcome(seed=seed, case=case)
        self._left = weather.faults
        self._port = broker.free_port()
        self._broker: subprocess.Popen[bytes] | None = None
        self._excused_until = 0.0

    def run(self) -> Outcome:
        """Run the fleet through the storm to its end."""
        began = time.monotonic()
        copy_settings(self._template, self._folder)
        (self._folder / _CLOCK_NAME).write_bytes(CLOCK.pack(0.0))
        hosts = sorted((self._folder / "hosts").glob("host-*.json"))
        cloud = [f"--config={self._folder / 'cloud.json'}", f"--run-dir={self._folder}"]
        self._roles = [_Role("cloud", "cloud_server.command", cloud)]
        self._roles += [_Role(path.stem, "edge_client.command", [f"--config={path}"]) for path in hosts]
        try:
            self._broker = start_broker(self._folder, self._port)
            with BreakingLine(self._port) as self._line:
                for role in self._roles:
                    self._start(role)
                self._weather_it(began + self._weather.limit_s)
        finally:
            self._end_all()
            self.outcome.seconds = round(time.monotonic() - began, 1)
        if not self.outcome.ended:
            return self.outcome
        self.outcome.differences += self._compare()
        self.outcome.same_bits = not self.outcome.differences
        return self.outcome

    def _compare(self) -> list[str]:
        """In a forked process: there torch is loaded already."""
        found = self._folder / "differences.json"
        process = self._context.Process(target=_write_differences, args=(self._template, self._folder, found))
        process.start()
        process.join()
        return list(json.loads(found.read_text())) if found.exists() else ["the ends could not be compared"]

    # Processes --------------------------------------------------------------------------------------------

    def _start(self, role: _Role) -> None:
        draws = random.Random(f"{self._seed} {role.name} {role.lives}")
        role.fault = None
        if self._left > 0 and draws.random() < self._weather.within_share:
            kind = draws.choice(_WITHIN)
            by_size = kind in ("torn write", "file too large")
            role.fault = FaultWithin(
                kind, int(10 ** draws.uniform(2.5, 5) if by_size else 2 ** draws.uniform(0, 5))
            )
        role.lives += 1
        role.log = self._folder / "processes" / f"{role.name}-{role.lives:03d}.log"
        environment = {BROKER_VARIABLE: broker.broker_url(self._line.port), "OMP_NUM_THREADS": "1"}
        life = Life(
            module=role.module,
            arguments=[*role.arguments, *(["--resume"] if role.name == "cloud" and role.lives > 1 else [])],
            environment=environment,
            log=role.log,
        )
        role.over = False
        prepare = [partial(heed_clock, self._folder / _CLOCK_NAME)]
        if role.fault is not None:
            prepare.append(partial(arm, role.fault, self._folder))
        role.process = self._context.Process(target=live, args=(life, *prepare), daemon=True)
        role.process.start()

    def _look_after(self) -> bool:
        """Start again what has ended; whether the cloud has ended well."""
        for role in self._roles:
            assert role.process is not None
            code = role.process.exitcode
            if code is None or role.over:
                continue
            if code == 0:
                role.over = True
                if role.name == "cloud":
                    return True
                continue
            self._note_end(role, code)
            if role.name == "cloud":
                for other in self._roles[1:]:
                    # Told that all was over, and needed again; or, after a mistake, all begins anew, as when
                    # an operator resumes the run: of a host's vehicles one may have ended alone.
                    if other.over or code == _MISTAKE:
                        self._end(other)
                        self._start(other)
            self._start(role)
        return False

    def _note_end(self, role: _Role, code: int) -> None:
        codes = {"killed in a write": -signal.SIGKILL, "torn write": -signal.SIGXFSZ}
        fault = role.fault
        if fault is not None and code == codes.get(fault.kind, _MISTAKE):
            self.outcome.faults[fault.kind] += 1
            role.fault = None
            self._excused_until = time.monotonic() + 15 * (code == _MISTAKE)
            return
        # A vehicle whose disk is full says so, and the cloud ends the run with it; nothing else may.
        full = [other for other in self._roles if other.fault is not None and other.fault.kind not in codes]
        if code == _MISTAKE and role.name == "cloud" and full and "can't go on" in _last_line(role.log):
            return
        if code == _MISTAKE and time.monotonic() < self._excused_until:
            return
        self.outcome.surprises.append(f"{role.name} ended with {code}: {_last_line(role.log)}")
        if len(self.outcome.surprises) > _MOST_SURPRISES:
            raise StormError(f"{self.outcome.surprises}")

    @staticmethod
    def _end(role: _Role) -> None:
        if role.process is not None and role.process.exitcode is None:
            role.process.kill()
            role.process.join()

    def _end_all(self) -> None:
        for role in getattr(self, "_roles", []):
            self._end(role)
        if self._broker is not None:
            self._broker.kill()
            self._broker.wait()

    # The storm --------------------------------------------------------------------------------------------

    def _weather_it(self, deadline: float) -> None:
        due = time.monotonic() + self._pause_s()
        while not self._look_after():
            if time.monotonic() > deadline:
                self.outcome.ended = False
                return
            if self._left > 0 and time.monotonic() >= due:
                self._left -= 1
                self._strike()
                due = time.monotonic() + self._pause_s()
            time.sleep(0.01)
        farewell = time.monotonic() + _FAREWELL_S
        for role in self._roles:
            assert role.process is not None
            role.process.join(max(0.0, farewell - time.monotonic()))
            if role.process.exitcode is None:
                self.outcome.surprises.append(f"{role.name} did not end by itself")

    def _pause_s(self) -> float:
        return self._random.choice((0.05, 0.2, 0.5, 1.2)) * self._random.random()

    def _strike(self) -> None:
        """One fault from outside, whatever the fleet is at."""
        draw = self._random.random()
        fraction = self._random.random()
        victim = self._random.choice(self._roles)
        if draw < 0.45:
            self._kill(victim)
        elif draw < 0.55:
            self._end_broker(signal.SIGKILL)
        elif draw < 0.60:
            self._end_broker(signal.SIGTERM)
        elif draw < 0.75:
            self._stop(victim, 1.5 * fraction**2)
        elif draw < 0.85:
            one = (lambda count: int(fraction * count)) if self._random.random() < 0.7 else None
            self.outcome.faults["line cut"] += bool(self._line.cut(one))
        elif draw < 0.92:
            self.outcome.faults["line silent"] += bool(self._line.hush(silent=True))
            time.sleep(1.5 * fraction)
            self._line.hush(silent=False)
        else:
            self._set_clock((fraction - 0.5) * 20 * 365 * 86400)

    def _kill(self, role: _Role) -> None:
        assert role.process is not None
        if role.process.exitcode is None:
            role.process.kill()
            role.process.join()
            if role.process.exitcode == -signal.SIGKILL:
                self.outcome.faults["killed"] += 1
                role.fault = None
                self._start(role)

    def _stop(self, role: _Role, seconds: float) -> None:
        assert role.process is not None and role.process.pid is not None
        if role.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(role.process.pid, signal.SIGSTOP)
                time.sleep(seconds)
                os.kill(role.process.pid, signal.SIGCONT)
                self.outcome.faults["stopped"] += 1

    def _end_broker(self, number: signal.Signals) -> None:
        """It keeps nothing: sessions, subscriptions and retained messages are lost."""
        assert self._broker is not None
        self._broker.send_signal(number)
        self._broker.wait()
        self.outcome.faults["broker killed" if number is signal.SIGKILL else "broker anew"] += 1
        self._broker = start_broker(self._folder, self._port)

    def _set_clock(self, seconds: float) -> None:
        """All processes' wall clocks jump by years; the monotonic one goes on."""
        with (self._folder / _CLOCK_NAME).open("r+b") as file:
            file.write(CLOCK.pack(seconds))
        self.outcome.faults["clock jump"] += 1


class StormError(Exception):
    """A run that did not come to its end."""


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError, IndexError):
        return log.read_text(errors="replace").splitlines()[-1][-300:]
    return "no log"


# Ends ---------------------------------------------------------------------------------------------------


def _write_differences(one: Path, other: Path, found: Path) -> None:
    write_json_atomic(found, ends_differ(one, other), sync=False)


def ends_differ(one: Path, other: Path) -> list[str]:
    """What two finished runs don't have alike, to the bit: weights, moments, states, scores and counters."""
    ends = [_end(folder) for folder in (one, other)]
    names = sorted(ends[0].keys() | ends[1].keys())
    return [name for name in names if ends[0].get(name) != ends[1].get(name)]


def _end(folder: Path) -> dict[str, Any]:
    # Here, because torch takes a while to load, and the benchmark's own process needs none.
    from cloud_server.storage.checkpoint import load_checkpoint, read_tensors

    if not (folder / "result.json").exists():
        return {"result.json": None}
    end: dict[str, Any] = {}
    tensors, meta = load_checkpoint(folder / "cloud" / "checkpoints")
    for name in ("next_stage", "last_trained", "algorithm"):
        end[name] = json.dumps(meta[name], sort_keys=True)
    kept: dict[str, Mapping[str, Any]] = {"cloud": tensors}
    for room in ("best", "own", "served", "statistics", "present"):
        for vehicle, turn_id in meta["algorithm"].get(room, {}).items():
            path = folder / "cloud" / room / vehicle / f"{turn_id}.safetensors"
            kept[f"{room} of {vehicle}"] = read_tensors(path)[0]
    for whose, weights in kept.items():
        for name, tensor in weights.items():
            end[f"{whose}: {name}"] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
    for states in sorted((folder / "vehicles").iterdir()):
        newest = max(states.glob("turn-*.state"), default=None)
        end[states.name] = newest and (newest.name, hashlib.sha256(newest.read_bytes()).hexdigest())
    result = json.loads((folder / "result.json").read_bytes())
    for name in ("mean_local_miou", "mean_ood_miou", "initial_local_miou", "confusion", "steps", "failed"):
        end[name] = result[name]
    for vehicle, entry in result["vehicles"].items():
        uploads = {key: value for key, value in entry["uploads"].items() if key != "discarded"}
        counters = ("queries", "answers_per_frame", "forwards", "ways_back", "left_out")
        end[f"counters of {vehicle}"] = {**uploads, **{name: entry[name] for name in counters}}
    return end


def record(outcome: Outcome) -> dict[str, Any]:
    """A line of the results."""
    return dict(msgspec.to_builtins(outcome))


def clear(folder: Path) -> None:
    """Remove a run's folder, which holds links to what runs share."""
    shutil.rmtree(folder, ignore_errors=True)
