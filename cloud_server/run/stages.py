"""The stage loop: what learns in stages is resumed, run, committed and reported here, in a fleet or without.

Who does a stage is the caller's: the server's `StageTurns` over the network, or passes over frames in
one place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloud_server.algorithms.base import Learning, MayEndEarly, MayWaitForCommit
from cloud_server.config import CloudConfig
from cloud_server.desk.registry import Registry
from cloud_server.events import Events
from cloud_server.run.more_rounds import first_stage
from cloud_server.run.persistence import Committed, RunState
from cloud_server.run.results import RESULT_NAME, RESULT_TOTALS, assemble, total_work
from cloud_server.run.simulated import Simulated
from cloud_server.schedule import Kind, Stage
from datasets.labels import LabelSpace
from protocol.atomic import write_json_atomic

log = logging.getLogger(__name__)


class StageLoop:
    """One run: `resume`, `run`, `conclude`, in this order."""

    def __init__(
        self,
        config: CloudConfig,
        learning: Learning,
        *,
        registry: Registry,
        state: RunState,
        label_space: LabelSpace,
        run_folder: Path,
        events: Events,
        simulated: Simulated | None = None,
    ) -> None:
        """`simulated` is what a simulation adds to what is committed and to the result."""
        self._simulated = simulated
        self._config = config
        self._learning = learning
        self._registry = registry
        self._state = state
        self._label_space = label_space
        self._run_folder = run_folder
        self._events = events
        self._first = 0
        self.last_trained: dict[str, int] = {}
        """By vehicle: the latest turn that it has learnt in; committed with every stage."""

    def resume(self, *, is_same_process: bool = False) -> None:
        """Go back to the latest commit, if there is one, and tell what is ahead.

        `is_same_process`: the fleet has grown, and its counters are what they are.

        Raises:
            CloudError: the checkpoint is damaged, of other settings, or doesn't fit this run's network; or
                there are other rounds, and that is not well defined.
        """
        committed = self._state.load()
        if committed is not None:
            if is_same_process:
                committed.restore_learning(self._learning)
            else:
                committed.restore(self._learning, self._registry)
                if self._simulated is not None and committed.simulated is not None:
                    self._simulated.go_on(committed.simulated)
            self.last_trained.update(committed.last_trained)
            self._first = first_stage(
                self._next_stage(committed), committed.rounds, self._config, self._learning.stages
            )
            log.info("the run is resumed: %d of %d stages are done", self._first, len(self._learning.stages))
        self._events.event(
            "run",
            algorithm=self._config.algorithm,
            stages=len(self._learning.stages),
            first=self._first,
            rounds=self._config.rounds,
            vehicles=list(self._config.vehicles),
        )

    def _next_stage(self, committed: Committed) -> int:
        """Stages are numbered for the vehicles there are: a fleet grows between two rounds."""
        if committed.members in (None, self._config.vehicles) or committed.round is None:
            return committed.next_stage
        return sum(stage.round <= committed.round for stage in self._learning.stages)

    @property
    def committed(self) -> int:
        """How many stages are committed, or were not needed."""
        return self._first

    def run(
        self,
        do_stage: Callable[[Stage], None],
        settle: Callable[[], None] = lambda: None,
        committed: Callable[[], None] = lambda: None,
        grows: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Run and commit every stage that is not committed yet and still needed, some of them together.

        `settle` is called before a commit, to make permanent or count what it relies on, and `committed`
        after it. Before a round, but for the evaluation at the end, it is asked whether the fleet `grows`;
        then this ends with false.

        Raises:
            OSError: the commit can't be written; the one before stands.
        """
        before = None
        for stage in self._learning.stages[self._first :]:
            if before is not None and stage.round != before and stage.kind is not Kind.FINAL and grows():
                return False
            before = stage.round
            if isinstance(self._learning, MayEndEarly) and not self._learning.is_needed(stage):
                continue
            do_stage(stage)
            if isinstance(self._learning, MayWaitForCommit):
                self._learning.stage_kept()
            if self._may_wait(stage):
                continue
            settle()
            self._commit(stage)
            self._first = stage.number + 1
            committed()
        return True

    def _may_wait(self, stage: Stage) -> bool:
        """Whether a stage is committed with the one after it: a large state, written for each of very many
        stages, would take longer than the learning."""
        stages = self._learning.stages
        if stage.number + 1 - self._first >= self._config.commit_every or stage.number + 1 == len(stages):
            return False
        # No vehicle's turn may build on one that is not committed.
        following = stages[stage.number + 1]
        return (
            isinstance(self._learning, MayWaitForCommit)
            and not isinstance(self._learning, MayEndEarly)
            and len(stage.vehicles) == len(following.vehicles) == 1
            and (stage.round, stage.kind) == (following.round, following.kind)
        )

    def conclude(self) -> dict[str, Any]:
        """Write `result.json`, with what a simulation tells of the run; returns its content.

        Raises:
            OSError: it can't be written.
        """
        result = assemble(
            self._config,
            self._learning.scores,
            self._learning.progress,
            self._registry,
            self._label_space,
            self._state.wall_s(),
        )
        if self._simulated is not None:
            self._simulated.add_to(result)
        write_json_atomic(self._run_folder / RESULT_NAME, result)
        fleet_miou = result["fleet_miou"]
        self._events.event("result", **{key: result[key] for key in RESULT_TOTALS})
        if fleet_miou is not None:
            self._events.scalar("fleet_miou", fleet_miou, self._learning.stages[-1].number)
        return result

    def _commit(self, stage: Stage) -> None:
        self._note_curve(stage)
        self._state.commit(
            stage,
            self._learning,
            self._registry,
            self.last_trained,
            self._config.vehicles,
            None if self._simulated is None else self._simulated.kept(),
        )
        self._learning.committed()
        self._events.event("committed", stage=stage.number, round=stage.round, kind=stage.kind.value)

    def _note_curve(self, stage: Stage) -> None:
        """Log how far the run is, before the commit, so that no committed stage is without it."""
        if stage.kind in (Kind.LEARN, Kind.FINAL):
            return
        records, progress = self._registry.vehicles.values(), self._learning.progress
        spent = {
            "uplink_bytes": sum(sum(record.uplink.values()) for record in records),
            "downlink_bytes": sum(sum(record.downlink.values()) for record in records),
            "wall_s": round(self._state.wall_s(), 3),
            "steps": progress.steps,
            "forward_equivalents": total_work(self._registry),
        }
        if stage.kind is Kind.INITIAL:
            self._events.event("training", stage=stage.number, **spent)
            return
        self._events.event(
            "curve",
            stage=stage.number,
            round=stage.round,
            frames_seen=progress.frames_seen,
            loss=progress.mean_loss,
            val_miou=progress.mean_val_miou,
            validated=len(progress.val_miou),
            **spent,
        )
