"""Learning from the vehicle's own labels: encoder and local head train by themselves.

The cloud is asked at most where its loss lay after the round before, to weight the local one by.
Legend: B frames of a batch, C channels, K classes, h w logit rows and columns, y x cells of a loss map; θ all
encoder parameters and φ all head parameters, float32 vectors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.class_weights import pixel_weights
from edge_client.errors import StateError, TurnRefused
from edge_client.learners.loss_maps import ask_for_loss_maps
from edge_client.learners.opponent import Opponent
from edge_client.learners.progress import Progress
from edge_client.learners.subspaces import begin_learning
from edge_client.local.cross_entropy import cross_entropy, downsample_label
from edge_client.local.head import LocalHead
from edge_client.local.loss_weights import cell_weights, known_shares, spread
from edge_client.optimizers import Adam
from edge_client.spool import digest
from edge_client.state import VehicleState, part_of, state_bytes
from edge_client.turn import TurnTools
from protocol.batches import batch_bounds
from protocol.errors import SettingError
from protocol.messages import FetchLossMaps, LocalLossPlan

log = logging.getLogger(__name__)

HEAD_PARAMETERS = "head"
"""In the vehicle's state: all parameters of the local head."""
_ENCODER, _HEAD, _DECODER = "encoder/", "head/", "decoder/"
"""Prefixes, in the vehicle's state, of the two optimizers, where the encoder's subspace is with its own; and
of the decoder that it learns against, if any."""
_Weights = dict[int, NDArray[np.float32]]
"""By train frame: the weight (y, x) of its cells in the loss; those of a frame that isn't named are 1."""


class Rates(Protocol):
    """Step sizes of Adam at their highest."""

    @property
    def rate(self) -> float:
        """On the encoder."""
        ...

    @property
    def head_rate(self) -> float:
        """On the head."""
        ...


AfterStep = Callable[[tuple[int, ...], int | None, NDArray[np.float32]], None]
"""(frames, draw of the augmentation, features_BCHW) of a batch."""


