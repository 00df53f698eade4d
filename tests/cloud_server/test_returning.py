"""A car that was away when its turn was granted gets the grant as soon as it is back."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from fleet_fixtures import CARS, FLEET, TinyFleet, tag
from supervision import Supervisor

from cloud_server.config import PatienceConfig
from protocol.session import topics
from protocol.session.memory import MemoryBus, MemoryTransport

CAR = CARS[0]
RETRY_S = 60.0


def test_grant_that_a_car_has_missed_is_repeated_when_it_comes_back(
    undisturbed: TinyFleet, tmp_path: Path
) -> None:
    bus, missed = MemoryBus(), threading.Event()
    down = topics.topic(topics.DOWN, FLEET, CAR)

    def lose(topic: str, payload: bytes) -> bool:
        if topic != down or tag(payload) != "turn" or missed.is_set():
            return False
        missed.set()
        return True

    bus.set_faults(drop=lose)
    patience = PatienceConfig(join_s=30, retry_s=RETRY_S, give_up_s=90, heartbeat_s=0.5)
    fleet = TinyFleet(undisturbed.world, tmp_path, patience=patience)
    supervisor = Supervisor(fleet, bus)

    def come_back() -> None:
        assert missed.wait(60)
        [transport] = supervisor.transports(CAR)
        assert isinstance(transport, MemoryTransport)
        transport.drop()
        transport.connect(1)

    returning = threading.Thread(target=come_back)
    returning.start()
    began = time.monotonic()
    supervisor.run()
    returning.join()
    assert missed.is_set() and time.monotonic() - began < RETRY_S
    assert fleet.fingerprint() == undisturbed.fingerprint()
    joined, left, back = (fleet.events(name) for name in ("joined", "left", "back"))
    assert [event["vehicle"] for event in back] == [CAR]
    firsts = [next(event for event in told if event["vehicle"] == CAR) for told in (joined, left, back)]
    times = [event["time"] for event in firsts]
    assert times == sorted(times)
