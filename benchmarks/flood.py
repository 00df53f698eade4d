"""What one vehicle that floods its own topics costs the others: their rounds' time, and the cloud's memory.

`python -m benchmarks.flood` runs three vehicles with `blackfed-v2`, one after the other, over a broker. In
every second round, while others have their turns, somebody sends 10,000 messages a second as the third: a
byte each, statuses, requests of turns that are over, beginnings of messages that never end, one of them
again and again. In its own turns it sends features, or labels, that inflate to a gigabyte. Prints, for each
flood, the time and the cloud's CPU seconds of the other vehicles' turns with and without it, of one run, and
its memory and log before and after; and a JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import secrets
import shutil
import socket
import statistics
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.options import some_of
from benchmarks.small_fleets import Life, copy_settings, forked, live, start_broker, undisturbed
from cloud_server.config import read_config
from fleet import broker
from protocol.codec.tensor import EncodedTensor
from protocol.messages import Labels, OfferedLabel, Recall, Status, Turn, Upload
from protocol.mqtt.broker_url import BROKER_VARIABLE
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session import parts, topics
from protocol.session.transport import Delivery

FLOODER = "car-03"
PER_SECOND = 10_000
_BATCH = 100
_BOMB_BYTES = 1 << 30
_SETTINGS: dict[str, Any] = {
    "algorithm": "blackfed-v2",
    "vehicles": 3,
    "rounds": 8,
    "first_order.epochs": 12,
    "zeroth_order.batches": 8,
}
Payloads = Callable[["Flood"], Iterator[bytes]]


@dataclass(kw_only=True)
class Flood:
    """What the flooder knows."""

    fleet: str
    grant: str = "0" * 16
    turn_id: int = 1


def _packed(message: object) -> bytes:
    return parts.split(msgspec.msgpack.encode(message), 1 << 20, 0)[0]


def _one_byte(flood: Flood) -> Iterator[bytes]:
    return itertools.repeat(b"\x07")


def _statuses(flood: Flood) -> Iterator[bytes]:
    while True:
        yield _packed(Status(vehicle=FLOODER, session=secrets.token_hex(8), online=True, beat=1))


def _stale_requests(flood: Flood) -> Iterator[bytes]:
    for step in itertools.count():
        yield _packed(Recall(vehicle=FLOODER, grant="0" * 16, turn_id=1, step=step))


def _beginnings(flood: Flood) -> Iterator[bytes]:
    for number in itertools.count():
        yield parts.split(bytes(2000), 1200, number)[0]


def _repetitions(flood: Flood) -> Iterator[bytes]:
    return itertools.repeat(parts.split(bytes(4000), 1200, 1)[0])


def _bomb() -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 20)
    return b"".join(squeeze.compress(zeros) for _ in range(_BOMB_BYTES >> 20)) + squeeze.flush()


def _label_bombs(flood: Flood) -> Iterator[bytes]:
    data = _bomb()
    for step in itertools.count(10**6):
        offered = OfferedLabel(index=0, key="bomb", digest=step.to_bytes(8, "big"), height=4096, width=4096)
        request = Labels(
            vehicle=FLOODER, grant=flood.grant, turn_id=flood.turn_id, step=step, labels=((offered, data),)
        )
        yield from parts.split(msgspec.msgpack.encode(request), 1 << 17, step)


def _bombs(flood: Flood) -> Iterator[bytes]:
    data = _bomb()
    for step in itertools.count(10**6):
        features = EncodedTensor(8, (4, 4, 6, 8), bytes(16), bytes(16), data)
        request = Upload(
            vehicle=FLOODER,
            grant=flood.grant,
            turn_id=flood.turn_id,
            step=step,
            split="train",
            frames=(0, 1, 2, 3),
            features=features,
        )
        yield from parts.split(msgspec.msgpack.encode(request), 1 << 17, step)


FLOODS: dict[str, tuple[Payloads, int, bool]] = {
    "one byte": (_one_byte, PER_SECOND, False),
    "statuses": (_statuses, PER_SECOND, False),
    "stale requests": (_stale_requests, PER_SECOND, False),
    "beginnings": (_beginnings, PER_SECOND, False),
    "repetitions": (_repetitions, PER_SECOND, False),
    "zip bombs": (_bombs, 100, True),
    "label bombs": (_label_bombs, 100, True),
}
"""By name: payloads, how many a second, and whether they come in the flooder's own turns."""


