"""Large messages behind slow, late, breaking lines: nothing is sent twice, and nobody waits for a neighbour.

`python -m benchmarks.slow_transfer --megabytes 110 --kb-s 4000 --cut-s 20` lets five vehicles fetch weights
of so many megabytes over a broker and send them back, without any training: the session of a `fedavg` run
by itself. It prints a line for each vehicle and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.slow_line import SlowLine
from fleet import broker
from protocol.codec.weights import WeightTensor
from protocol.messages import FetchWeights, Status, Update, Weights
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session.link import CloudLink, Received, VehicleLink

_FLEET, _SESSION, _DELAY_S = "transfer", "0" * 16, 0.3


class Vehicle(threading.Thread):
    """Fetches the weights and sends them back."""

    def __init__(self, name: str, url: str, loop: NetworkLoop, limit_bytes: int) -> None:
        super().__init__(name=name)
        transport = MqttTransport(url, name, loop=loop, on_connect=self._connected)
        self.link = VehicleLink(transport, _FLEET, name, limit_bytes=limit_bytes)
        self.fetched_s = self.sent_s = 0.0
        self._began = time.monotonic()

    def run(self) -> None:
        header: dict[str, Any] = {"vehicle": self.name, "grant": _SESSION, "turn_id": 0}
        self.link.open(30)
        self.link.send(FetchWeights(**header, step=0))
        while not isinstance(weights := self._message(), Weights):
            pass
        self.fetched_s = time.monotonic() - self._began
        sending = self.link.send(Update(**header, step=1, samples=1, loss=0.0, tensors=weights.tensors))
        while not sending.done:
            self._message()
        self.sent_s = time.monotonic() - self._began

    def _connected(self) -> None:
        self.link.resume()
        self.link.announce(Status(vehicle=self.name, session=_SESSION, online=True, beat=0))

    def _message(self) -> object:
        received = self.link.receive(0.2)
        return received.message if isinstance(received, Received) else None


def serve(link: CloudLink, tensors: tuple[WeightTensor, ...], vehicles: int) -> bool:
    """Answer until every vehicle has sent its weights; whether all came back as they went."""
    same = []
    while len(same) < vehicles:
        received = link.receive(0.2)
        if not isinstance(received, Received):
            continue
        message = received.message
        if isinstance(message, FetchWeights):
            weights = Weights(
                vehicle=message.vehicle, grant=message.grant, turn_id=0, step=0, tensors=tensors
            )
            link.send(message.vehicle, weights)
        elif isinstance(message, Update):
            same.append(message.tensors == tensors)
    return all(same)


def measure(megabytes: int, kb_s: int, cut_s: float | None, vehicles: int) -> dict[str, Any]:
    """Seconds and bytes of one exchange."""
    data = os.urandom(1000) * (megabytes * 1000)
    limit_bytes = len(data) + 10_000
    tensors = (WeightTensor("weights", (len(data) // 4,), data),)
    names = [f"car-{number + 1}" for number in range(vehicles)]
    port = broker.free_port()
    with tempfile.TemporaryDirectory() as folder, NetworkLoop() as near, NetworkLoop() as far:
        process = subprocess.Popen(broker.broker_command(broker.choose_kind(), port, Path(folder)))
        try:
            broker.wait_ready(broker.HOST, port, 30)
            with SlowLine(port, bytes_per_s=1000 * kb_s, delay_s=_DELAY_S, cut_s=cut_s) as line:
                url = broker.broker_url(port)
                transport = MqttTransport(url, "cloud", loop=near, on_connect=lambda: cloud.resume())
                cloud = CloudLink(transport, _FLEET, vehicles=names, limit_bytes=limit_bytes)
                cloud.open(30)
                cloud.announce(Status(vehicle="cloud", session=_SESSION, online=True, beat=0))
                make = partial(Vehicle, url=broker.broker_url(line.port), loop=far, limit_bytes=limit_bytes)
                cars = [make(name) for name in names]
                for car in cars:
                    car.start()
                same = serve(cloud, tensors, vehicles)
                for car in cars:
                    car.join()
                down_bytes = cloud.transport.traffic.sent_bytes
                up_bytes = sum(car.link.transport.traffic.sent_bytes for car in cars)
                for link in (*(car.link for car in cars), cloud):
                    link.close()
        finally:
            process.terminate()
            process.wait()
    return {
        "same_bits": same,
        "fetched_s": [round(car.fetched_s, 1) for car in cars],
        "sent_s": [round(car.sent_s, 1) for car in cars],
        "cuts": line.cuts,
        "down_ratio": down_bytes / (vehicles * len(data)),
        "up_ratio": up_bytes / (vehicles * len(data)),
    }


def main() -> None:
    """Measure once; print lines for people and a JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_transfer", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=110, help="of the weights (default 110)")
    parser.add_argument(
        "--kb-s", type=int, default=4000, help="of each vehicle's line, each way (default 4000)"
    )
    parser.add_argument("--cut-s", type=float, help="reset all connections so often (default: never)")
    parser.add_argument("--vehicles", type=int, default=5, help="default 5")
    options = parser.parse_args()
    row = measure(options.megabytes, options.kb_s, options.cut_s, options.vehicles)
    console = Console(stderr=True)
    for number, (fetched_s, sent_s) in enumerate(zip(row["fetched_s"], row["sent_s"], strict=True)):
        console.print(f"car-{number + 1}: fetched after {fetched_s:.0f} s, sent back after {sent_s:.0f} s")
    console.print(f"published: down {row['down_ratio']:.4f}, up {row['up_ratio']:.4f} of the weights' bytes")
    print(json.dumps({**vars(options), **row}))


if __name__ == "__main__":
    main()
