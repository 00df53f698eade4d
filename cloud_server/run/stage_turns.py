"""The turns of a stage over the network: granted, followed, and finished, started over or dropped."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloud_server.algorithms.base import Algorithm, MayTakeBack
from cloud_server.algorithms.closing import closing_of, overlaps
from cloud_server.config import CloudConfig
from cloud_server.desk.desk import Desk
from cloud_server.desk.ledger import UploadLedger
from cloud_server.desk.registry import Registry
from cloud_server.desk.roster import Roster
from cloud_server.desk.turns import ActiveTurn, new_grant
from cloud_server.errors import CloudError
from cloud_server.events import Events
from cloud_server.run.combinations import settled_adaptation
from cloud_server.schedule import Kind, Stage
from cloud_server.training.trainer import DivergedError
from protocol.messages import Turn
from protocol.noise import derive_seed
from protocol.plans.class_weights import NONE
from protocol.session.clock import Clock

log = logging.getLogger(__name__)

_REPORT_S = 1.0
_STAGE_ATTEMPTS = 3


@dataclass
class TurnTime:
    """What a vehicle has had for its turn, by the clock, whatever attempts there were."""

    began_at: float
    """When it was first granted, or last waited for anew."""
    worked_s: float = 0.0
    paused_s: float = 0.0
    """In which its car did not allow it to work, as it says."""
    _looked_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._looked_at = self.began_at

    def look(self, now: float, *, is_paused: bool) -> None:
        """The time since the last look was of this kind."""
        passed_s, self._looked_at = now - self._looked_at, now
        if is_paused:
            self.paused_s += passed_s
        else:
            self.worked_s += passed_s


class StageTurns:
    """How a fleet does a stage; `run` is what the server's stage loop calls."""

    def __init__(
        self,
        config: CloudConfig,
        algorithm: Algorithm,
        *,
        desk: Desk,
        registry: Registry,
        roster: Roster,
        ledger: UploadLedger,
        events: Events,
        last_trained: dict[str, int],
        train_label_sizes: Mapping[str, tuple[int, int]],
        serve: Callable[[], None],
        seconds_disconnected: Callable[[], float],
        clock: Clock,
    ) -> None:
        """`serve` handles some of what has arrived, waiting a moment for it; `last_trained` is of the stage
        loop, by vehicle; `train_label_sizes` has those whose train labels don't cross as they are."""
        self._config = config
        self._algorithm = algorithm
        self._desk = desk
        self._registry = registry
        self._roster = roster
        self._ledger = ledger
        self._events = events
        self._last_trained = last_trained
        self._train_label_sizes = train_label_sizes
        self._serve = serve
        self._seconds_disconnected = seconds_disconnected
        self._clock = clock
        self._running: dict[str, TurnTime] = {}
        """By vehicle: turns under way, perhaps of an earlier stage."""
        self._overlaps = overlaps(config)

    def run(self, stage: Stage) -> None:
        """Run a stage's turns; where it has a deadline, again if all of them missed it.

        Vehicles that have failed are left out of it, where the run goes on without them.

        Raises:
            CloudError: no vehicle has kept the deadline in any attempt, one has failed and the run stops with
                it, or all have failed.
        """
        for _ in range(_STAGE_ATTEMPTS):
            failed = self._registry.failed
            present = tuple(vehicle for vehicle in stage.vehicles if vehicle not in failed)
            finished = self._run_turns(stage, present)
            if finished:
                try:
                    self._algorithm.stage_done(replace(stage, vehicles=finished))
                except DivergedError as error:
                    raise CloudError(f"training diverged in round {stage.round}: {error}") from error
                return
            if all(vehicle in self._registry.failed for vehicle in stage.vehicles):
                return  # nothing was learnt, nothing is to be made of it
            self._events.event("repeated", stage=stage.number, round=stage.round)
        raise CloudError(
            f"no vehicle finished its turn in round {stage.round} within {stage.deadline_s:g} s, in "
            f"{_STAGE_ATTEMPTS} attempts; raise the deadline, or start the vehicles again and resume the run"
        )

    def _run_turns(self, stage: Stage, vehicles: Sequence[str]) -> tuple[str, ...]:
        """These vehicles' turns, several at a time, until the stage closes; returns whose were finished, in
        the same order, and after them those that are late from an earlier stage."""
        closing, opened_at, running = closing_of(self._config, stage), self._clock.now(), self._running
        if not closing.keeps_late:
            self._let_go(stage)
        waiting = self._longest_waiting([vehicle for vehicle in vehicles if vehicle not in running])
        finished: set[str] = set()
        while waiting or any(vehicle in running for vehicle in vehicles):
            if closing.is_over(len(finished), self._clock.now() - opened_at):
                break
            while waiting and len(running) < self._config.parallel_turns:
                vehicle = waiting.pop(0)
                running[vehicle] = TurnTime(self._clock.now())
                self._grant(stage, vehicle)
            self._serve()
            for vehicle in sorted(running, key=self._arrival):
                if len(finished) == closing.enough:
                    break
                if self._look_at(stage, vehicle):
                    finished.add(vehicle)
        if not closing.keeps_late:
            self._let_go(stage)
        late = (v for v in self._config.vehicles if v in finished and v not in vehicles)
        return (*(vehicle for vehicle in vehicles if vehicle in finished), *late)

    def _look_at(self, stage: Stage, vehicle: str) -> bool:
        """Go on with a turn that is under way; whether it is finished."""
        active, time = self._desk.active[vehicle], self._running[vehicle]
        time.look(self._clock.now(), is_paused=self._registry.vehicles[vehicle].is_paused)
        if active.done:
            del self._running[vehicle]
            self._finish(stage, active)
            return True
        if failure := active.failed or self._given_up(stage, vehicle, time):
            if self._config.patience.on_failure == "wait":
                self._running[vehicle] = TurnTime(self._clock.now())
                self._await(stage, active, failure)
                return False
            del self._running[vehicle]
            self._fail(stage, active, failure)
        elif stage.deadline_s is not None and self._clock.now() - time.began_at > stage.deadline_s:
            del self._running[vehicle]
            self._drop(stage, active, f"took over {stage.deadline_s:g} s")
        elif active.abandoned:
            if self._registry.vehicles[vehicle].is_news("restarted"):
                log.warning("turn %d of vehicle %s starts over", active.turn.turn_id, vehicle)
                self._events.event("restarted", vehicle=vehicle, stage=stage.number)
            self._discard(active)
            self._grant(stage, vehicle)
        else:
            self._look_after(stage, vehicle, active)
        return False

    def _arrival(self, vehicle: str) -> tuple[float, str]:
        """Whose turn was done first comes first."""
        active = self._desk.active[vehicle]
        return (active.done_at if active.done else math.inf), vehicle

    def _longest_waiting(self, vehicles: Sequence[str]) -> list[str]:
        """Those first whose latest turn is the oldest: where rounds overlap and turns are few, each has its
        share of them."""
        latest = {vehicle: self._last_trained.get(vehicle, -1) for vehicle in vehicles}
        return sorted(vehicles, key=latest.__getitem__) if self._overlaps else list(vehicles)

    def _let_go(self, stage: Stage) -> None:
        """The round goes on without those that are late."""
        for vehicle in sorted(self._running):
            del self._running[vehicle]
            self._drop(stage, self._desk.active[vehicle], "was not done when the round ended")

    def _drop(self, stage: Stage, active: ActiveTurn, why: str) -> None:
        """Go on without a vehicle: whatever it still sends in this turn is stale."""
        vehicle = active.turn.vehicle
        active.abandoned = True
        self._discard(active)
        self._desk.let_go(active.turn, f"it {why}")
        log.warning("turn %d of vehicle %s %s: dropped", active.turn.turn_id, vehicle, why)
        self._events.event("dropped", vehicle=vehicle, stage=stage.number, round=stage.round)

    def _await(self, stage: Stage, active: ActiveTurn, reason: str) -> None:
        """A vehicle can't go on, and the run waits for it: its next hello starts the turn over. Where a way
        of learning has a deadline, that one stays."""
        vehicle = active.turn.vehicle
        record = self._registry.vehicles[vehicle]
        active.failed = None
        if record.is_news("awaited"):
            log.warning("waiting for vehicle %s (turn %d): %s", vehicle, stage.number, reason)
            self._events.event("awaited", vehicle=vehicle, stage=stage.number, reason=reason)

    def _fail(self, stage: Stage, active: ActiveTurn, reason: str) -> None:
        """A vehicle can't go on: stop, or go on without it for the rest of the run.

        Raises:
            CloudError: the run stops with it, or it was the last one.
        """
        vehicle = active.turn.vehicle
        if self._config.patience.on_failure == "stop":
            raise CloudError(
                f"vehicle {vehicle!r} can't go on: {reason}"
                if active.failed
                else f"vehicle {vehicle!r} {reason}; start it again and resume the run"
            )
        active.abandoned = True
        self._discard(active)
        self._algorithm.begin(stage, vehicle)  # what the attempt has left goes
        for latest in (self._algorithm.progress.loss, self._algorithm.progress.val_miou):
            latest.pop(vehicle, None)
        self._registry.vehicles[vehicle].failed = reason
        self._roster.fail(vehicle, reason)
        log.warning("the run goes on without vehicle %s (turn %d): %s", vehicle, stage.number, reason)
        self._events.event("failed", vehicle=vehicle, stage=stage.number, round=stage.round, reason=reason)
        if len(self._registry.failed) == len(self._registry.vehicles):
            raise CloudError(f"every vehicle has failed; the last one, {vehicle!r}: {reason}")

    def _discard(self, active: ActiveTurn) -> None:
        """Count what an attempt that is given up has had acknowledged."""
        self._registry.vehicles[active.turn.vehicle].uploads.discarded += len(active.uploaded["train"])

    def _grant(self, stage: Stage, vehicle: str) -> None:
        """Start a vehicle's turn, or start it over: a new grant makes the old attempt stale."""
        plan = self._algorithm.plan(stage, vehicle)
        self._registry.shares_encoder = plan.sharing is not None or bool(self._registry.shares_encoder)
        turn = Turn(
            vehicle=vehicle,
            grant=new_grant(),
            turn_id=stage.number,
            step=0,
            after_turn=self._last_trained.get(vehicle),
            seed=derive_seed(self._config.seed, "turn", stage.number, vehicle),
            adaptation=settled_adaptation(self._config, self._registry.declaration(vehicle)),
            coding=self._config.coding,
            upload_frames={
                split: limit.choose(self._registry.frames(vehicle, split))
                for split, limit in plan.limits.items()
                if split in plan.uploads and limit.most < len(self._registry.frames(vehicle, split))
            },
            train_label_size=self._train_label_sizes.get(vehicle),
            class_weights=None if self._config.class_weights == NONE else self._config.class_weights,
            augmentation=self._config.augmentation if self._config.augmentation.is_on else None,
            **plan.told(),
        )
        self._desk.active[vehicle] = ActiveTurn(
            turn=turn, granted_at=self._clock.now(), told=self._registry.vehicles[vehicle].told
        )
        self._algorithm.begin(stage, vehicle)
        self._events.event(
            "turn", stage=stage.number, round=stage.round, kind=stage.kind.value, vehicle=vehicle
        )
        self._desk.send(vehicle, turn)

    def _finish(self, stage: Stage, active: ActiveTurn) -> None:
        vehicle = active.turn.vehicle
        record = self._registry.vehicles[vehicle]
        record.queries += active.queries
        record.note_turn(active.turn.turn_id)
        self._ledger.acknowledge(vehicle, active.uploaded["train"])
        if stage.kind in (Kind.LEARN, Kind.TRAIN):
            record.work.add(active.work)
        record.answers_per_frame = max(record.answers_per_frame, active.answers_per_frame)
        try:
            self._algorithm.turn_done(stage, vehicle, active.features())
        except DivergedError as error:
            raise CloudError(f"training diverged in turn {stage.number}: {error}") from error
        active.uploads.clear()
        if active.loss is not None:
            self._events.scalar(f"vehicle_loss/{vehicle}", active.loss, stage.number)
        taken_back = isinstance(self._algorithm, MayTakeBack) and self._algorithm.took_back(stage, vehicle)
        if taken_back:
            log.warning("turn %d of vehicle %s is taken back: it was for the worse", stage.number, vehicle)
        elif active.turn.learner is not None:
            self._last_trained[vehicle] = active.turn.turn_id
        self._events.event(
            "turn_done",
            stage=stage.number,
            round=stage.round,
            kind=stage.kind.value,
            vehicle=vehicle,
            loss=active.loss,
            turn_queries=active.queries,
            vehicle_s=round(active.done_at - active.granted_at, 3),
            queries=record.queries,
            **(
                {"behind": stage.number - active.turn.turn_id}
                if self._overlaps and stage.kind is Kind.TRAIN
                else {}
            ),
            **record.traffic(),
        )

    def _look_after(self, stage: Stage, vehicle: str, active: ActiveTurn) -> None:
        """Log the vehicle's traffic; repeat a grant that may be lost."""
        record, patience, now = self._registry.vehicles[vehicle], self._config.patience, self._clock.now()
        if now - active.reported_at > _REPORT_S:
            active.reported_at = now
            self._events.event(
                "traffic",
                vehicle=vehicle,
                queries=record.queries + active.queries,
                **record.traffic(),
            )
        if active.repeat_due(now, patience.retry_s):
            self._desk.send(vehicle, active.turn)

    def _given_up(self, stage: Stage, vehicle: str, time: TurnTime) -> str:
        """Why to give up on a vehicle that stays away, or never comes to an end of its turn; empty while
        there is hope, or a deadline does it."""
        record, now = self._registry.vehicles[vehicle], self._clock.now()
        limit_s = self._config.patience.give_up_s
        if self._seconds_disconnected() > 0:
            record.last_seen = now  # the silence is the broker's doing
        if stage.deadline_s is not None:
            return ""
        patience = self._config.patience
        if time.worked_s > patience.turn_s:
            return (
                f"has not finished turn {stage.number} in {time.worked_s:.0f} s (limit {patience.turn_s:g} s)"
            )
        if time.paused_s > patience.paused_s:
            return (
                f"was not allowed to work for {time.paused_s:.0f} s of turn {stage.number} "
                f"(limit {patience.paused_s:g} s)"
            )
        if now - max(record.last_seen, time.began_at) <= limit_s:
            return ""
        return (
            f"has been silent for {now - record.last_seen:.0f} s in turn {stage.number} (limit {limit_s:g} s)"
        )