def main() -> None:
    """Run each flood, and print table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--floods", type=some_of(FLOODS), default=tuple(FLOODS), help="some, with semicolons")
    parser.add_argument("--rounds", type=int, default=8, help="half of them with the flood (default 8)")
    options = parser.parse_args()
    context = forked()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {**_SETTINGS, "rounds": options.rounds}
        template = undisturbed(Path(folder).resolve() / "undisturbed", settings, context)
        for name in options.floods:
            rows[name] = Flooded(template, Path(folder).resolve() / "run", name, context).run()
            Console(stderr=True).print(name, rows[name])
    Console(width=140).print(_table(rows))
    print(json.dumps({"benchmark": "flood", "per_second": PER_SECOND, "floods": rows}))


@dataclass
class _Turns:
    """Of the others, with or without the flood."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


class Flooded:
    """One run with a flood in every second round."""

    def __init__(self, template: Path, folder: Path, name: str, context: ForkServerContext) -> None:
        self._template, self._folder, self._context = template, folder, context
        self._payloads, self._per_second, self._in_own_turns = FLOODS[name]
        self._port = broker.free_port()
        self._processes: list[BaseProcess] = []

    def run(self) -> dict[str, Any]:
        """What it cost."""
        shutil.rmtree(self._folder, ignore_errors=True)
        copy_settings(self._template, self._folder)
        serving = start_broker(self._folder, self._port)
        try:
            cloud = self._start(
                "cloud",
                "cloud_server.command",
                f"--config={self._folder / 'cloud.json'}",
                f"--run-dir={self._folder}",
            )
            for path in sorted((self._folder / "hosts").glob("*.json")):
                self._start(path.stem, "edge_client.command", f"--config={path}")
            return self._measure(cloud)
        finally:
            for process in self._processes:
                process.kill()
                process.join()
            serving.kill()
            serving.wait()

    def _start(self, name: str, module: str, *arguments: str) -> BaseProcess:
        life = Life(
            module=module,
            arguments=arguments,
            environment={BROKER_VARIABLE: broker.broker_url(self._port)},
            log=self._folder / "processes" / f"{name}.log",
        )
        process = self._context.Process(target=live, args=(life,))
        process.start()
        self._processes.append(process)
        return process

    def _measure(self, cloud: BaseProcess) -> dict[str, Any]:
        turns = {False: _Turns(), True: _Turns()}
        resident = {False: 0.0, True: 0.0}
        fleet = read_config(self._folder / "cloud.json").fleet
        sent = self._context.Value("q", 0)
        flooding = self._context.Value("b", 0)
        arguments = (fleet, self._port, self._payloads, self._per_second, flooding, sent)
        flooder = self._context.Process(target=flood, args=arguments)
        flooder.start()
        self._processes.append(flooder)
        began: tuple[float, float] | None = None
        offset = 0
        assert cloud.pid is not None
        while cloud.exitcode is None:
            with_flood = bool(flooding.value)
            resident[with_flood] = max(resident[with_flood], _status_mb(cloud.pid, "VmRSS"))
            lines, offset = _new_lines(self._folder / "log.jsonl", offset)
            for event in map(json.loads, lines):
                if event["event"] == "turn" and event["kind"] not in ("initial", "final"):
                    others = event["vehicle"] != FLOODER
                    flooding.value = event["round"] % 2 == 0 and others != self._in_own_turns
                    began = (time.monotonic(), _cpu_s(cloud.pid)) if others else None
                    of_flood = event["round"] % 2 == 0
                elif event["event"] == "committed" and began is not None:
                    turns[of_flood].seconds.append(time.monotonic() - began[0])
                    turns[of_flood].cpu_seconds.append(_cpu_s(cloud.pid) - began[1])
                    began = None
                    flooding.value = 0
                elif event["event"] == "result":
                    flooding.value = 0
            time.sleep(0.005)
        if cloud.exitcode:
            said = (self._folder / "processes" / "cloud.log").read_text(errors="replace").splitlines()
            raise SystemExit(f"the cloud ended with {cloud.exitcode}: {' | '.join(said[-2:])}")
        return {
            "sent": sent.value,
            "seconds": [statistics.median(turns[on].seconds) for on in (False, True)],
            "ratio": statistics.median(turns[True].seconds) / statistics.median(turns[False].seconds),
            "cpu_ratio": statistics.median(turns[True].cpu_seconds)
            / statistics.median(turns[False].cpu_seconds),
            "resident_mb": [resident[on] for on in (False, True)],
            "log_kb": [_log_kb(folder) for folder in (self._template, self._folder)],
            "same_result": _scores(self._template) == _scores(self._folder),
        }


