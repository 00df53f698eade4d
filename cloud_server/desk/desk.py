"""The cloud's desk: who is speaking, to which attempt at a turn; one answer to each request, or a rejection.

What a request asks for is done by the handler of its type, in `cloud_server.desk.handlers`.

Exactly once: a request that comes again gets the answer it got before; one of an older attempt is stale.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from cloud_server.desk.checks import RequestChecks
from cloud_server.desk.handlers.every_turn import EVERY_TURN
from cloud_server.desk.handlers.visit import Handlers, Visit, identity, refusal
from cloud_server.desk.newcomers import Newcomers
from cloud_server.desk.registry import Registry
from cloud_server.desk.turns import ActiveTurn
from cloud_server.errors import CloudError, RequestError
from cloud_server.events import Events
from cloud_server.storage.label_store import LabelError, LabelStore
from cloud_server.training.trainer import DivergedError
from protocol.codec.tensor import CodecError
from protocol.messages import (
    Answer,
    Down,
    FetchUpdate,
    Hello,
    Recall,
    Reject,
    Request,
    Resend,
    Status,
    Turn,
    TurnFailed,
    UpdateNews,
    Welcome,
)
from protocol.messages.down import WHOLE_TURN
from protocol.seldom import is_logged
from protocol.session.link import CloudLink, Malformed, MessageTooLarge, Received, Sending, TooManyWaiting
from protocol.session.topics import CLOUD_ID
from protocol.showing import plain

log = logging.getLogger(__name__)


class Desk:
    """Handles one message at a time, in the server's thread."""

    def __init__(
        self,
        link: CloudLink,
        *,
        registry: Registry,
        labels: LabelStore,
        events: Events,
        max_answers_per_frame: int,
        max_answers_per_vehicle: Callable[[int], int],
        heartbeat_s: float,
        retry_s: float,
    ) -> None:
        """An answer that has gone out is not given again before `retry_s` have passed.

        `max_answers_per_vehicle` gets the number of the vehicle's train frames.
        """
        self._link = link
        self._registry = registry
        self._labels = labels
        self._checks = RequestChecks(registry, labels)
        self._newcomers = Newcomers(registry, heartbeat_s, clock=link.clock.now)
        self._events = events
        self._max_answers_per_frame = max_answers_per_frame
        self._max_answers_per_vehicle = max_answers_per_vehicle
        self._retry_s = retry_s
        self._handlers: Handlers = {}
        self.active: dict[str, ActiveTurn] = {}
        """By vehicle: its turn under way, or its last one, whose answers may be asked for again."""
        self.on_update: Callable[[FetchUpdate | UpdateNews], None] = lambda message: None
        """Hears what vehicles say about updates."""
        self.failure: CloudError | None = None
        """What has come of a request that ends the run."""
        self.status_bytes = 0
        """Size of the cloud's own retained status."""

    def open(self, handlers: Handlers) -> None:
        """From now on the requests of turns are answered: those of every turn, and those of `handlers`."""
        self._handlers = {**EVERY_TURN, **handlers}

    def close(self) -> None:
        """From now on every turn is over."""
        self._handlers = {}

    def handle(self, received: Received | Malformed) -> None:
        """Count, check and answer what has arrived."""
        if isinstance(received, Malformed):
            self._reject_malformed(received)
            return
        message, vehicle = received.message, received.vehicle
        if isinstance(message, Status):
            if vehicle != CLOUD_ID:
                self._note_status(message, received.packet_bytes)
            return
        try:
            record = self._registry.record(vehicle)
        except RequestError as error:
            session = message.session if isinstance(message, Hello) else ""
            self._reject(vehicle, session, 0, str(error), final=bool(session))
            return
        kind = type(message).__name__.lower()
        if isinstance(message, Hello):
            record.count_up(message.session, kind, received.packet_bytes)
            self._hello(message)
            return
        if isinstance(message, FetchUpdate | UpdateNews):
            record.uplink[kind] += received.packet_bytes
            self.on_update(message)
            return
        active = self.active.get(vehicle)
        if active is not None and active.has_answered(message):
            record.repeated_bytes += received.packet_bytes
        elif self._registry.is_about_fleet_split(message):  # type: ignore[arg-type]  # as below
            record.fleet_bytes["up"] += received.packet_bytes
        else:
            record.uplink[kind] += received.packet_bytes
        record.repeated_bytes += received.repeated_bytes
        record.last_seen = self._link.clock.now()
        self._request(message)  # type: ignore[arg-type]  # an up channel decodes only Up

    def settle(self, *, connected: bool) -> None:
        """Take in who had to wait until the earlier process of its vehicle was known to be gone."""
        if not connected:
            self._newcomers.broker_was_away()
        for hello in self._newcomers.admitted():
            if self._registry.record(hello.vehicle).is_news("succession"):
                log.warning("vehicle %s is another process now: the earlier one is gone", hello.vehicle)
            self._take_in(hello)

    def _note_status(self, status: Status, packet_bytes: int) -> None:
        try:
            record = self._registry.record(status.vehicle)
        except RequestError as error:
            self._note_reject(status.vehicle, str(error))
            return
        record.count_up(status.session, "status", packet_bytes)
        was_there, was_online = record.sessions.get(status.session, False), record.online
        self._registry.note_status(status)
        has_left = was_online and not record.online and record.hello is not None
        if has_left and record.is_news("left"):
            record.told_gone = True
            self._events.event("left", vehicle=status.vehicle)
        if status.online:
            if record.told_gone and not was_there and status.session == record.session:
                record.told_gone = False
                self._events.event("back", vehicle=status.vehicle)
            active = self.active.get(status.vehicle)
            if active is not None and not was_there and status.session == record.session:
                active.may_have_missed_grant()
            self._is_alive(status.vehicle, status.session)
            health = status.health if status.session == record.session else None
            if health is not None and record.health_is_due(health, self._link.clock.now()):
                self._events.event("health", vehicle=status.vehicle, **msgspec.structs.asdict(health))
            if self._was_displaced(status.vehicle, status.session):
                self._put_back(status.vehicle)
            elif status.session in record.former:
                self._refuse_second(status.vehicle, status.session)

    def _hello(self, hello: Hello) -> None:
        try:
            self._registry.check(hello)
        except RequestError as error:
            self._registry.record(hello.vehicle).refused = str(error)
            self._reject(hello.vehicle, hello.session, 0, str(error), final=True)
            return
        record = self._registry.record(hello.vehicle)
        if self._was_displaced(hello.vehicle, hello.session):
            self._put_back(hello.vehicle)
            return
        if hello.session in record.former:
            self._refuse_second(hello.vehicle, hello.session)
            return
        if self._newcomers.must_wait(hello):
            if record.is_news("second process"):
                log.warning(
                    "a second process says that it is vehicle %s: it waits until the first one is gone",
                    hello.vehicle,
                )
            return
        self._is_alive(hello.vehicle, hello.session)
        self._take_in(hello)

    def _is_alive(self, vehicle: str, session: str) -> None:
        refused = self._newcomers.refused_by(vehicle, session)
        if refused is not None:
            self._refuse_second(vehicle, refused.session)

    def _was_displaced(self, vehicle: str, session: str) -> bool:
        displaced = self._registry.record(vehicle).displaced
        return displaced is not None and displaced.session == session

    def _put_back(self, vehicle: str) -> None:
        """A process that was taken for dead speaks: it was first, and who took its place may be nobody."""
        record = self._registry.record(vehicle)
        assert record.displaced is not None, "see `_was_displaced`"
        if record.is_news("put back"):
            log.warning("the earlier process of vehicle %s lives: it is the vehicle again", vehicle)
        newcomer = record.session
        self._take_in(record.displaced)
        record.displaced = None
        self._refuse_second(vehicle, newcomer)

    def turn_away(self, hello: Hello, reason: str) -> None:
        """A vehicle that was taken in does not fit after all."""
        self._reject(hello.vehicle, hello.session, 0, reason, final=True)

    def _refuse_second(self, vehicle: str, session: str) -> None:
        reason = "another process of this vehicle is at work; stop it, or give this one an id of its own"
        self._reject(vehicle, session, 0, reason, final=True)

    def _take_in(self, hello: Hello) -> None:
        try:
            is_new = self._registry.admit(hello)
        except RequestError as error:
            self._reject(hello.vehicle, hello.session, 0, str(error), final=True)
            return
        self._link.meet(hello.vehicle, hello.session)
        self.send(hello.vehicle, Welcome(vehicle=hello.vehicle, session=hello.session))
        if is_new:
            record = self._registry.vehicles[hello.vehicle]
            # A new subscriber gets the retained status of the cloud.
            record.downlink["status"] += self.status_bytes
            if record.is_news("joined") or record.told_gone:
                record.told_gone = False
                encoder = plain(hello.encoder)
                self._events.event("joined", vehicle=hello.vehicle, encoder=encoder, frames=hello.frames)
        active = self.active.get(hello.vehicle)
        if active and not active.done:
            if not active.begun and not is_new:  # nobody answered its hello, or it has missed the grant
                active.may_have_missed_grant()
            elif is_new or not self._link.is_sealed:  # unsealed, others' words may have led it astray
                active.abandoned = True

    def _request(self, request: Request | Recall) -> None:
        active = self.active.get(request.vehicle)
        if active is None or not active.is_attempt(request):
            self._reject(request.vehicle, request.grant, request.step, "stale turn", final=False)
            return
        self._is_alive(request.vehicle, self._registry.record(request.vehicle).session)
        answer = active.answers.get(request.step)
        if answer is not None:
            if not active.is_on_its_way(request.step, self._link.clock.now(), self._retry_s):
                active.sendings[request.step] = self._send_answer(request, answer)
            return
        if isinstance(request, Recall):
            self.send(request.vehicle, Resend(**identity(request)))
            return
        active.sendings[request.step] = self._reply(request, active)

    def _reply(self, request: Request, active: ActiveTurn) -> Sending | None:
        """Answer a request that is new, or reject it."""
        try:
            answer = self._answer(request, active)
        except (RequestError, LabelError, CodecError) as error:
            self._reject(request.vehicle, request.grant, request.step, str(error), final=True)
            return None
        except DivergedError as error:
            self.failure = CloudError(f"training diverged in turn {request.turn_id}: {error}")
            return None
        active.answers[request.step] = answer
        return self._send_answer(request, answer)

    def _answer(self, request: Request, active: ActiveTurn) -> Answer:
        """Do what a request asks for, once.

        Raises:
            RequestError, LabelError, CodecError: it does not fit; nothing has changed.
            DivergedError: the network has learnt from it to no good.
        """
        if active.done or not self._handlers:
            raise RequestError(f"turn {request.turn_id} is over")
        most = self._checks.most_requests(active.turn, self._max_answers_per_frame)
        if len(active.answers) >= most and not isinstance(request, TurnFailed):
            raise RequestError(f"turn {request.turn_id} has had {most} requests; no turn needs more")
        handler = self._handlers.get(type(request))
        if handler is None:
            raise refusal(type(request))
        visit = Visit(
            active=active,
            checks=self._checks,
            labels=self._labels,
            max_answers_per_frame=self._max_answers_per_frame,
            max_answers_per_vehicle=self._max_answers_per_vehicle(
                len(self._registry.frames(request.vehicle, "train"))
            ),
            now=self._link.clock.now(),
        )
        return handler(request, visit)

    def _send_answer(self, request: Request | Recall, answer: Answer) -> Sending | None:
        return self.send(
            request.vehicle, answer, about_fleet_split=self._registry.is_about_fleet_split(request)
        )

    def send(self, vehicle: str, message: Down, *, about_fleet_split: bool = False) -> Sending | None:
        """Put a message to a vehicle on its way, as its downlink; None: it can't be sent."""
        try:
            sending = self._link.send(vehicle, message)
        except MessageTooLarge as error:
            self._note_too_large(vehicle, error)
            return None
        except TooManyWaiting as error:
            known = self._registry.vehicles.get(vehicle)
            if known is not None and known.is_news("undelivered"):
                self._events.event("undelivered", vehicle=vehicle, reason=str(error))
            return None
        if vehicle in self._registry.vehicles:
            record = self._registry.vehicles[vehicle]
            if about_fleet_split:
                record.fleet_bytes["down"] += sending.packet_bytes
            else:
                record.downlink[type(message).__name__.lower()] += sending.packet_bytes
        if isinstance(message, Turn):
            self.active[vehicle].granting = sending
        return sending

    def _note_too_large(self, vehicle: str, error: MessageTooLarge) -> None:
        """A vehicle says that it takes too little: its turn can't be done, and nobody else's ends."""
        active, known = self.active.get(vehicle), self._registry.vehicles.get(vehicle)
        if known is not None and known.is_news("too large"):
            log.warning("%s", error)
            self._events.event("undelivered", vehicle=vehicle, reason=str(error))
        if active is not None and not active.done and active.failed is None:
            active.failed = f"{error}; it belongs to another run, or has another local model"

    def let_go(self, turn: Turn, reason: str) -> None:
        """Tell a vehicle that its turn is over without it."""
        told = Reject(
            vehicle=turn.vehicle, grant=turn.grant, step=WHOLE_TURN, reason=reason[:1000], final=False
        )
        self.send(turn.vehicle, told)

    def _reject(self, vehicle: str, grant: str, step: int, reason: str, *, final: bool) -> None:
        self._note_reject(vehicle, reason)
        self.send(vehicle, Reject(vehicle=vehicle, grant=grant, step=step, reason=reason[:1000], final=final))

    def _note_reject(self, vehicle: str, reason: str) -> None:
        """Count it; log the first ones, then ever fewer, so that nobody can fill the disk."""
        self._link.refused(vehicle)
        count = self._registry.count_reject(vehicle)
        if is_logged(count):
            log.warning("rejected a message of %r (%d so far): %s", vehicle, count, reason)
            self._events.event("reject", vehicle=vehicle, reason=reason, count=count)

    def _reject_malformed(self, malformed: Malformed) -> None:
        """Answer only the fleet's own vehicles: nobody else can be expected to speak the protocol."""
        vehicle = malformed.vehicle
        if vehicle in self._registry.vehicles:
            record = self._registry.vehicles[vehicle]
            record.uplink["malformed"] += malformed.packet_bytes
            if record.hello is None:
                record.refused = malformed.reason
            self._reject(vehicle, "", 0, malformed.reason, final=False)
        else:
            self._note_reject(vehicle, malformed.reason)
