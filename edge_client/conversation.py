"""Requests and their answers, over a network that loses, repeats and reorders.

A request goes out once. How it gets to the cloud is the session's business; here it is known when it has
arrived. If no answer comes, the vehicle asks what became of it (`Recall`, a few bytes): the cloud gives the
answer that it gave before, or says that it never had the request, which then goes out again, unchanged. So a
lost, doubled or late message changes nothing, and a busy cloud or a slow line costs no bytes.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from edge_client.errors import CloudSilent, TurnRefused, VehicleError
from edge_client.pending import Pending
from protocol.messages import (
    Answer,
    Down,
    Finish,
    Reject,
    Request,
    Resend,
    Status,
    Turn,
    UpdateOffer,
    UpdatePart,
    Welcome,
)
from protocol.messages.down import WHOLE_TURN
from protocol.seldom import is_logged
from protocol.session.link import Malformed, MessageTooLarge, Received, Sending, VehicleLink
from protocol.session.transport import BrokerUnreachable

log = logging.getLogger(__name__)

_POLL_S = 0.5
DEFAULT_OFFLINE_S = 86400.0
"""A day: how long a car waits for a network that is gone."""


class Superseded(Exception):
    """A turn was granted while another one was under way: the old attempt is void."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(f"turn {turn.turn_id} granted anew")
        self.turn = turn


class Voided(Exception):
    """The cloud knows nothing of the attempt under way: it went on, or started anew, without this vehicle."""


class LetGo(Exception):
    """The turn under way is over: the round went on without this vehicle."""


class Finished(Exception):
    """The run is over."""


class Stopped(Exception):
    """This process was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a vehicle waits for what."""

    retry_s: float = 5.0
    """An unanswered request is recalled after this, then after twice this, up to 30 s."""
    give_up_s: float = 600.0
    """A silent cloud ends the vehicle after this; far above the cloud's heartbeat."""
    offline_s: float | None = None
    """A lost broker, though, is waited for as long as this; None: as `give_up_s` says. Who learns by itself
    does not wait for it at all."""
    window: int = 4
    """Requests that may be under way at once: the encoder works while the cloud does."""