def flood(fleet: str, port: int, payloads: Payloads, per_second: int, flooding: Any, sent: Any) -> None:
    """Be the flooder: a client of few words, and an ear for its vehicle's grants."""
    state = Flood(fleet=fleet)
    messages = payloads(state)
    topic = topics.topic(topics.UP, fleet, FLOODER)
    statuses = payloads is _statuses
    if statuses:
        topic = topics.topic(topics.STATUS, fleet, FLOODER)
    parent = os.getppid()
    with NetworkLoop() as loop, socket.create_connection((broker.HOST, port)) as connection:
        ear = MqttTransport(broker.broker_url(port), f"ear-{secrets.token_hex(4)}", loop=loop)
        ear.subscribe(topics.topic(topics.DOWN, fleet, FLOODER), partial(_hear, state))
        ear.connect(30)
        client_id = f"flooder-{secrets.token_hex(4)}".encode()
        connection.sendall(_packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + _text(client_id)))
        head = _text(topic.encode())
        batch = min(_BATCH, max(1, per_second // 100))
        due = time.monotonic()
        while os.getppid() == parent:
            if not flooding.value:
                time.sleep(0.01)
                due = time.monotonic()
                continue
            connection.sendall(b"".join(_packet(0x30, head + next(messages)) for _ in range(batch)))
            sent.value += batch
            due += batch / per_second
            time.sleep(max(0.0, due - time.monotonic()))
        ear.close()


def _hear(state: Flood, delivery: Delivery) -> None:
    """Take the grant of a turn."""
    message = parts.whole_message(delivery.payload)
    if message is not None and b"turn" in message[:16]:
        turn = msgspec.msgpack.decode(message, type=Turn)
        state.grant, state.turn_id = turn.grant, turn.turn_id


def _packet(kind: int, body: bytes) -> bytes:
    length, left = bytearray(), len(body)
    while True:
        left, low = left >> 7, left & 127
        length.append(low | 128 * (left > 0))
        if not left:
            return bytes([kind]) + bytes(length) + body


def _text(words: bytes) -> bytes:
    return struct.pack(">H", len(words)) + words


def _new_lines(path: Path, offset: int) -> tuple[list[bytes], int]:
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)


def _cpu_s(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_mb(process_id: int, name: str) -> float:
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def _log_kb(folder: Path) -> float:
    logs = [folder / "log.jsonl", folder / "processes" / "cloud.log"]
    return sum(path.stat().st_size for path in logs if path.exists()) / 1024


def _scores(folder: Path) -> Sequence[Any]:
    result = json.loads((folder / "result.json").read_bytes())
    return [result["confusion"], result["mean_local_miou"], result["mean_ood_miou"]]


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="the others' turns, without and with a flood, and the cloud")
    for column in ("flood", "sent", "seconds", "ratio", "its CPU", "resident MB", "log kB", "same result"):
        table.add_column(column, justify="left" if column == "flood" else "right")
    for name, row in rows.items():
        pairs = (
            " → ".join(f"{value:.4g}" for value in row[key]) for key in ("seconds", "resident_mb", "log_kb")
        )
        seconds, resident, logs = pairs
        ratios = f"{row['ratio']:.2f}", f"{row['cpu_ratio']:.2f}"
        table.add_row(name, f"{row['sent']:,}", seconds, *ratios, resident, logs, str(row["same_result"]))
    return table


if __name__ == "__main__":
    main()
