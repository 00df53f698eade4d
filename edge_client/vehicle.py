"""The vehicle's loop: introduce itself, do the turns it is granted, keep its state, leave when told."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_client.conversation import Conversation, Finished, LetGo, Patience, Stopped, Superseded, Voided
from edge_client.encoder.bundle import EncoderBundle, bundle_digest
from edge_client.encoder.runtime import Encoder
from edge_client.errors import CloudSilent, TurnRefused
from edge_client.frames import VehicleFrames
from edge_client.learners import LEARNERS, takes_labels
from edge_client.learners.shared_encoder import FetchedEncoder
from edge_client.learners.sharing import begin_shared, end_shared
from edge_client.local.against_decoder import AgainstDecoder
from edge_client.local.head import LocalHead
from edge_client.spool import DEFAULT_SPOOL_MB, Spool
from edge_client.state import StateStore, VehicleState
from edge_client.turn import LabelMemory, LocalModelTools, TurnTools
from edge_client.updates.intake import Renewed, UpdateIntake
from edge_client.work import metered
from protocol.errors import MENDABLE
from protocol.messages import PROTOCOL_VERSION, Hello, Turn, TurnDone, TurnFailed
from protocol.messages.serving import SERVED
from protocol.messages.up import LOCAL_HEAD, WHOLE_NETWORK
from protocol.session.link import Sending, VehicleLink
from protocol.session.topics import CLOUD_ID, STATUS, topic
from protocol.session.transport import BrokerUnreachable

log = logging.getLogger(__name__)

_SLOWEST_HELLO_S = 30.0

_COMPLAIN_AFTER_S = 2.0

_NOT_THE_TURN = (Superseded, Voided, LetGo, Finished, Stopped, CloudSilent, BrokerUnreachable)
"""What ends the work at a turn without the turn having failed, or with nobody there to hear of it."""


@dataclass(frozen=True, kw_only=True)
class VehicleSettings:
    """What makes one vehicle."""

    vehicle: str
    patience: Patience = field(default_factory=Patience)
    spool_bytes: int = DEFAULT_SPOOL_MB * 1_000_000
    """How much may wait on disk while there is no network."""
    allowed_learners: tuple[str, ...] = ()
    """Estimators and learners of others that the cloud may name, by `package.module:name`."""


def new_session() -> str:
    """A name for one life of one process; not part of any result."""
    return secrets.token_hex(8)


def reason_of(error: Exception) -> str:
    """What the cloud's operator reads: a mistake in its own words, a bug with its kind."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, MENDABLE) and text else f"{type(error).__name__}: {text}")[:1000]


