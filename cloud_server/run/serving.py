"""Serves vehicles that drive, beside the run: in a thread of its own, on copies of the networks.

The newest frame of each vehicle waits, and no other; vehicles take turns. The thread rests after each answer,
so that what learns keeps its share of the machine.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from functools import partial

from cloud_server.algorithms.base import Algorithm, Serves
from cloud_server.config import CloudConfig
from cloud_server.desk.handlers.serving import answer, welcome
from cloud_server.desk.registry import Registry
from cloud_server.errors import CloudError, RequestError
from cloud_server.events import Events
from cloud_server.run.served_networks import ServedNetworks
from cloud_server.training.trainer import Trainer
from protocol.codec.tensor import CodecError
from protocol.messages import Classes, Reject, Seen, WantServing
from protocol.messages.serving import SERVED
from protocol.seldom import is_logged
from protocol.session.link import CloudLink, Malformed, MessageTooLarge, Received

log = logging.getLogger(__name__)

_POLL_S = 0.2
_REPORT_S = 60.0


class Serving:
    """A context in which frames are answered.

    `refresh`, `report` and the context belong to the thread of the run.
    """

    def __init__(
        self,
        config: CloudConfig,
        *,
        link: CloudLink,
        registry: Registry,
        events: Events,
        algorithm: Algorithm,
        trainer: Trainer,
    ) -> None:
        """Nothing is answered before the context is entered.

        Raises:
            CloudError: the algorithm doesn't tell what serves a vehicle.
            OutOfMemory: there is no room for a second network.
        """
        assert config.serving is not None
        if not isinstance(algorithm, Serves):
            raise CloudError(
                f"algorithm {config.algorithm} does not tell what serves a vehicle: give it the method "
                f"`serving` (cloud_server.algorithms.base.Serves), or leave out --serve (serving)"
            )
        self._config = config
        self._share = config.serving.share
        self._link = link
        self._registry = registry
        self._events = events
        self._algorithm = algorithm
        self._networks = ServedNetworks(trainer)
        self._intake = link.see()
        self._newest: OrderedDict[str, Received] = OrderedDict()
        """By vehicle: the frame that is to be answered next."""
        self._stop = threading.Event()
        self._refusals = 0
        self._told_s = self._link.clock.now()
        self._told_frames = 0
        self._thread = threading.Thread(target=self._run, name="serving", daemon=True)

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tell()

    def refresh(self, stage: int) -> None:
        """From now on vehicles are served by what is committed now, with `stage` stages done.

        A vehicle that joins later has to wait for the next time.
        """
        vehicles = self._registry.vehicles
        wanted = [
            name
            for name, record in vehicles.items()
            if record.hello is not None and SERVED in record.hello.equipment and not record.failed
        ]
        self._networks.refresh(self._algorithm, wanted, stage)

    def report(self) -> None:
        """Tell the run's recorders once a minute, if there was anything to do."""
        if self._link.clock.now() - self._told_s > _REPORT_S:
            self._tell()

    def _tell(self) -> None:
        served = {name: r.served for name, r in self._registry.vehicles.items() if r.served.frames}
        frames = sum(counts.frames for counts in served.values())
        elapsed_s = max(self._link.clock.now() - self._told_s, 1e-6)
        new, self._told_s, self._told_frames = frames - self._told_frames, self._link.clock.now(), frames
        if new <= 0:
            return
        log.info("serving: %d class maps so far, %.1f a second", frames, new / elapsed_s)
        for vehicle, counts in served.items():
            self._events.event(
                "served",
                vehicle=vehicle,
                frames=counts.frames,
                dropped=counts.dropped,
                served_uplink_bytes=counts.uplink_bytes,
                served_downlink_bytes=counts.downlink_bytes,
            )

    # In its own thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            self._take_in()
            if not self._newest:
                continue
            began_s = self._link.clock.now()
            _, received = self._newest.popitem(last=False)
            try:
                self._answer(received)
            except Exception as error:  # whatever it is, the run is worth more than a frame
                self._refusals += 1
                if is_logged(self._refusals):
                    log.exception("a frame of %s can't be served: %s", received.vehicle, error)
            took_s = self._link.clock.now() - began_s
            self._stop.wait(took_s * (1 / self._share - 1))

    def _take_in(self) -> None:
        """Everything that has arrived; waits for it where nothing is to be done."""
        received = self._intake.receive(0.0 if self._newest else _POLL_S)
        while received is not None:
            if isinstance(received, Malformed):
                self._refuse_malformed(received)
            else:
                self._note(received)
            received = self._intake.receive(0.0)

    def _note(self, received: Received) -> None:
        record = self._registry.vehicles.get(received.vehicle)
        if record is None:
            self._refuse(received.vehicle, "", 0, "not in this fleet", is_known=False)
            return
        record.served.uplink_bytes += received.packet_bytes
        replaced = self._newest.get(received.vehicle)
        record.served.dropped += replaced is not None and isinstance(replaced.message, Seen)
        self._newest[received.vehicle] = received  # whoever waits keeps its place

    def _answer(self, received: Received) -> None:
        message = received.message
        assert isinstance(message, WantServing | Seen), "the channel decodes only these"
        number = message.number if isinstance(message, Seen) else 0
        refuse = partial(self._refuse, message.vehicle, message.session, number)
        try:
            if isinstance(message, WantServing):
                self._send(message.vehicle, welcome(message, self._registry, self._config.coding))
                return
            self._send(message.vehicle, answer(message, self._registry, self._networks))
        except (RequestError, CodecError) as error:
            refuse(str(error))
        else:
            self._registry.vehicles[message.vehicle].served.frames += 1

    def _send(self, vehicle: str, message: Classes) -> None:
        try:
            sending = self._link.answer_seen(vehicle, message)
        except MessageTooLarge as error:
            raise RequestError(str(error)) from error
        self._registry.vehicles[vehicle].served.downlink_bytes += sending.packet_bytes

    def _refuse_malformed(self, malformed: Malformed) -> None:
        self._refuse(
            malformed.vehicle, "", 0, malformed.reason, is_known=malformed.vehicle in self._registry.vehicles
        )

    def _refuse(self, vehicle: str, session: str, number: int, reason: str, *, is_known: bool = True) -> None:
        """Say why a frame is not answered, to the fleet's own vehicles alone; log it ever more rarely."""
        self._refusals += 1
        if is_logged(self._refusals):
            log.warning("served nothing to %r (%d times so far): %s", vehicle, self._refusals, reason)
        if is_known:
            self._registry.vehicles[vehicle].served.refused += 1
            self._send(
                vehicle,
                Reject(vehicle=vehicle, grant=session, step=number, reason=reason[:1000], final=False),
            )
