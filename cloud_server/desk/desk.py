"""The cloud's desk: what vehicles send is checked, answered once, or rejected; the server decides the rest.

Exactly once: a request that comes again gets the answer it got before; one of an older attempt is stale.
"""

from __future__ import annotations

import logging
import math
import time

from cloud_server.algorithms.base import (
    Algorithm,
    AnswersQueries,
    AnswersSeededQueries,
    ExchangesWeights,
    KeepsLossMaps,
    TakesTrainSteps,
)
from cloud_server.desk.checks import RequestChecks
from cloud_server.desk.newcomers import Newcomers
from cloud_server.desk.registry import Registry
from cloud_server.desk.seeded_queries import checked_scale, coded_loss_maps
from cloud_server.desk.turns import ActiveTurn
from cloud_server.errors import CloudError, RequestError
from cloud_server.events import Events
from cloud_server.storage.label_store import LabelError, LabelStore
from cloud_server.training.trainer import DivergedError
from protocol.codec.tensor import CodecError, encode
from protocol.messages import (
    Ack,
    ActivationPlan,
    Answer,
    Down,
    Feedback,
    FetchLossMaps,
    FetchWeights,
    Gradient,
    Hello,
    LabelOffer,
    Labels,
    LabelWant,
    LocalLossPlan,
    LossMaps,
    Query,
    Recall,
    Reject,
    Request,
    RequestIdentity,
    Resend,
    SeededQuery,
    SplitScores,
    SpsaPlan,
    Status,
    TrainStep,
    Turn,
    TurnDone,
    TurnFailed,
    Update,
    Upload,
    Weights,
    Welcome,
    WhiteBoxPlan,
    follows_labels,
)
from protocol.session.link import CloudLink, Malformed, MessageTooLarge, Received, Sending, TooManyWaiting
from protocol.session.topics import CLOUD_ID

log = logging.getLogger(__name__)

