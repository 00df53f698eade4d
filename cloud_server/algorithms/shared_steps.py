"""One encoder for all vehicles with the same bundle, by the record of its steps: seeds and losses.

The cloud has drawn the seed of each turn and answered each loss: it knows every step without being told, and
no φ. A vehicle that comes to its turn takes those that it has not taken.
Legend: q two-sided queries a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context
from cloud_server.algorithms.likely import Likely
from cloud_server.errors import RequestError
from cloud_server.schedule import Kind, Stage
from protocol.batches import batches_of_pass
from protocol.codec.weights import WeightTensor
from protocol.messages import Shared, SpsaPlan, Turn
from protocol.plans.sharing import STEPS_AT_ONCE
from protocol.plans.spsa import step_seed

_BY_STEPS = "no weight crosses in this run: an encoder is known by its steps"
_PREFIX = "sharing/"
"""Of its tensors in a checkpoint, followed by bundle and name."""


@dataclass(frozen=True)
class Record:
    """Steps in the order in which they are taken."""

    seeds: NDArray[np.uint64]
    """(n,): of each step's directions."""
    losses: NDArray[np.float64]
    """(n, 2q): the answers that each was made of."""

    def __len__(self) -> int:
        return len(self.seeds)

    def page(self, since: int) -> Record:
        """At most `STEPS_AT_ONCE` of those after the first `since`."""
        chosen = slice(since, since + STEPS_AT_ONCE)
        return Record(self.seeds[chosen], self.losses[chosen])

    def followed_by(self, others: Record) -> Record:
        """These, then the others."""
        return Record(
            np.concatenate([self.seeds, others.seeds]), np.concatenate([self.losses, others.losses])
        )

    @property
    def move(self) -> float:
        """How far the losses of opposite directions lie apart, root of the mean square."""
        return float(np.sqrt(np.mean((self.losses[:, 0::2] - self.losses[:, 1::2]) ** 2))) if len(self) else 0


class SharedSteps:
    """The fleet's steps by bundle, and those of the turns under way."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._plan = context.config.way(SpsaPlan)
        self._nothing = Record(np.empty(0, np.uint64), np.empty((0, 2 * self._plan.queries), np.float64))
        self._records: dict[str, Record] = {}
        """By bundle."""
        self._sent: dict[str, Record] = {}
        """By vehicle: the steps of this attempt at its turn."""
        self._likely = Likely(context)

    def turn(self, stage: Stage) -> Shared | None:
        """What a stage's turns say of it; None before all learning."""
        if stage.kind is Kind.INITIAL:
            return None
        return Shared(sends=stage.kind is Kind.TRAIN, head=False, steps=self._plan)

    def record(self, vehicle: str) -> Record:
        """All steps that the vehicle's encoder has to take."""
        return self._records.get(self._likely.bundle(vehicle), self._nothing)

    # What vehicles say --------------------------------------------------------------------------------

    def begin(self, vehicle: str) -> None:
        """A turn starts, perhaps over again."""
        self._sent.pop(vehicle, None)

    def fetch(self, vehicle: str) -> NoReturn:
        """See `KeepsEncoder.fetch`."""
        raise RequestError(_BY_STEPS)

    def take(self, turn: Turn, tensors: Sequence[WeightTensor], losses: Sequence[float]) -> bool:
        """Keep the steps of a vehicle until its turn is done; false where they are left out.

        Args:
            losses: what its queries were answered with in this attempt, in their order.

        Raises:
            RequestError: they are not asked for, come twice or with weights, or are not as many as expected.
        """
        vehicle = turn.vehicle
        if tensors:
            raise RequestError(_BY_STEPS)
        if turn.sharing is None or not turn.sharing.sends:
            raise RequestError("this turn asks for no encoder")
        if vehicle in self._sent:
            raise RequestError("a second encoder in the same turn")
        frames = self._context.train_frames[vehicle]
        batches = batches_of_pass(frames, turn.batch_size, turn.batches)
        seeds = [
            step_seed(turn.seed, epoch, number) for epoch in range(turn.epochs) for number in range(batches)
        ]
        expected = len(seeds) * 2 * self._plan.queries
        if len(losses) != expected:
            raise RequestError(f"turn {turn.turn_id} had {len(losses)} of {expected} queries answered")
        steps = Record(
            np.array(seeds, np.uint64), np.array(losses, np.float64).reshape(-1, 2 * self._plan.queries)
        )
        self._sent[vehicle] = steps
        return self._likely.is_likely(vehicle, steps.move)

    def check_complete(self, turn: Turn) -> None:
        """Check that a turn may end.

        Raises:
            RequestError: it has not said that its steps are done.
        """
        if turn.sharing is not None and turn.sharing.sends and turn.vehicle not in self._sent:
            raise RequestError(f"turn {turn.turn_id} ended without its steps")

    def hand_on(self, stage: Stage, vehicle: str) -> tuple[str, ...]:
        """A vehicle's steps are the fleet's; returns who was left out, if any."""
        steps = self._sent.pop(vehicle)
        if not self._likely.is_likely(vehicle, steps.move):
            self._likely.leave_out(stage, vehicle, steps.move)
            return (vehicle,)
        self._likely.note(vehicle, steps.move)
        self._records[self._likely.bundle(vehicle)] = self.record(vehicle).followed_by(steps)
        return ()

    # What a checkpoint holds --------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Algorithm.tensors`."""
        content = {}
        for bundle, record in self._records.items():
            content[f"{_PREFIX}{bundle}/seeds"] = torch.from_numpy(record.seeds.view(np.int64).copy())
            content[f"{_PREFIX}{bundle}/losses"] = torch.from_numpy(record.losses.copy())
        return content

    def meta(self) -> dict[str, Any]:
        """See `Algorithm.meta`."""
        return self._likely.meta()

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """See `Algorithm.restore`."""
        self._sent.clear()
        bundles = [
            key.removeprefix(_PREFIX).removesuffix("/seeds")
            for key in tensors
            if key.startswith(_PREFIX) and key.endswith("/seeds")
        ]
        self._records = {
            bundle: Record(
                tensors[f"{_PREFIX}{bundle}/seeds"].numpy().copy().view(np.uint64),
                tensors[f"{_PREFIX}{bundle}/losses"].numpy().copy(),
            )
            for bundle in bundles
        }
        self._likely.restore(meta)