def learn_from_local_loss(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """Joint first-order training of encoder and head on the cross-entropy of the vehicle's own train frames,
    weighted where the plan says so.

    Returns the state with φ and both optimizers in it, and the mean loss of the last epoch.

    Raises:
        TurnRefused: a local head or the VJP is missing, plan or state don't fit, the cloud's loss maps stay
            unusable, or training diverged.
    """
    plan, head = tools.turn.learner, head_of(tools)
    assert isinstance(plan, LocalLossPlan)
    shares, mapped = tools.turn.rate_shares, tools.turn.loss_map_frames
    if tools.turn.epochs != len(shares):
        raise TurnRefused(f"the turn has {tools.turn.epochs} epochs but {len(shares)} rates")
    weights = None if mapped is None else _fetch_weights(tools, plan, head, mapped)
    progress = Progress(tools, b"local-loss", state_bytes(state), _weights_bytes(weights))
    means: list[float] = []
    taken_up = progress.take_up()
    if taken_up is not None:
        means, state = taken_up
        log.info("turn %d goes on after %d of %d epochs", tools.turn.turn_id, len(means), len(shares))
    training = Training(tools, plan, head, state, weights, goes_on=taken_up is not None)
    for epoch in range(len(means), len(shares)):
        means.append(training.epoch(epoch, shares[epoch]))
        progress.note(means, training.state, is_end=len(means) == len(shares))
    return training.state(), means[-1] if means else None


def _weights_bytes(weights: _Weights | None) -> bytes:
    if weights is None:
        return b""
    return digest(*(repr(index).encode() + weights[index].tobytes() for index in sorted(weights)))


def head_of(tools: TurnTools) -> LocalHead:
    """The vehicle's local head.

    Raises:
        TurnRefused: it has none.
    """
    if tools.local_head is None:
        raise TurnRefused(
            "this vehicle has no local head, which this algorithm needs; give it the folder that the "
            "launcher wrote (--local-head, or local_head in its settings)"
        )
    return tools.local_head


def _fetch_weights(
    tools: TurnTools, plan: LocalLossPlan, head: LocalHead, mapped: tuple[int, ...]
) -> _Weights:
    """Fetch the loss maps of the train frames that have one, in the batches in which they were uploaded."""
    train, size = tools.own_frames("train", mapped), tools.turn.batch_size
    _, height, width = head.spec.feature_shape
    cells_yx = height // plan.weight_map_stride, width // plan.weight_map_stride
    try:
        known = [
            known_shares(downsample_label(tools.frames.label(index), head.spec.logit_shape[1:]), cells_yx)
            for index in train
        ]
    except (SettingError, ZeroDivisionError) as error:
        raise TurnRefused(f"the turn's loss weighting doesn't fit: {error}") from error
    maps = [
        ask_for_loss_maps(
            tools, FetchLossMaps(**tools.header(), frames=train[first : first + size]), cells_yx
        )
        for first in range(0, len(train), size)
    ]
    weight_nyx = cell_weights(
        np.concatenate(maps)[:, 0], np.stack(known), power=plan.weight_power, cap=plan.weight_cap
    )
    return dict(zip(train, weight_nyx, strict=True))


class Training:
    """θ, φ and the two optimizers on their way through a turn."""

    def __init__(
        self,
        tools: TurnTools,
        plan: Rates,
        head: LocalHead,
        state: VehicleState,
        weights: _Weights | None = None,
        *,
        head_learns: bool = True,
        goes_on: bool = False,
        after_step: AfterStep = lambda batch, draw, features_BCHW: None,
    ) -> None:
        """`head_learns`: from labels, with the encoder; `goes_on`: `state` is of the middle of this turn;
        `after_step` is told of each batch that was learnt
        from, and of its features before."""
        self._tools = tools
        self._plan = plan
        self._head = head
        self._weights = weights
        self._head_learns = head_learns
        self._after_step = after_step
        self._class_weights = tools.class_weights()
        self._parameters = head.initial
        try:
            encoder_adam, self._head_adam = Adam(plan.rate), Adam(plan.head_rate)
            if state.optimizer:
                self._take_up(state.optimizer)
        except (SettingError, StateError) as error:
            raise TurnRefused(f"local learning can't start: {error}") from error
        encoder_state = VehicleState(theta=state.theta, optimizer=part_of(state.optimizer, _ENCODER))
        self._encoder = begin_learning(
            tools, encoder_state, encoder_adam, rate_name="local-loss rate", goes_on=goes_on
        )
        against = tools.against_decoder
        self._opponent = None if against is None else Opponent(against, part_of(state.optimizer, _DECODER))

    def _take_up(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        parameters = arrays.get(HEAD_PARAMETERS)
        if parameters is None or parameters.shape != self._head.initial.shape:
            raise StateError("the vehicle's state is of another way of learning, or of another local head")
        self._parameters = parameters.astype(np.float32)
        self._head_adam.load_state_arrays(part_of(arrays, _HEAD))

    def state(self) -> VehicleState:
        """Everything that the next turn starts from."""
        encoder = self._encoder.state()
        arrays: dict[str, NDArray[np.generic]] = {HEAD_PARAMETERS: self._parameters}
        for prefix, part in ((_ENCODER, encoder.optimizer), (_HEAD, self._head_adam.state_arrays())):
            arrays |= {prefix + name: array for name, array in part.items()}
        if self._opponent is not None:
            arrays |= {_DECODER + name: array for name, array in self._opponent.state().items()}
        return VehicleState(theta=encoder.theta, optimizer=arrays)

    def fit_head(
        self, gradient_of: Callable[[NDArray[np.float32]], NDArray[np.float32]], rate: float
    ) -> None:
        """One step of the head's Adam along a gradient, float32 (n,), at its parameters.

        Raises:
            TurnRefused: the parameters are no longer finite.
        """
        self._head_adam.rate = rate
        self._parameters = self._head_adam.step(self._parameters, gradient_of(self._parameters))
        if not np.isfinite(self._parameters).all():
            raise TurnRefused(f"the head diverged while it was fitted; lower the rate (now {rate:g})")

    @property
    def theta(self) -> NDArray[np.float32]:
        """θ as it is now."""
        return self._encoder.theta

    def epoch(self, epoch: int, rate_share: float) -> float:
        """One pass over the train frames; returns the mean loss of its frames."""
        self._encoder.optimizer.rate = self._plan.rate * rate_share
        self._head_adam.rate = self._plan.head_rate * rate_share
        order = self._tools.shuffled(epoch)
        total = 0.0
        for start, stop in batch_bounds(len(order), self._tools.turn.batch_size):
            self._tools.attend()
            total += self._step(order[start:stop], epoch) * (stop - start)
        return total / len(order)

    def _step(self, batch: list[int], epoch: int) -> float:
        """One step of encoder and head from the same gradient; returns the loss before it."""
        _, height, width = self._head.spec.logit_shape
        views, where = self._tools.views, f"epoch {epoch}"
        draw = views.draw(epoch)
        label_Bhw = np.stack([downsample_label(views.label(index, draw), (height, width)) for index in batch])
        encoded = self._tools.linearise(self._encoder.theta, batch, self._encoder.subspace, draw)
        judged = self._head.linearise(self._parameters, encoded.features_BCHW)
        weight_Bhw = None
        if self._weights is not None:
            ones_yx = np.ones_like(next(iter(self._weights.values())))
            weight_Byx = np.stack(
                [views.map(index, draw, self._weights.get(index, ones_yx)) for index in batch]
            )
            weight_Bhw = spread(weight_Byx, (height, width))
        if self._class_weights is not None:
            of_class_Bhw = pixel_weights(self._class_weights, label_Bhw)
            weight_Bhw = of_class_Bhw if weight_Bhw is None else weight_Bhw * of_class_Bhw
        loss, gradient_BKhw = cross_entropy(judged.logits_BKhw, label_Bhw, weight_Bhw)
        if not math.isfinite(loss):
            raise TurnRefused(
                f"local learning diverged in {where}; lower its rates (now {self._plan.rate:g} for the "
                f"encoder and {self._plan.head_rate:g} for the head)"
            )
        head_gradient, features_gradient_BCHW = judged.pull_back(gradient_BKhw)
        if self._opponent is not None:
            image_BHWC = views.images(batch, draw)
            features_gradient_BCHW = features_gradient_BCHW + self._opponent.push(
                encoded.features_BCHW, image_BHWC
            )
        gradient = encoded.pull_back(features_gradient_BCHW)
        self._encoder.step(gradient, where=where)
        if self._head_learns:
            self._parameters = self._head_adam.step(self._parameters, head_gradient)
        self._after_step(tuple(batch), draw, encoded.features_BCHW)
        return loss
