"""The cloud of one fleet: gather it, run the stage loop with turns over the network, dismiss it.

One thread does all of it, one message at a time; the network thread only fills the inbox. What an algorithm
does with features is behind `Algorithm`, what a vehicle may say is checked at the `Desk`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec

from cloud_server.algorithms.base import Algorithm, Context
from cloud_server.algorithms.table import (
    algorithm_handlers,
    build_algorithm,
    check_fleet_algorithm,
)
from cloud_server.config import CloudConfig
from cloud_server.desk.desk import Desk
from cloud_server.desk.ledger import UploadLedger
from cloud_server.desk.registry import Registry
from cloud_server.desk.roster import Roster
from cloud_server.errors import CloudError, Stopped
from cloud_server.events import Events
from cloud_server.run.claim import FleetClaim
from cloud_server.run.combinations import check_combination
from cloud_server.run.equipment import run_needs
from cloud_server.run.gathering import gather
from cloud_server.run.persistence import RunState
from cloud_server.run.readmission import Readmission
from cloud_server.run.serving import Serving
from cloud_server.run.shared_trainer import build_trainer
from cloud_server.run.simulated import Simulated
from cloud_server.run.stage_turns import StageTurns
from cloud_server.run.stages import StageLoop
from cloud_server.run.updates import FOLDER_NAME as UPDATES_NAME
from cloud_server.run.updates import Updates
from cloud_server.schedule import Stage
from cloud_server.storage.class_counts import ClassCounts, class_weights_of
from cloud_server.storage.label_store import LabelStore
from cloud_server.training.trainer import Trainer
from datasets.catalog import label_space
from datasets.frame import DatasetError
from protocol.errors import SettingError
from protocol.messages import Finish
from protocol.session.link import CloudLink
from protocol.session.presence import Presence
from protocol.session.transport import BrokerUnreachable

log = logging.getLogger(__name__)

_POLL_S = 0.25
_FAREWELL_S = 10.0
_OFFER_BEATS = 3
"""Heartbeats between two offers of an update that a vehicle has said nothing of."""
_MOST_MESSAGES = 64
"""Handled before turns and deadlines are looked at again."""


class Server:
    """One run of one fleet. `run` blocks until the result is written."""

    def __init__(
        self,
        config: CloudConfig,
        *,
        link: CloudLink,
        presence: Presence,
        claim: FleetClaim,
        run_folder: Path,
        events: Events,
        stop: threading.Event,
        resume: bool,
        simulated: Simulated | None = None,
    ) -> None:
        """Nothing is sent before `run`.

        Raises:
            CloudError: the algorithm or label space is unknown, settings contradict each other, or the folder
                holds another run.
        """
        try:
            check_fleet_algorithm(config.algorithm)
            check_combination(config)
            self._label_space = label_space(config.label_space, run_folder)
        except (SettingError, DatasetError) as error:
            raise CloudError(str(error)) from error
        self._config = config
        self._evaluated = config.evaluated
        self._link = link
        self._presence = presence
        self._claim = claim
        self._run_folder = run_folder
        self._events = events
        self._stop = stop
        self._simulated = simulated
        self._registry = Registry(
            config.vehicles,
            label_space=self._label_space.name,
            feature_shapes=config.feature_shapes,
            image_size=config.image_size,
            frame_bytes=config.coding.frame_bytes,
            equipment=run_needs(config).equipment,
            clock=link.clock,
        )
        self._state = RunState(run_folder / "cloud", config, resume=resume)
        self._roster = Roster(run_folder / "cloud", resume=self._state.has_begun)
        self._registry.know(self._roster.declared, self._roster.failed)
        self._registry.readmits = config.patience.on_failure == "readmit"
        self._readmission = Readmission(self._registry, self._roster, events)
        self._labels = LabelStore(run_folder / "cloud" / "labels", num_classes=self._label_space.num_classes)
        self._desk = Desk(
            link,
            registry=self._registry,
            labels=self._labels,
            events=events,
            max_answers_per_frame=config.zeroth_order.max_answers_per_frame,
            max_answers_per_vehicle=config.answers_per_vehicle,
            heartbeat_s=config.patience.heartbeat_s,
            retry_s=config.patience.retry_s,
        )
        self._updates = Updates(
            run_folder / UPDATES_NAME,
            fleet=config.fleet,
            desk=self._desk,
            registry=self._registry,
            events=events,
            clock=link.clock,
            offer_every_s=_OFFER_BEATS * config.patience.heartbeat_s,
        )
        self._desk.on_update = self._updates.heed
        self._ledger = UploadLedger()
        self._trainer: Trainer | None = None
        self._train_label_sizes: dict[str, tuple[int, int]] = {}
        """By vehicle; empty where train labels cross as they are."""
        self._statuses_counted = 0
        self._serving: Serving | None = None
        """What answers vehicles that drive; None: nobody does."""

    # The run ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run all stages that are not committed yet and write `result.json`.

        Raises:
            CloudError: a vehicle fails or stays away, or the state on disk can't be used.
            BrokerUnreachable: the broker did not appear, or stayed away for too long.
            Stopped: the process was asked to stop; what was committed stays.
        """
        try:
            self._link.open(self._config.patience.join_s, self._stop)
        except BrokerUnreachable:
            self._check_stop()
            raise
        said = self._claim.take(self._config.patience.join_s, self._check_stop)
        self._presence.announce()
        self._desk.status_bytes = self._statuses_counted = self._presence.bytes_sent
        self._updates.look_after()
        for received in said:
            self._desk.handle(received)
        absent = gather(self._config, self._registry, self._serve, self._turn_away, self._link.clock.now)
        self._leave_out(absent)
        self._roster.declare(self._registry.declared)
        has_grown = False
        while not self._run_stages(absent, has_grown=has_grown):
            has_grown, absent = True, {}
        self._dismiss()

    def _run_stages(self, absent: Mapping[str, str], *, has_grown: bool) -> bool:
        """Run the stages that are left to the result; false where the fleet has grown meanwhile, and they are
        to be planned anew."""
        algorithm = self._build_algorithm()
        loop = StageLoop(
            self._config,
            algorithm,
            registry=self._registry,
            state=self._state,
            label_space=self._label_space,
            run_folder=self._run_folder,
            events=self._events,
            simulated=self._simulated,
        )
        loop.resume(is_same_process=has_grown)
        for vehicle, reason in absent.items():
            self._events.event("failed", vehicle=vehicle, stage=0, round=0, reason=reason)
        turns = StageTurns(
            self._config,
            algorithm,
            desk=self._desk,
            registry=self._registry,
            roster=self._roster,
            ledger=self._ledger,
            events=self._events,
            last_trained=loop.last_trained,
            train_label_sizes=self._train_label_sizes,
            serve=self._serve,
            seconds_disconnected=self._link.transport.seconds_disconnected,
            clock=self._link.clock,
        )

        def do(stage: Stage) -> None:
            self._readmission.begin(stage, self._config.vehicles)
            turns.run(stage)

        self._desk.open(algorithm_handlers(self._config.algorithm, algorithm))
        with self._served(algorithm, loop) as committed:
            if not loop.run(do, settle=self._settle, committed=committed, grows=self._grow):
                return False
            self._desk.close()
            self._count_statuses()
            loop.conclude()
            self._go_on_serving()
        return True

    def _grow(self) -> bool:
        """Whether vehicles have come that were not there at the start; the next round is with them."""
        if not self._readmission.late(self._config.vehicles):
            return False
        self._turn_away()
        self._leave_out({})
        self._roster.declare(self._registry.declared)
        return True

    @contextmanager
    def _served(self, algorithm: Algorithm, loop: StageLoop) -> Iterator[Callable[[], None]]:
        """Serve vehicles that drive in the body, if the settings say so; gives what hears of commits."""
        if self._config.serving is None:
            yield lambda: None
            return
        assert self._trainer is not None, "there is an algorithm"
        self._serving = Serving(
            self._config,
            link=self._link,
            registry=self._registry,
            events=self._events,
            algorithm=algorithm,
            trainer=self._trainer,
        )

        def refresh() -> None:
            assert self._serving is not None
            self._serving.refresh(loop.committed)

        refresh()
        with self._serving:
            yield refresh

    def _go_on_serving(self) -> None:
        """The result is written: serve until the process is asked to stop, which is how this ends."""
        if self._serving is None:
            return
        log.info("the run is complete; serving goes on until it is stopped")
        try:
            while True:
                self._serve()
        except Stopped:
            self._farewell()
            raise

    def _turn_away(self) -> bool:
        """The vehicles that are there settle what the settings leave open; whether some then don't fit."""
        turned_away = self._registry.settle()
        for hello, reason in turned_away:
            log.warning(
                "vehicle %s is turned away: %s; image_size and feature_shapes in the cloud's settings "
                "(--config) say what is right, or else most vehicles do",
                hello.vehicle,
                reason,
            )
            self._desk.turn_away(hello, reason)
        return bool(turned_away)

    def _leave_out(self, absent: Mapping[str, str]) -> None:
        """From here on the run is of those who have ever joined; of others nobody knows what they have."""
        for vehicle, reason in absent.items():
            self._registry.vehicles[vehicle].failed = reason
        self._roster.fail_all(absent)
        left, evaluated = tuple(self._registry.declared), self._evaluated
        if evaluated is not None:
            evaluated = tuple(vehicle for vehicle in evaluated if vehicle in self._registry.declared)
        self._config = msgspec.structs.replace(self._config, vehicles=left, evaluated=evaluated)

    def _build_algorithm(self) -> Algorithm:
        train_frames = {
            vehicle: len(self._registry.frames(vehicle, "train")) for vehicle in self._config.vehicles
        }
        config = self._config
        trainer = self._trainer = build_trainer(
            config, self._registry, self._run_folder, num_classes=self._label_space.num_classes
        )
        counts = ClassCounts(
            self._labels,
            lambda vehicle: self._registry.frames(vehicle, "train"),
            classes=self._label_space.num_classes,
        )
        class_weights = class_weights_of(config.class_weights, self._label_space, counts)
        if class_weights is not None:
            trainer.weigh_classes(partial(class_weights, config.vehicles))
        if config.uploads.train_labels == "logits":
            self._train_label_sizes = {
                vehicle: trainer.logit_size(self._registry.feature_shape(vehicle))
                for vehicle in config.vehicles
            }
        return build_algorithm(
            config.algorithm,
            Context(
                config=config,
                label_space=self._label_space,
                trainer=trainer,
                labels=self._labels,
                events=self._events,
                run_folder=self._run_folder,
                check_stop=self._check_stop,
                train_frames=train_frames,
                ledger=self._ledger,
                bundles={name: self._registry.declaration(name).bundle_digest for name in config.vehicles},
                class_weights=class_weights,
                source_frames={
                    vehicle: len(self._registry.frames(vehicle, "source")) for vehicle in config.vehicles
                },
                fleet_frames={
                    vehicle: len(self._registry.frames(vehicle, "fleet")) for vehicle in config.vehicles
                },
            ),
        )

    def _settle(self) -> None:
        """A stage's work is done: labels on disk, uploads counted, before the commit that relies on them."""
        self._labels.sync()
        self._ledger.close({name: record.uploads for name, record in self._registry.vehicles.items()})

    def _dismiss(self) -> None:
        """Tell every vehicle that it is over, and wait a little until they have left."""
        deadline = self._link.clock.now() + _FAREWELL_S
        told = 0.0
        while self._link.clock.now() < deadline:
            if not self._registry.present:
                return
            if self._link.clock.now() - told > 1.0:
                told = self._link.clock.now()
                self._farewell()
            self._serve()

    def _farewell(self) -> None:
        for vehicle in self._registry.present:
            self._desk.send(vehicle, Finish(vehicle=vehicle, reason="the run is complete"))

    # Messages -----------------------------------------------------------------------------------------

    def _check_stop(self) -> None:
        self._presence.stamp()
        if self._stop.is_set():
            raise Stopped

    def _serve(self) -> None:
        """Handle some of what has arrived, waiting a moment for the first message.

        Not all of it: where messages come in faster than they are handled, turns and deadlines would wait.
        """
        self._updates.look_after()
        timeout_s = _POLL_S
        for _ in range(_MOST_MESSAGES):
            self._check_stop()
            received = self._link.receive(timeout_s)
            if received is None:
                break
            timeout_s = 0.0
            self._claim.note(received)
            self._desk.handle(received)
        away_s = self._link.transport.seconds_disconnected()
        self._desk.settle(connected=away_s == 0)
        self._count_statuses()
        if self._serving is not None:
            self._serving.report()
        if self._desk.failure is not None:
            raise self._desk.failure
        if away_s > self._config.patience.give_up_s:
            raise BrokerUnreachable(
                f"the broker has been unreachable for {away_s:.0f} s "
                f"(limit {self._config.patience.give_up_s:g} s); start it, then resume the run"
            )

    def _count_statuses(self) -> None:
        """The cloud's status goes to every vehicle that is there: it is part of their downlink."""
        sent = self._presence.bytes_sent
        if sent == self._statuses_counted:
            return
        for record in self._registry.vehicles.values():
            if record.online and record.hello:
                record.downlink["status"] += sent - self._statuses_counted
        self._statuses_counted = sent
