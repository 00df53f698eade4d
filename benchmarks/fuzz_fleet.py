"""A fleet at work over a real broker: recorded, or under fire from mutated messages."""

from __future__ import annotations

import json
import random
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.fuzz_targets import mutate, read_recorded, write_recorded
from benchmarks.small_fleets import Life, copy_settings, forked, live, start_broker, undisturbed
from cloud_server.config import read_config
from fleet import broker
from protocol import messages
from protocol.doors import file_name
from protocol.mqtt.broker_url import BROKER_VARIABLE
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session import inbox, parts, topics
from protocol.session.transport import Delivery

CASES: dict[str, dict[str, Any]] = {
    "blackfed-v2": {"algorithm": "blackfed-v2"},
    "blackfleet, one encoder": {
        "algorithm": "blackfleet",
        "sharing.encoder": "weights",
        "local_loss.warm_up_epochs": 0,
        "blackfleet.serving": "latest",
    },
    "split": {"algorithm": "split"},
}
"""What is recorded."""
_UNDER_FIRE: dict[str, Any] = {"algorithm": "blackfed-v2", "rounds": 4}
_FORGERIES = messages.Turn | messages.Finish | messages.Welcome | messages.Reject | messages.Status
"""What a broker's access list must keep others from saying to a vehicle: whole, they are heeded."""
_LIMIT_S = 900.0


def record_runs(folder: Path, path: Path, context: ForkServerContext) -> None:
    """Run each of `CASES` over a broker, and keep all that crosses."""
    heard: list[tuple[str, bytes]] = []
    for name, settings in CASES.items():
        template = undisturbed(folder / file_name(f"{name} undisturbed"), settings, context)
        with (
            _fleet(template, folder / "run", context) as (processes, port, fleet),
            _client(port) as ear,
        ):
            ear.subscribe(f"{topics.PREFIX}/{fleet}/#", partial(_hear, heard))
            _wait(processes[0])
    write_recorded(path, heard)


def _hear(heard: list[tuple[str, bytes]], delivery: Delivery) -> None:
    heard.append((delivery.topic, delivery.payload))


def run_under_fire(recorded: Path, out: Path, seed: int, per_second: int, most: int) -> dict[str, Any]:
    """One run under fire, of at most so many messages, compared with the same run in peace."""
    context = forked()
    template = undisturbed(out / "peace", _UNDER_FIRE, context)
    draw, folder, sent = random.Random(f"{seed} broker"), out / "fire", 0
    loot = [(topic, payload) for topic, payload in read_recorded(recorded) if 0 < len(payload) <= 8192]
    payloads = [payload for _, payload in loot]
    with _fleet(template, folder, context) as (processes, port, fleet), _client(port) as gun:
        cloud, vehicle = processes[0], processes[1]
        before_mb, most_mb = (0.0, 0.0), (0.0, 0.0)
        deadline, due = time.monotonic() + _LIMIT_S, time.monotonic()
        while cloud.exitcode is None and time.monotonic() < deadline:
            for _ in range(50 if sent < most else 0):
                topic, payload = draw.choice(loot)
                aimed = _aim(topic, fleet, draw)
                shot = mutate(payload, payloads, draw)
                if not _is_forgery(aimed, shot):
                    gun.publish(aimed, shot, qos=draw.getrandbits(1))
                    sent += 1
            now_mb = _resident_mb(cloud), _resident_mb(vehicle)
            before_mb = before_mb if any(before_mb) and sent > 2000 else now_mb
            most_mb = max(most_mb[0], now_mb[0]), max(most_mb[1], now_mb[1])
            due = max(due + 50 / per_second, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))
        crashes = _crashes(folder)
        sizes = {
            "cloud_mb": [before_mb[0], most_mb[0]],
            "vehicle_mb": [before_mb[1], most_mb[1]],
            "log_kb": [_log_kb(template), _log_kb(folder)],
        }
        if cloud.exitcode != 0:
            ends = [f"{name}: {_last_line(folder, name)}" for name in ("cloud", "host-01", "host-02")]
            crashes += [_how_it_ended(cloud), *ends]
            shutil.copytree(folder / "processes", out / f"failed-{seed}", dirs_exist_ok=True)
            return _line(sent, same=False, crashes=crashes, **sizes)
    result, peace = (json.loads((each / "result.json").read_bytes()) for each in (folder, template))
    same = all(
        result[key] == peace[key] for key in ("confusion", "mean_local_miou", "mean_ood_miou", "steps")
    )
    rejects = sum(entry["rejects"] for entry in result["vehicles"].values())
    return _line(
        sent,
        same=same,
        crashes=crashes,
        refused=rejects + result["strangers"],
        **sizes,
    )