class Vehicle:
    """One car; `edge_client.crew` calls it when there is something for it."""

    def __init__(
        self,
        settings: VehicleSettings,
        *,
        link: VehicleLink,
        session: str,
        bundle: EncoderBundle,
        encoder: Encoder,
        frames: VehicleFrames,
        label_space: str,
        states: StateStore,
        updates: UpdateIntake,
        local_model: LocalModelTools | None = None,
        local_head: LocalHead | None = None,
        against_decoder: AgainstDecoder | None = None,
        follow: Callable[[NDArray[np.float32]], None] | None = None,
        stop: threading.Event,
        alive: Callable[[], None],
        may_work: Callable[[], bool],
    ) -> None:
        """Nothing is sent before `open`; `alive` is called as long as the vehicle's loop comes on, and
        `may_work` says whether it is to compute now. `follow` is told the encoder's θ whenever it is
        another one; with it, the vehicle says that it will ask the cloud for class maps.
        """
        self._settings = settings
        self._link = link
        self._bundle = bundle
        self._encoder = encoder
        self._frames = frames
        self._local_model = local_model
        self._local_head = local_head
        self._against_decoder = against_decoder
        self._labels = LabelMemory()
        self._fetched = FetchedEncoder()
        self._states = states
        self._spool = Spool(states.folder / "spool", settings.spool_bytes)
        self._updates = updates
        self._hello = Hello(
            vehicle=settings.vehicle,
            session=session,
            protocol=PROTOCOL_VERSION,
            encoder=bundle.spec.name,
            bundle_digest=bundle_digest(bundle),
            feature_shape=bundle.spec.feature_shape,
            image_size=bundle.spec.image_size,
            label_space=label_space,
            frames=frames.counts(),
            frames_digest=frames.digest(label_space),
            equipment=tuple(
                name
                for name, part in (
                    (LOCAL_HEAD, local_head),
                    (WHOLE_NETWORK, local_model),
                    (SERVED, follow),
                )
                if part is not None
            ),
            subspace=bundle.spec.subspace,
            provider=encoder.provider,
            labels=frames.label_origins(),
        )
        self._follow = follow or (lambda theta: None)
        if follow is not None:
            self._follow((self._states.newest() or VehicleState(theta=bundle.theta0, optimizer={})).theta)
        self._introduced_at = 0.0
        self._has_complained = False
        self._introduction: Sending | None = None
        self._unanswered = 0
        """Hellos that were repeated since the last welcome."""
        self.turns_done = 0
        self.in_turn = False
        self._stop = stop
        self._alive = alive
        self._conversation = Conversation(
            link,
            settings.patience,
            session=session,
            stop=stop,
            on_new_cloud=self._introduce,
            alive=alive,
            may_work=may_work,
            on_update=updates.heed,
        )

    def open(self, timeout_s: float) -> None:
        """Connect, which may take so long; the cloud's retained status brings the first hello.

        Raises:
            BrokerUnreachable: the broker did not appear.
            Stopped: the process was asked to stop.
        """
        try:
            self._link.open(timeout_s, self._stop)
        except BrokerUnreachable:
            if self._stop.is_set():
                raise Stopped from None
            raise
        # Only if the cloud's status is lost, patience brings the first hello.
        self._introduced_at = self._link.clock.now()

    def attend(self) -> Turn | None:
        """Heed what has arrived, without waiting; returns the turn that the vehicle was granted, if any.

        To be called whenever something has arrived, and now and then: it introduces itself again while nobody
        has said welcome.

        Raises:
            VehicleError: the cloud refuses this vehicle, or nothing was heard of it for `give_up_s`.
            BrokerUnreachable: the broker has been away for `offline_s`.
            Finished: the run is over.
            Stopped: the process was asked to stop.
            Renewed: an update has changed what the vehicle runs.
        """
        self._updates.at_rest(is_welcome=self._conversation.is_welcome)
        for message in self._conversation.arrived(0.0):
            if isinstance(message, Turn):
                return message
            # Anything else is an answer that came twice.
        self._say_what_is_missing()
        if self._conversation.is_welcome:
            self._unanswered = 0
        elif self._nobody_answers():
            self._unanswered = min(self._unanswered + 1, 16)
            self._introduce()
        return None

    def work(self, turn: Turn) -> None:
        """Do a turn, and those that replace it meanwhile; blocks as long as that takes.

        Raises:
            VehicleError: what `attend` raises it for, or the turn can't be done, or its state can't be used.
            BrokerUnreachable, Finished, Stopped: as `attend`.
        """
        self.in_turn = True
        try:
            replaced: Turn | None = turn
            while replaced is not None:
                replaced = self._do(replaced)
        finally:
            self.in_turn = False

    def is_renewed(self, error: Exception) -> bool:
        """Whether a vehicle that has come to its end with `error` is to be opened anew, because an update is
        in use from now on, or was taken back.

        Raises:
            OSError: what is in use can't be written down.
        """
        is_fault = not isinstance(error, (*_NOT_THE_TURN, Renewed))
        renewed = isinstance(error, Renewed) or (is_fault and self._updates.failed(reason_of(error)))
        self._updates.close()
        return renewed

    def stamp(self) -> None:
        """The vehicle is alive, though it does nothing now."""
        self._alive()

    def _introduce(self) -> None:
        self._conversation.begin_anew()
        self._introduced_at = self._link.clock.now()
        self._labels.forget()
        self._link.forget()
        self._updates.met_cloud()
        # A hello is sealed for one cloud: it is said to the first that is heard.
        is_for_somebody = self._conversation.has_heard_a_cloud or not self._link.is_sealed
        self._introduction = self._link.send(self._hello) if is_for_somebody else None

    def _nobody_answers(self) -> bool:
        """Whether the last hello has arrived at the broker, and no welcome has come since for a while."""
        since = self._introduced_at if self._introduction is None else self._introduction.done_at
        patience_s = min(self._settings.patience.retry_s * 2.0**self._unanswered, _SLOWEST_HELLO_S)
        return since is not None and self._link.clock.now() - since > patience_s

    def _say_what_is_missing(self) -> None:
        """Once, where the vehicle has a session and nobody welcomes it."""
        waited_s = self._link.clock.now() - self._introduced_at
        if self._conversation.is_welcome or self._has_complained or waited_s < _COMPLAIN_AFTER_S:
            return
        self._has_complained = True
        cloud = topic(STATUS, self._link.fleet, CLOUD_ID)
        if self._conversation.has_heard_a_cloud:
            log.warning("the cloud has not answered this vehicle's hello yet; see its log")
        else:
            log.warning("no cloud on %s yet: none is running, or this user may not read that topic", cloud)

    def _do(self, turn: Turn) -> Turn | None:
        """Do a turn; returns the turn that has replaced it, if one has."""
        self._spool.begin(turn, self._states.model)
        tools = TurnTools(
            turn,
            encoder=self._encoder,
            frames=self._frames,
            labels=self._labels,
            conversation=self._conversation,
            local_model=self._local_model,
            local_head=self._local_head,
            against_decoder=self._against_decoder,
            allowed_learners=self._settings.allowed_learners,
            spool=self._spool,
        )
        log.info("turn %d begins", turn.turn_id)
        self._updates.turn_begins()
        try:
            try:
                self._conversation.rest(turn)
                with metered() as meter:
                    loss = self._learn_and_upload(tools)
            except _NOT_THE_TURN:
                raise
            except Exception as error:  # whatever it is, the cloud must hear why before this vehicle gives up
                if self._updates.on_trial:
                    raise  # the vehicle goes on, with what it ran before
                failed = TurnFailed(**tools.header(), reason=reason_of(error))
                self._conversation.ask(turn, [failed])
                raise
            work = meter.work(self._bundle.spec.graphs["forward"].multiply_adds)
            tools.ask([TurnDone(**tools.header(), loss=loss, work=work)])
        except Superseded as superseded:
            self._conversation.is_over(turn)
            log.info("turn %d starts over", superseded.turn.turn_id)
            return superseded.turn
        except LetGo as let_go:
            log.info("turn %d is over for this vehicle: %s", turn.turn_id, let_go)
            return None
        except Voided:
            self._conversation.is_over(turn)
            log.info("turn %d is no longer this vehicle's", turn.turn_id)
            self._introduce()
            return None
        self._conversation.is_over(turn)
        self.turns_done += 1
        waited = f"; {self._spool.pieces} pieces had waited on disk" if self._spool.pieces else ""
        log.info("turn %d done%s", turn.turn_id, waited)
        self._spool.clear()
        self._updates.turn_done()
        return None

    def _learn_and_upload(self, tools: TurnTools) -> float | None:
        """The turn's work; returns the mean loss of the learning, None where nothing was learnt."""
        turn, loss = tools.turn, None
        state = self._start(turn)
        if not self._frames.are_labelled and takes_labels(turn):
            raise TurnRefused(
                "this vehicle's frames have no labels, and this run learns from them; let a pretrained "
                "network stay as it is and vehicles follow its predictions (network.learns false, objective "
                "pseudo-labels or entropy), or give the vehicle labelled frames: a data set, or label files "
                "beside a camera's"
            )
        if turn.sharing is not None:
            state = begin_shared(tools, state, self._fetched)
        self._follow(state.theta)
        if turn.learner is not None:
            begun = state
            state, loss = LEARNERS[type(turn.learner)](tools, state)
            if turn.sharing is not None and turn.sharing.sends:
                state = end_shared(tools, begun, state)
        tools.make_ahead(tools.uploads_ahead(state.theta))
        for split in turn.uploads:
            tools.upload(split, state.theta)
        if turn.learner is not None:
            self._states.commit(turn.turn_id, state, after_turn=turn.after_turn)
        self._follow(state.theta)
        return loss

    def _start(self, turn: Turn) -> VehicleState:
        if turn.after_turn is None:
            return VehicleState(theta=self._bundle.theta0, optimizer={})
        return self._states.load(turn.after_turn)