_LOGGED_REJECTS = 100


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
        heartbeat_s: float,
        retry_s: float,
    ) -> None:
        """An answer that has gone out is not given again before `retry_s` have passed."""
        self._link = link
        self._registry = registry
        self._labels = labels
        self._checks = RequestChecks(registry, labels)
        self._newcomers = Newcomers(registry, heartbeat_s)
        self._events = events
        self._max_answers_per_frame = max_answers_per_frame
        self._retry_s = retry_s
        self.algorithm: Algorithm | None = None
        """Answers queries; None before the first stage and after the last."""
        self.active: dict[str, ActiveTurn] = {}
        """By vehicle: its turn under way, or its last one, whose answers may be asked for again."""
        self.failure: CloudError | None = None
        """What a vehicle has reported that ends the run."""
        self.status_bytes = 0
        """Size of the cloud's own retained status."""

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
        active = self.active.get(vehicle)
        if active is not None and active.has_answered(message):
            record.repeated_bytes += received.packet_bytes
        else:
            record.uplink[kind] += received.packet_bytes
        record.repeated_bytes += received.repeated_bytes
        record.last_seen = time.monotonic()
        self._request(message)  # type: ignore[arg-type]  # an up channel decodes only Up

    def settle(self, *, connected: bool) -> None:
        """Take in who had to wait until the earlier process of its vehicle was known to be gone."""
        if not connected:
            self._newcomers.broker_was_away()
        for hello in self._newcomers.admitted():
            log.warning("vehicle %s is another process from now on: the earlier one is gone", hello.vehicle)
            self._take_in(hello)

    def _note_status(self, status: Status, packet_bytes: int) -> None:
        try:
            record = self._registry.record(status.vehicle)
        except RequestError as error:
            log.warning("%s", error)
            return
        record.count_up(status.session, "status", packet_bytes)
        was_there = record.sessions.get(status.session, False)
        self._registry.note_status(status)
        if status.online:
            active = self.active.get(status.vehicle)
            if active is not None and not was_there and status.session == record.session:
                active.may_have_missed_grant()
            self._is_alive(status.vehicle, status.session)
            if status.session in record.former:
                self._refuse_second(status.vehicle, status.session)

    def _hello(self, hello: Hello) -> None:
        try:
            self._registry.check(hello)
        except RequestError as error:
            self._reject(hello.vehicle, hello.session, 0, str(error), final=True)
            return
        if self._newcomers.must_wait(hello):
            log.warning(
                "a second process says that it is vehicle %s: it waits until the first is known to be gone",
                hello.vehicle,
            )
            return
        self._is_alive(hello.vehicle, hello.session)
        self._take_in(hello)

    def _is_alive(self, vehicle: str, session: str) -> None:
        refused = self._newcomers.refused_by(vehicle, session)
        if refused is not None:
            self._refuse_second(vehicle, refused.session)

    def _refuse_second(self, vehicle: str, session: str) -> None:
        reason = "another process of this vehicle is at work; stop it, or give this one an id of its own"
        self._reject(vehicle, session, 0, reason, final=True)

    def _take_in(self, hello: Hello) -> None:
        try:
            is_new = self._registry.admit(hello)
        except RequestError as error:
            self._reject(hello.vehicle, hello.session, 0, str(error), final=True)
            return
        self._link.forget(hello.vehicle)
        self.send(hello.vehicle, Welcome(vehicle=hello.vehicle, session=hello.session))
        if is_new:
            # A new subscriber gets the retained status of the cloud.
            self._registry.vehicles[hello.vehicle].downlink["status"] += self.status_bytes
            self._events.event("joined", vehicle=hello.vehicle, encoder=hello.encoder, frames=hello.frames)
        active = self.active.get(hello.vehicle)
        if active and not active.done:
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
                active.sendings[request.step] = self.send(request.vehicle, answer)
            return
        if isinstance(request, Recall):
            self.send(request.vehicle, Resend(**_identity(request)))
            return
        active.sendings[request.step] = self._reply(request, active)

    def _reply(self, request: Request, active: ActiveTurn) -> Sending | None:
        """Answer a request that is new, or reject it."""
        try:
            if active.done or self.algorithm is None:
                raise RequestError(f"turn {request.turn_id} is over")
            answer = self._answer(request, active, self.algorithm)
        except (RequestError, LabelError, CodecError) as error:
            self._reject(request.vehicle, request.grant, request.step, str(error), final=True)
            return None
        except DivergedError as error:
            self.failure = CloudError(f"training diverged in turn {request.turn_id}: {error}")
            return None
        active.answers[request.step] = answer
        return self.send(request.vehicle, answer)

    def _answer(self, request: Request, active: ActiveTurn, algorithm: Algorithm) -> Answer:
        """Do what a request asks for, once.

        Raises:
            RequestError, LabelError, CodecError: it does not fit; nothing has changed.
        """
        identity = _identity(request)
        match request:
            case Query():
                features_BCHW = self._checks.features(
                    request, "train", labelled=follows_labels(active.turn.learner)
                )
                if not isinstance(active.turn.learner, SpsaPlan) or not isinstance(algorithm, AnswersQueries):
                    raise RequestError("this turn has no queries")
                active.check_answers(request.frames, 1, self._max_answers_per_frame)
                losses = algorithm.answer(request.vehicle, request.frames, features_BCHW)
                active.count_answers(request.frames, 1)
                return Feedback(**identity, losses=losses)
            case SeededQuery():
                return self._seeded_query(request, active, algorithm)
            case TrainStep():
                return self._train_step(request, active, algorithm)
            case FetchLossMaps():
                return self._kept_loss_maps(request, active, algorithm)
            case FetchWeights():
                return Weights(**identity, tensors=_exchanging(algorithm).weights())
            case Update():
                _exchanging(algorithm).take_update(active.turn, request)
            case SplitScores():
                _exchanging(algorithm).take_scores(active.turn, request)
            case Upload():
                if request.split not in active.turn.uploads:
                    raise RequestError(f"split {request.split!r} is not asked for in this turn")
                features_BCHW = self._checks.features(request, request.split)
                unasked = set(request.frames).difference(
                    self._checks.asked_frames(active.turn, request.split)
                )
                if unasked:
                    raise RequestError(f"{request.split} frame {min(unasked)} is not asked for in this turn")
                active.add_upload(request.step, request.split, request.frames, features_BCHW)
            case LabelOffer():
                self._checks.check_labels(active.turn, request.labels)
                wanted = tuple(
                    label.index
                    for label in request.labels
                    if not self._labels.has(request.vehicle, label.index, label.digest)
                )
                return LabelWant(**identity, indices=wanted)
            case Labels():
                self._checks.check_labels(active.turn, [label for label, _ in request.labels])
                for label, coded in request.labels:
                    self._labels.add(
                        request.vehicle,
                        label.index,
                        label.key,
                        label.digest,
                        coded,
                        height=label.height,
                        width=label.width,
                    )
            case TurnDone():
                if isinstance(algorithm, ExchangesWeights):
                    algorithm.check_complete(active.turn)
                self._checks.check_complete(active)
                if request.loss is not None and not math.isfinite(request.loss):
                    raise RequestError(f"loss must be finite, got {request.loss}")
                active.done = True
                active.done_at = time.monotonic()
                active.loss = request.loss
            case TurnFailed():
                self.failure = CloudError(f"vehicle {request.vehicle!r} can't go on: {request.reason}")
        return Ack(**identity)

    def _seeded_query(self, request: SeededQuery, active: ActiveTurn, algorithm: Algorithm) -> LossMaps:
        """Answer with loss maps, no more of them than the turn's plan and the limit say."""
        features_BCHW = self._checks.features(request, "train", labelled=follows_labels(active.turn.learner))
        plan = active.turn.learner
        if not isinstance(plan, ActivationPlan) or not isinstance(algorithm, AnswersSeededQueries):
            raise RequestError("this turn has no seeded queries")
        scale_C = checked_scale(request, plan, features_BCHW.shape)
        answers = 1 + len(request.seeds)
        active.check_answers(request.frames, answers, self._max_answers_per_frame)
        with algorithm.loss_maps(request.vehicle, request.frames, request.map_size) as loss_maps:
            maps = coded_loss_maps(request, features_BCHW, scale_C, loss_maps, plan.map_bits)
        active.count_answers(request.frames, answers)
        active.answered_largely(request.step)
        return LossMaps(**_identity(request), maps=maps)

    def _kept_loss_maps(self, request: FetchLossMaps, active: ActiveTurn, algorithm: Algorithm) -> LossMaps:
        """Answer with loss maps that were committed before the turn, where its plan has a use for them."""
        self._checks.check_frames(request.vehicle, request.frames, "train")
        plan = active.turn.learner
        if (
            not isinstance(plan, LocalLossPlan)
            or plan.weighting is None
            or not isinstance(algorithm, KeepsLossMaps)
        ):
            raise RequestError("this turn fetches no loss maps")
        active.check_answers(request.frames, 1, self._max_answers_per_frame)
        maps = algorithm.kept_loss_maps(request.vehicle, request.frames)
        active.count_answers(request.frames, 1, queries=0)
        return LossMaps(**_identity(request), maps=maps)

    def _train_step(self, request: TrainStep, active: ActiveTurn, algorithm: Algorithm) -> Gradient:
        """Learn from a batch once, no more often than the turn says."""
        features_BCHW = self._checks.features(request, "train", labelled=follows_labels(active.turn.learner))
        plan = active.turn.learner
        if not isinstance(plan, WhiteBoxPlan) or not isinstance(algorithm, TakesTrainSteps):
            raise RequestError("this turn has no training steps")
        if active.train_steps >= self._checks.train_steps(active.turn):
            raise RequestError(f"turn {request.turn_id} has had all its {active.train_steps} training steps")
        result = algorithm.train_step(request.vehicle, request.frames, features_BCHW)
        active.train_steps += 1
        active.answered_largely(request.step)
        return Gradient(
            **_identity(request),
            loss=result.loss,
            rate_share=result.rate_share,
            gradient=encode(result.gradient_BCHW, plan.gradient_bits),
        )

    def send(self, vehicle: str, message: Down) -> Sending | None:
        """Put a message to a vehicle on its way, as its downlink; None: it can't be sent."""
        try:
            sending = self._link.send(vehicle, message)
        except MessageTooLarge as error:
            self.failure = CloudError(f"{error}; it belongs to another run, or has another local model")
            return None
        except TooManyWaiting as error:
            self._events.event("undelivered", vehicle=vehicle, reason=str(error))
            return None
        if vehicle in self._registry.vehicles:
            self._registry.vehicles[vehicle].downlink[type(message).__name__.lower()] += sending.packet_bytes
        if isinstance(message, Turn):
            self.active[vehicle].granting = sending
        return sending

    def _reject(self, vehicle: str, grant: str, step: int, reason: str, *, final: bool) -> None:
        self._note_reject(vehicle, reason)
        self.send(vehicle, Reject(vehicle=vehicle, grant=grant, step=step, reason=reason[:1000], final=final))

    def _note_reject(self, vehicle: str, reason: str) -> None:
        """Count it; log the first ones, then ever fewer, so that nobody can fill the disk."""
        count = self._registry.count_reject(vehicle)
        if count <= _LOGGED_REJECTS or count & (count - 1) == 0:
            log.warning("rejected a message of %r (%d so far): %s", vehicle, count, reason)
            self._events.event("reject", vehicle=vehicle, reason=reason, count=count)

    def _reject_malformed(self, malformed: Malformed) -> None:
        """Answer only the fleet's own vehicles: nobody else can be expected to speak the protocol."""
        vehicle = malformed.vehicle
        if vehicle in self._registry.vehicles:
            self._registry.vehicles[vehicle].uplink["malformed"] += malformed.packet_bytes
            self._reject(vehicle, "", 0, malformed.reason, final=False)
        else:
            self._note_reject(vehicle, malformed.reason)


def _identity(request: Request | Recall) -> RequestIdentity:
    return {
        "vehicle": request.vehicle,
        "grant": request.grant,
        "turn_id": request.turn_id,
        "step": request.step,
    }


def _exchanging(algorithm: Algorithm) -> ExchangesWeights:
    if not isinstance(algorithm, ExchangesWeights):
        raise RequestError("this run exchanges no weights")
    return algorithm
