"""SplitFed learning (Thapa et al., AAAI 2022, arXiv 2004.12088): white-box split learning, and averages.

Gradients come back as in split learning, and the encoders that come of them are averaged after each round.
v1: all vehicles at once, each with a copy of the network, and the copies are averaged, too. v2: one network,
which the vehicles train one after the other, in an order drawn anew for each round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from cloud_server.algorithms.base import (
    Context,
    TurnPlan,
    evaluation_plan,
    training_steps,
    validation_plan,
)
from cloud_server.algorithms.individual import OwnNetworks, unpack_state
from cloud_server.algorithms.replay import Replay
from cloud_server.algorithms.shared_encoder import always_shared
from cloud_server.algorithms.split import OneNetworkInTurns
from cloud_server.algorithms.white_box import Networks, WhiteBox
from cloud_server.config import CloudConfig
from cloud_server.desk.turns import Features
from cloud_server.errors import CloudError
from cloud_server.schedule import Kind, Stage, apart, in_drawn_order
from cloud_server.storage.checkpoint import flatten_state, unflatten_state
from cloud_server.storage.vehicle_store import VehicleStore
from protocol.noise import derive_seed, permutation


def splitfed_v1(context: Context) -> SplitFed:
    """The algorithm in its row of the table."""
    config = context.config
    shapes = config.feature_shapes or ()
    if len(set(shapes)) > 1:
        raise CloudError(
            f"{config.algorithm} averages networks, which must take features of one shape: got encoders of "
            f"{len(set(shapes))}; give all vehicles one encoder, or choose splitfed-v2"
        )
    networks = CopiedNetworks(context)
    stages = apart(config.vehicles, config.rounds, None)
    return SplitFed(
        context, networks=networks, copies=networks, replay=Replay(context, shared=False), stages=stages
    )


def splitfed_v2(context: Context) -> SplitFed:
    """The algorithm in its row of the table."""
    config = context.config
    stages = in_drawn_order(config.vehicles, config.rounds, lambda number: _drawn_order(config, number))
    networks = OneNetworkInTurns(context.trainer)
    return SplitFed(context, networks=networks, copies=None, replay=Replay(context), stages=stages)


class SplitFed(WhiteBox):
    """Stages in which vehicles learn from gradients, then one in which the averaged encoder is validated."""

    def __init__(
        self,
        context: Context,
        *,
        networks: Networks,
        copies: CopiedNetworks | None,
        replay: Replay,
        stages: tuple[Stage, ...],
    ) -> None:
        """`copies`: the networks that are averaged; None where all learn one."""
        super().__init__(
            context, networks=networks, replay=replay, stages=stages, shared=always_shared(context)
        )
        self._copies = copies

    def plan(self, stage: Stage, vehicle: str) -> TurnPlan:
        sharing = self.shared_encoder.turn(stage)
        if stage.kind is Kind.LEARN:
            learning = super().plan(replace(stage, kind=Kind.TRAIN), vehicle)
            return replace(learning, uploads=(), limits={}, sharing=sharing)
        if stage.kind is Kind.TRAIN:
            return replace(validation_plan(self._config, stage), sharing=sharing)
        plan = evaluation_plan(self._context, stage, vehicle, self._config.first_order.batch_size)
        return replace(plan, sharing=sharing)

    def begin(self, stage: Stage, vehicle: str) -> None:
        if stage.kind is Kind.LEARN:
            super().begin(stage, vehicle)
        elif self.shared_encoder.waits:
            # With one stage a vehicle, nobody else knows whose was the round's last: it may have failed.
            self._average(replace(stage, vehicles=self._config.vehicles))

    def turn_done(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        if stage.kind is Kind.LEARN:
            self._networks.learn(vehicle)
            self._note_losses(stage, vehicle)
            self._networks.keep(vehicle, stage.number, 0.0)
        elif stage.kind is Kind.TRAIN:
            with self.serving(vehicle):
                self._validate(stage, vehicle, uploads["val"])
        else:
            super().turn_done(stage, vehicle, uploads)

    def stage_done(self, stage: Stage) -> None:
        if stage.kind is Kind.LEARN and self._copies is not None:
            self._average(stage)

    def _average(self, stage: Stage) -> None:
        """The round's encoders become one, and so do the copies of the network that learnt with them."""
        left_out = self.shared_encoder.average(stage)
        self.progress.leave_out(left_out)
        if self._copies is not None:
            self._copies.average([vehicle for vehicle in stage.vehicles if vehicle not in left_out])


class CopiedNetworks(OwnNetworks):
    """A copy of the fleet's network for each vehicle in each round: weights, moments and statistics, on disk
    until they are averaged. Outside of a stage of learning the trainer holds the fleet's network."""

    def __init__(self, context: Context) -> None:
        config = context.config
        super().__init__(
            context.trainer,
            VehicleStore(context.run_folder / "cloud" / "copies", capacity=config.store_capacity),
            {vehicle: training_steps(config, frames) for vehicle, frames in context.train_frames.items()},
            context.class_weights,
        )
        self._config = config
        self._frames = context.train_frames
        self._rounds_done = 0

    def average(self, vehicles: Sequence[str]) -> None:
        """Σ nₖ sₖ / Σ nₖ of the copies' states s, nₖ train frames; in float64 and in the given order."""
        total = sum(self._frames[vehicle] for vehicle in vehicles)
        sums: dict[str, torch.Tensor] = {}
        structure: Any = None
        for vehicle in vehicles:
            packed = self._store.get(vehicle)
            assert packed is not None, "its turn is done"
            tensors, structure = flatten_state(unpack_state(packed))
            for name, tensor in tensors.items():
                share = tensor.to(torch.float64) * (self._frames[vehicle] / total)
                sums[name] = sums[name] + share if name in sums else share
        self._rounds_done += 1
        if structure is None:  # all of them are left out
            self._hold(self._start)
            return
        means = {
            name: (mean if tensors[name].is_floating_point() else mean.round()).to(tensors[name].dtype)
            for name, mean in sums.items()
        }
        self._hold(unflatten_state(means, structure))

    @contextmanager
    def serving(self, vehicle: str) -> Iterator[None]:
        yield  # the fleet's

    def tensors(self) -> dict[str, torch.Tensor]:
        return flatten_state(self._start)[0]

    def meta(self) -> dict[str, Any]:
        return {"trainer": flatten_state(self._start)[1], "rounds": self._rounds_done}

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        self._rounds_done = meta["rounds"]
        self._hold(unflatten_state(tensors, meta["trainer"]))

    def _hold(self, state: dict[str, Any]) -> None:
        """From now on this is the fleet's network, and there are no copies of it."""
        self._start = state
        self._store.restore({})
        self._holder = None
        self._learning.clear()
        self._set_aside.clear()
        self._trainer.load_state_dict(state)

    def _from_before(self, vehicle: str) -> dict[str, Any]:
        """The fleet's network, with as many steps behind it as the vehicle has taken."""
        return {**self._start, "steps": self._rounds_done * self._total_steps[vehicle] // self._config.rounds}


def _drawn_order(config: CloudConfig, round_number: int) -> tuple[str, ...]:
    """All vehicles in the order of a round."""
    order = permutation(derive_seed(config.seed, "splitfed", round_number), len(config.vehicles))
    return tuple(config.vehicles[position] for position in order.tolist())