class Conversation:
    """One vehicle's exchange with the cloud; used by one thread at a time."""

    def __init__(
        self,
        link: VehicleLink,
        patience: Patience,
        *,
        session: str,
        stop: threading.Event,
        on_new_cloud: Callable[[], None],
        alive: Callable[[], None],
        may_work: Callable[[], bool] = lambda: True,
        on_update: Callable[[UpdateOffer | UpdatePart], None] = lambda _: None,
    ) -> None:
        """`alive` is called whenever the vehicle's loop comes by here, in its work as in its waits;
        `may_work` says whether anything is to be computed now; `on_update` hears what is about updates."""
        self._link = link
        self._alive = alive
        self._may_work = may_work
        self._on_update = on_update
        self._patience = patience
        self._session = session
        self._stop = stop
        self._on_new_cloud = on_new_cloud
        self._cloud_session = ""
        self.is_welcome = False
        """Whether the cloud has taken this process in; earlier grants are for another one of this vehicle."""
        self._heard_at = link.clock.now()
        self._grants: set[str] = set()
        self._spent: set[str] = set()
        """Grants of attempts that are over: they come no second time, whoever says so."""
        self._welcomed_by = ""
        self._former: deque[str] = deque(maxlen=64)
        """Sessions of clouds that another one has succeeded: they come no second time either."""
        self.malformed = 0
        """Messages that could not be decoded."""
        self._strange_rejects = 0
        """Of what this vehicle has not said, or no longer waits for."""

    @property
    def has_heard_a_cloud(self) -> bool:
        """Whether any cloud of the fleet has said that it is online."""
        return bool(self._cloud_session)

    def begin_anew(self) -> None:
        """This process says hello: it is at no turn, and takes up any that it is granted from now on."""
        self.is_welcome = False
        self._grants.clear()

    def is_over(self, turn: Turn) -> None:
        """This attempt has come to its end, whichever."""
        self._spent.add(turn.grant)

    @property
    def is_away(self) -> bool:
        """Whether there is no broker now."""
        return self._link.transport.seconds_disconnected() > 0

    def now(self) -> float:
        """By the clock of the link."""
        return self._link.clock.now()

    def arrived(self, timeout_s: float, *, waits: bool = True) -> Iterator[Down]:
        """All messages of the cloud to this vehicle that are here, the first of them waited for.

        A turn is among them once, however often its grant arrives.

        Raises:
            VehicleError: the cloud refuses this vehicle, or nothing was heard of it for `give_up_s`.
            Stopped: the process was asked to stop.
            Finished: the cloud ended the run.
            BrokerUnreachable: the broker has been away for `offline_s`, and the vehicle `waits`: it has
                nothing to do without.
        """
        away_s = self._check_life()
        if waits:
            self._check_broker(away_s)
        received = self._link.receive(min(timeout_s, _POLL_S))
        if received is None:
            self._check_silence(away_s)
        while received is not None:
            message = self._interpret(received)
            if message is not None:
                yield message
            received = self._link.receive(0.0)

    def _check_life(self) -> float:
        """How long the broker has been away."""
        self._alive()
        if self._stop.is_set():
            raise Stopped
        return self._link.transport.seconds_disconnected()

    def _check_broker(self, away_s: float) -> None:
        limit_s = self._patience.give_up_s if self._patience.offline_s is None else self._patience.offline_s
        if away_s > limit_s:
            raise BrokerUnreachable(
                f"the broker has been unreachable for {away_s:.0f} s (limit {limit_s:g} s); "
                f"start it and this vehicle again, nothing is lost"
            )

    def _interpret(self, received: Received | Malformed) -> Down | None:
        """What is for the vehicle's turn, or for none yet; the rest is heeded here."""
        self._heard_at = self._link.clock.now()
        if isinstance(received, Malformed):
            self.malformed += 1
            if is_logged(self.malformed):
                log.warning("ignored a malformed message (%d so far): %s", self.malformed, received.reason)
            return None
        message = received.message
        if isinstance(message, Status):
            is_new = message.online and message.session != self._cloud_session
            if is_new and message.session not in self._former:
                self._cloud_session = message.session
                self._link.meet(message.session)
                self._on_new_cloud()
            return None
        if isinstance(message, UpdateOffer | UpdatePart):
            self._on_update(message)
            return None
        if isinstance(message, Finish):
            log.info("the cloud ended the run: %s", message.reason)
            raise Finished(message.reason)
        if isinstance(message, Reject) and message.final and message.grant == self._session:
            raise VehicleError(f"the cloud refuses vehicle {message.vehicle!r}: {message.reason}")
        if isinstance(message, Welcome) and message.session == self._session:
            if not self.is_welcome:
                log.info("welcome to the fleet")
            self.is_welcome = True
            if self._welcomed_by not in ("", self._cloud_session):
                self._former.append(self._welcomed_by)
            self._welcomed_by = self._cloud_session
        if isinstance(message, Turn):
            if not self.is_welcome or message.grant in self._grants | self._spent:
                return None
            self._grants.add(message.grant)
        return message  # type: ignore[return-value]  # the topic decides: a down channel decodes only Down

    def _check_silence(self, away_s: float) -> None:
        now = self._link.clock.now()
        if away_s > 0:
            self._heard_at = now  # that nothing is heard is the broker's doing
        elif now - self._heard_at > self._patience.give_up_s:
            raise CloudSilent(
                f"nothing was heard of the cloud for {now - self._heard_at:.0f} s "
                f"(limit {self._patience.give_up_s:g} s); is the cloud server running for this fleet?"
            )

    def ask(
        self, turn: Turn, requests: Iterable[Request], meanwhile: Callable[[], bool] = lambda: False
    ) -> list[Answer]:
        """Send requests of one turn, several at a time, and return their answers in the same order.

        `requests` is consumed lazily: a request is made while earlier ones are being answered, and none while
        the vehicle may not work. While answers are waited for and there is no broker, `meanwhile` does a
        piece of work that can be done without; it returns False when none is left.

        Raises:
            Superseded: the turn started over under a new grant.
            Voided: the cloud doesn't know this grant.
            LetGo: the round went on without this vehicle.
            VehicleError: the cloud rejects a request for good, or has been silent for `give_up_s`.
        """
        pending: dict[int, Pending] = {}
        answers: dict[int, Answer] = {}
        order: list[int] = []
        try:
            remaining = iter(requests)
            while True:
                self._rest(turn, pending, answers)
                request = next(remaining, None)
                if request is None:
                    break
                order.append(request.step)
                pending[request.step] = Pending(request, self._send(request), self._patience.retry_s)
                self._collect(turn, pending, answers, timeout_s=0.0)
                while len(pending) >= self._patience.window or not self._link.has_room:
                    self._wait(turn, pending, answers, meanwhile)
            while pending:
                self._wait(turn, pending, answers, meanwhile)
        except (Superseded, LetGo):
            self._link.forget()
            raise
        return [answers[step] for step in order]

    def attend(self, turn: Turn) -> None:
        """Heed what has arrived in the midst of long work, and wait until it may go on; raises what `ask`
        raises. Work that needs no broker goes on without."""
        self._collect(turn, {}, {}, timeout_s=0.0, waits=False)
        self._rest(turn, {}, {})

    def rest(self, turn: Turn) -> None:
        """Wait until the vehicle may work; raises what `ask` raises."""
        self._rest(turn, {}, {})

    def _rest(self, turn: Turn, pending: dict[int, Pending], answers: dict[int, Answer]) -> None:
        while not self._may_work():
            self._collect(turn, pending, answers, timeout_s=_POLL_S)

    def _wait(
        self,
        turn: Turn,
        pending: dict[int, Pending],
        answers: dict[int, Answer],
        meanwhile: Callable[[], bool],
    ) -> None:
        works = self.is_away and self._may_work() and meanwhile()
        self._collect(turn, pending, answers, timeout_s=0.0 if works else _POLL_S, waits=not works)

    def _send(self, request: Request) -> Sending:
        try:
            return self._link.send(request)
        except MessageTooLarge as error:
            raise TurnRefused(str(error)) from error

    def _collect(
        self,
        turn: Turn,
        pending: dict[int, Pending],
        answers: dict[int, Answer],
        timeout_s: float,
        *,
        waits: bool = True,
    ) -> None:
        """Take in all that has arrived; only then are requests recalled that have no answer."""
        now = self._link.clock.now()
        soonest = min(
            (due for entry in pending.values() if (due := entry.due_at()) is not None), default=None
        )
        if soonest is not None:
            timeout_s = max(0.0, min(timeout_s, soonest - now))
        for message in self.arrived(timeout_s, waits=waits):
            if isinstance(message, Turn):
                raise Superseded(message)
            if isinstance(message, Reject):
                self._heed_reject(turn, pending, message)
            elif isinstance(message, Resend) and message.grant == turn.grant:
                self._send_again(pending.get(message.step))
            elif isinstance(message, Answer) and message.grant == turn.grant:
                entry = pending.get(message.step)
                if entry is not None and type(message).__name__ == entry.request.answered_by:
                    del pending[message.step]
                    answers[message.step] = message
        self._recall(pending)

    def _heed_reject(self, turn: Turn, pending: dict[int, Pending], reject: Reject) -> None:
        # What somebody else sent in this vehicle's name is rejected at other steps than its own.
        if reject.grant == turn.grant and reject.step in pending:
            if reject.final:
                raise VehicleError(f"the cloud rejects this vehicle's message: {reject.reason}")
            raise Voided(reject.reason)
        if reject.grant == turn.grant and reject.step == WHOLE_TURN and not reject.final:
            raise LetGo(reject.reason)
        self._strange_rejects += 1
        if is_logged(self._strange_rejects):
            log.warning("rejected (step %d): %s", reject.step, reject.reason)

    def _send_again(self, entry: Pending | None) -> None:
        if entry is not None and entry.sending.done:
            log.info("the cloud lacks the request of step %d: sent again", entry.request.step)
            entry.sending = self._send(entry.request)

    def _recall(self, pending: dict[int, Pending]) -> None:
        now = self._link.clock.now()
        silent_since = now if self._link.transport.seconds_disconnected() > 0 else self._link.moved_at
        for entry in pending.values():
            entry.disturbed(silent_since)
            due = entry.due_at()
            if due is None or now < due:
                continue
            if entry.waited_s(now) > self._patience.give_up_s:
                raise CloudSilent(
                    f"the cloud has not answered for {entry.waited_s(now):.0f} s "
                    f"(limit {self._patience.give_up_s:g} s); is the cloud server running for this fleet?"
                )
            self._link.send(entry.recall(now))
