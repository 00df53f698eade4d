"""The cloud's loop: gather the fleet, grant turns, commit stages, write the result.

One thread does all of it, one message at a time; the network thread only fills the inbox. What an algorithm
does with features is behind `Algorithm`, what a vehicle may say is checked at the `Desk`.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from cloud_server.algorithms.base import Algorithm, Context, MayEndEarly
from cloud_server.algorithms.table import FLEET_ALGORITHMS
from cloud_server.combinations import check_combination
from cloud_server.config import CloudConfig
from cloud_server.desk.desk import Desk
from cloud_server.desk.ledger import UploadLedger
from cloud_server.desk.registry import Registry
from cloud_server.desk.turns import ActiveTurn, new_grant
from cloud_server.errors import CloudError, Stopped
from cloud_server.schedule import Kind, Stage
from cloud_server.storage.label_store import LabelStore
from cloud_server.storage.persistence import RunState
from cloud_server.storage.results import assemble
from cloud_server.storage.run_log import RunLog
from cloud_server.training.shared_trainer import build_trainer
from cloud_server.training.trainer import DivergedError
from datasets.labels import label_space
from protocol.atomic import write_json_atomic
from protocol.messages import Finish, Turn
from protocol.noise import derive_seed
from protocol.session.link import CloudLink
from protocol.session.presence import Presence
from protocol.session.transport import BrokerUnreachable

log = logging.getLogger(__name__)

_POLL_S = 0.25
_REPORT_S = 1.0
_FAREWELL_S = 10.0
_STAGE_ATTEMPTS = 3
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
        run_folder: Path,
        run_log: RunLog,
        stop: threading.Event,
        resume: bool,
    ) -> None:
        """Nothing is sent before `run`.

        Raises:
            CloudError: the algorithm or label space is unknown, settings contradict each other, or the folder
                holds another run.
        """
        row = FLEET_ALGORITHMS.get(config.algorithm)
        if row is None or row.build is None:
            raise CloudError(
                f"unknown algorithm {config.algorithm!r}, expected one of: {', '.join(FLEET_ALGORITHMS)}"
            )
        self._build = row.build
        try:
            check_combination(config)
            self._label_space = label_space(config.label_space)
        except ValueError as error:
            raise CloudError(str(error)) from error
        self._config = config
        self._link = link
        self._presence = presence
        self._run_folder = run_folder
        self._run_log = run_log
        self._stop = stop
        self._registry = Registry(
            config.vehicles,
            label_space=config.label_space,
            feature_shapes=config.feature_shapes,
            frame_bytes=config.frame_bytes,
        )
        self._state = RunState(run_folder / "cloud", config, resume=resume)
        self._labels = LabelStore(run_folder / "cloud" / "labels", num_classes=self._label_space.num_classes)
        self._desk = Desk(
            link,
            registry=self._registry,
            labels=self._labels,
            run_log=run_log,
            max_answers_per_frame=config.zeroth_order.max_answers_per_frame,
            heartbeat_s=config.patience.heartbeat_s,
        )
        self._ledger = UploadLedger()
        self._last_trained: dict[str, int] = {}
        self._train_label_sizes: dict[str, tuple[int, int]] = {}
        """By vehicle; empty where train labels cross as they are."""
        self._statuses_counted = 0

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
        self._presence.announce()
        self._desk.status_bytes = self._statuses_counted = self._presence.bytes_sent
        self._gather()
        algorithm = self._build_algorithm()
        committed = self._state.load()
        if committed is not None:
            committed.restore(algorithm, self._registry)
            self._last_trained = dict(committed.last_trained)
        first = committed.next_stage if committed else 0
        self._run_log.event(
            "run",
            algorithm=self._config.algorithm,
            stages=len(algorithm.stages),
            first=first,
            rounds=self._config.rounds,
            vehicles=list(self._config.vehicles),
        )
        self._desk.algorithm = algorithm
        for stage in algorithm.stages[first:]:
            if isinstance(algorithm, MayEndEarly) and not algorithm.is_needed(stage):
                continue
            self._run_stage(algorithm, stage)
            self._commit(algorithm, stage)
        self._desk.algorithm = None
        self._count_statuses()
        result = assemble(
            self._config,
            algorithm.scores,
            algorithm.progress,
            self._registry,
            self._label_space,
            self._state.wall_s(),
        )
        write_json_atomic(self._run_folder / "result.json", result)
        self._run_log.event("result", mean_local_miou=result["mean_local_miou"])
        self._dismiss()

    def _gather(self) -> None:
        """Wait until every vehicle has said hello."""
        deadline = time.monotonic() + self._config.patience.join_s
        while missing := self._registry.missing():
            if time.monotonic() > deadline:
                raise CloudError(
                    f"{len(missing)} of {len(self._config.vehicles)} vehicles did not join within "
                    f"{self._config.patience.join_s:g} s: {', '.join(missing[:10])}"
                )
            self._serve()

    def _build_algorithm(self) -> Algorithm:
        train_frames = {
            vehicle: len(self._registry.frames(vehicle, "train")) for vehicle in self._config.vehicles
        }
        config = self._config
        trainer = build_trainer(
            config, self._registry, self._run_folder, num_classes=self._label_space.num_classes
        )
        if config.uploads.train_labels == "logits":
            self._train_label_sizes = {
                vehicle: trainer.logit_size(self._registry.feature_shape(vehicle))
                for vehicle in config.vehicles
            }
        return self._build(
            Context(
                config=config,
                label_space=self._label_space,
                trainer=trainer,
                labels=self._labels,
                run_log=self._run_log,
                run_folder=self._run_folder,
                check_stop=self._check_stop,
                train_frames=train_frames,
                ledger=self._ledger,
                source_frames={
                    vehicle: len(self._registry.frames(vehicle, "source")) for vehicle in config.vehicles
                },
            )
        )

    def _run_stage(self, algorithm: Algorithm, stage: Stage) -> None:
        """Run a stage's turns; where it has a deadline, again if all of them missed it.

        Raises:
            CloudError: no vehicle has kept the deadline in any attempt.
        """
        for _ in range(_STAGE_ATTEMPTS):
            if self._run_turns(algorithm, stage):
                try:
                    algorithm.stage_done(stage)
                except DivergedError as error:
                    raise CloudError(f"training diverged in round {stage.round}: {error}") from error
                return
            self._run_log.event("repeated", stage=stage.number, round=stage.round)
        raise CloudError(
            f"no vehicle finished its turn in round {stage.round} within {stage.deadline_s:g} s, in "
            f"{_STAGE_ATTEMPTS} attempts; raise the deadline, or start the vehicles again and resume the run"
        )

    def _run_turns(self, algorithm: Algorithm, stage: Stage) -> int:
        """Every vehicle's turn, several at a time; returns how many were finished."""
        waiting = list(stage.vehicles)
        running: dict[str, float] = {}
        """By vehicle: time.monotonic() of its first grant."""
        finished = 0
        while waiting or running:
            while waiting and len(running) < self._config.parallel_turns:
                vehicle = waiting.pop(0)
                running[vehicle] = time.monotonic()
                self._grant(algorithm, stage, vehicle)
            self._serve()
            for vehicle in sorted(running):
                active = self._desk.active[vehicle]
                if active.done:
                    del running[vehicle]
                    self._finish_turn(algorithm, stage, active)
                    finished += 1
                elif stage.deadline_s is not None and time.monotonic() - running[vehicle] > stage.deadline_s:
                    del running[vehicle]
                    self._drop(stage, active)
                elif active.abandoned:
                    log.warning("turn %d of vehicle %s starts over", stage.number, vehicle)
                    self._run_log.event("restarted", vehicle=vehicle, stage=stage.number)
                    self._discard(active)
                    self._grant(algorithm, stage, vehicle)
                else:
                    self._look_after(stage, vehicle, active)
        return finished

    def _drop(self, stage: Stage, active: ActiveTurn) -> None:
        """Go on without a vehicle: whatever it still sends in this turn is stale."""
        vehicle = active.turn.vehicle
        active.abandoned = True
        self._discard(active)
        log.warning("turn %d of vehicle %s took over %g s: dropped", stage.number, vehicle, stage.deadline_s)
        self._run_log.event("dropped", vehicle=vehicle, stage=stage.number, round=stage.round)

    def _discard(self, active: ActiveTurn) -> None:
        """Count what an attempt that is given up has had acknowledged."""
        self._registry.vehicles[active.turn.vehicle].uploads.discarded += len(active.uploaded["train"])

    def _grant(self, algorithm: Algorithm, stage: Stage, vehicle: str) -> None:
        """Start a vehicle's turn, or start it over: a new grant makes the old attempt stale."""
        plan = algorithm.plan(stage, vehicle)
        turn = Turn(
            vehicle=vehicle,
            grant=new_grant(),
            turn_id=stage.number,
            step=0,
            after_turn=self._last_trained.get(vehicle),
            seed=derive_seed(self._config.seed, "turn", stage.number, vehicle),
            learner=plan.learner,
            epochs=plan.epochs,
            batches=plan.batches,
            batch_size=plan.batch_size,
            uploads=plan.uploads,
            bits=self._config.bits,
            frame_bytes=self._config.frame_bytes,
            upload_frames={
                split: limit.choose(self._registry.frames(vehicle, split))
                for split, limit in plan.limits.items()
                if split in plan.uploads and limit.most < len(self._registry.frames(vehicle, split))
            },
            train_label_size=self._train_label_sizes.get(vehicle),
            anchor=self._config.anchor,
        )
        self._desk.active[vehicle] = ActiveTurn(turn=turn)
        algorithm.begin(stage, vehicle)
        self._run_log.event(
            "turn", stage=stage.number, round=stage.round, kind=stage.kind.value, vehicle=vehicle
        )
        self._desk.send(vehicle, turn)

    def _finish_turn(self, algorithm: Algorithm, stage: Stage, active: ActiveTurn) -> None:
        vehicle = active.turn.vehicle
        record = self._registry.vehicles[vehicle]
        record.queries += active.queries
        self._ledger.acknowledge(vehicle, active.uploaded["train"])
        record.answers_per_frame = max(record.answers_per_frame, active.answers_per_frame)
        try:
            algorithm.turn_done(stage, vehicle, active.features())
        except DivergedError as error:
            raise CloudError(f"training diverged in turn {stage.number}: {error}") from error
        active.uploads.clear()
        if active.loss is not None:
            self._run_log.scalar(f"vehicle_loss/{vehicle}", active.loss, stage.number)
        if active.turn.learner is not None:
            self._last_trained[vehicle] = stage.number
        self._run_log.event(
            "turn_done",
            stage=stage.number,
            round=stage.round,
            kind=stage.kind.value,
            vehicle=vehicle,
            loss=active.loss,
            turn_queries=active.queries,
            vehicle_s=round(active.done_at - active.granted_at, 3),
            queries=record.queries,
            uplink_bytes=sum(record.uplink.values()),
            downlink_bytes=sum(record.downlink.values()),
        )

    def _commit(self, algorithm: Algorithm, stage: Stage) -> None:
        self._labels.sync()
        self._ledger.close({name: record.uploads for name, record in self._registry.vehicles.items()})
        self._note_curve(algorithm, stage)
        self._state.commit(stage.number + 1, algorithm, self._registry, self._last_trained)
        algorithm.committed()
        self._run_log.event("committed", stage=stage.number, round=stage.round, kind=stage.kind.value)

    def _note_curve(self, algorithm: Algorithm, stage: Stage) -> None:
        """Log how far the run is, before the commit, so that no committed stage is without it."""
        if stage.kind is Kind.FINAL:
            return
        records, progress = self._registry.vehicles.values(), algorithm.progress
        spent = {
            "uplink_bytes": sum(sum(record.uplink.values()) for record in records),
            "downlink_bytes": sum(sum(record.downlink.values()) for record in records),
            "wall_s": round(self._state.wall_s(), 3),
        }
        if stage.kind is Kind.INITIAL:
            self._run_log.event("training", stage=stage.number, **spent)
            return
        self._run_log.event(
            "curve",
            stage=stage.number,
            round=stage.round,
            frames_seen=progress.frames_seen,
            loss=progress.mean_loss,
            val_miou=progress.mean_val_miou,
            validated=len(progress.val_miou),
            **spent,
        )

    def _look_after(self, stage: Stage, vehicle: str, active: ActiveTurn) -> None:
        """Repeat a grant that may be lost; give up on a vehicle that stays away, unless a deadline does."""
        record, patience, now = self._registry.vehicles[vehicle], self._config.patience, time.monotonic()
        if now - active.reported_at > _REPORT_S:
            active.reported_at = now
            self._run_log.event(
                "traffic",
                vehicle=vehicle,
                queries=record.queries + active.queries,
                uplink_bytes=sum(record.uplink.values()),
                downlink_bytes=sum(record.downlink.values()),
            )
        if active.repeat_due(now, patience.retry_s):
            self._desk.send(vehicle, active.turn)
        if self._link.transport.seconds_disconnected() > 0:
            record.last_seen = now  # the silence is the broker's doing
        if stage.deadline_s is None and now - record.last_seen > patience.give_up_s:
            raise CloudError(
                f"vehicle {vehicle!r} has been silent for {now - record.last_seen:.0f} s in turn "
                f"{stage.number} (limit {patience.give_up_s:g} s); start it again and resume the run"
            )

    def _dismiss(self) -> None:
        """Tell every vehicle that it is over, and wait a little until they have left."""
        deadline = time.monotonic() + _FAREWELL_S
        told = 0.0
        while time.monotonic() < deadline:
            present = [name for name, record in self._registry.vehicles.items() if record.online]
            if not present:
                return
            if time.monotonic() - told > 1.0:
                told = time.monotonic()
                for vehicle in present:
                    self._desk.send(vehicle, Finish(vehicle=vehicle, reason="the run is complete"))
            self._serve()

    # Messages -----------------------------------------------------------------------------------------

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _serve(self) -> None:
        """Handle some of what has arrived, waiting a moment for the first message.

        Not all of it: where messages come in faster than they are handled, turns and deadlines would wait.
        """
        timeout_s = _POLL_S
        for _ in range(_MOST_MESSAGES):
            self._check_stop()
            received = self._link.receive(timeout_s)
            if received is None:
                break
            timeout_s = 0.0
            self._desk.handle(received)
        away_s = self._link.transport.seconds_disconnected()
        self._desk.settle(connected=away_s == 0)
        self._count_statuses()
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
        for record in self._registry.vehicles.values():
            if record.online and record.hello:
                record.downlink["status"] += sent - self._statuses_counted
        self._statuses_counted = sent