def _line(sent: int, *, same: bool, crashes: Sequence[str], **more: Any) -> dict[str, Any]:
    nothing = {"refused": 0, "cloud_mb": [0, 0], "vehicle_mb": [0, 0], "log_kb": [0, 0]}
    return {"sent": sent, "same": same, "crashes": list(crashes), **nothing, **more}


def _aim(topic: str, fleet: str, draw: random.Random) -> str:
    """The same channel of this fleet; now and then of a stranger, or another channel."""
    address = topics.parse(topic)
    channel = draw.choice([*topics.CHANNELS.values()]) if draw.random() < 0.1 else address.channel
    vehicle = f"stranger-{draw.getrandbits(12)}" if draw.random() < 0.1 else address.vehicle
    return topics.topic(channel, fleet, vehicle)


_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(messages.Down | messages.Status)


def _is_forgery(topic: str, payload: bytes) -> bool:
    """Whether it is whole, and what a vehicle heeds: a message to it, or a sign of life of a cloud."""
    address = topics.parse(topic)
    if address.channel is not topics.DOWN and address.vehicle != topics.CLOUD_ID:
        return False
    try:
        message = parts.whole_message(payload)
        return message is not None and isinstance(_DECODER.decode(message), _FORGERIES)
    except (parts.PartsError, msgspec.DecodeError, UnicodeDecodeError):
        return False


@contextmanager
def _fleet(
    template: Path, folder: Path, context: ForkServerContext
) -> Iterator[tuple[list[BaseProcess], int, str]]:
    """Cloud and vehicles over a broker: the processes, the cloud first, its port, and the fleet's name."""
    shutil.rmtree(folder, ignore_errors=True)
    copy_settings(template, folder)
    port = broker.free_port()
    serving = start_broker(folder, port)
    processes: list[BaseProcess] = []
    try:
        commands = {
            "cloud": ("cloud_server.command", [f"--config={folder}/cloud.json", f"--run-dir={folder}"])
        }
        for path in sorted((folder / "hosts").glob("*.json")):
            commands[path.stem] = ("edge_client.command", [f"--config={path}"])
        for name, (module, arguments) in commands.items():
            life = Life(
                module=module,
                arguments=arguments,
                environment={BROKER_VARIABLE: broker.broker_url(port)},
                log=folder / "processes" / f"{name}.log",
            )
            processes.append(context.Process(target=live, args=(life, mute_nobody)))
            processes[-1].start()
        yield processes, port, read_config(folder / "cloud.json").fleet
    finally:
        for process in processes:
            process.kill()
            process.join()
        serving.kill()
        serving.wait()


def mute_nobody() -> None:
    """Let a process hear all that it is sent, else nearly all would be left out."""
    inbox.MOST_OFFENCES = inbox.MOST_STATUSES = 10**9


@contextmanager
def _client(port: int) -> Iterator[MqttTransport]:
    with NetworkLoop() as loop:
        client = MqttTransport(broker.broker_url(port), f"fuzz-{secrets.token_hex(4)}", loop=loop)
        client.connect(30)
        try:
            yield client
        finally:
            client.close()


def _wait(cloud: BaseProcess) -> None:
    cloud.join(_LIMIT_S)
    if cloud.exitcode != 0:
        raise SystemExit(f"a run that was to be recorded ended with {cloud.exitcode}")


def _crashes(folder: Path) -> list[str]:
    """Tracebacks in what the processes have said."""
    found = []
    for log in (folder / "processes").glob("*.log"):
        text = log.read_text(errors="replace")
        if "Traceback" in text:
            found.append(f"{log.stem}: {text[text.index('Traceback') :][:2000]}")
    return found


def _how_it_ended(cloud: BaseProcess) -> str:
    if cloud.exitcode is None:
        return f"not ended in {_LIMIT_S:g} s"
    return f"the cloud's exit code: {cloud.exitcode}"


def _last_line(folder: Path, name: str) -> str:
    lines = (folder / "processes" / f"{name}.log").read_text(errors="replace").splitlines()
    return lines[-1][:500] if lines else ""


def _resident_mb(process: BaseProcess) -> float:
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def _log_kb(folder: Path) -> float:
    logs = [folder / "log.jsonl", *(folder / "processes").glob("*.log")]
    return round(sum(path.stat().st_size for path in logs if path.exists()) / 1024, 1)
