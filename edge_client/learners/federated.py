"""Federated averaging on the vehicle: fetch weights, score them, train them, send them back.

Legend: B frames, H W rows and columns, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_client.errors import TurnRefused
from edge_client.learners.progress import Progress
from edge_client.local.network import Batch, LocalNetwork, LocalTraining
from edge_client.local.noised_update import noised
from edge_client.state import VehicleState, state_bytes
from edge_client.turn import LocalModelTools, TurnTools
from evaluation.latest import FRAMES_A_VEHICLE, evenly, write_predictions
from evaluation.predictions import write_prediction
from protocol.batches import batch_bounds
from protocol.codec.weights import WeightArrays, WeightsError, pack, unpack
from protocol.messages import FederatedPlan, FetchWeights, FirstOrder, SplitScores, Turn, Update, Weights

log = logging.getLogger(__name__)

_STATISTIC = "statistic/"
"""Prefix, in the vehicle's state, of the BatchNorm statistics that stay on the vehicle."""
_SHOWN = ("val", "test")
"""Splits of which the latest predictions are kept; at the end all of those on test frames are."""


def learn_with_weights(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """One turn: fetch, score, train E epochs, send; a turn of no epochs ends with the scores.

    Between turns a vehicle keeps nothing but SiloBN's statistics: its optimizer starts anew each time.

    Raises:
        TurnRefused: there is no local model, what the cloud sent does not fit it, or training diverged.
    """
    turn, local = tools.turn, tools.local_model
    plan, first_order = turn.learner, turn.first_order
    assert isinstance(plan, FederatedPlan)
    if local is None:
        raise TurnRefused(
            "this vehicle has no local model, which fedavg needs; give it the folder that the launcher wrote "
            "(--local-model, or local_model in its settings)"
        )
    if first_order is None:
        raise TurnRefused("the turn does not say how the network is trained (first_order)")
    if turn.epochs != len(turn.rate_shares):
        raise TurnRefused(f"the turn has {turn.epochs} epochs but {len(turn.rate_shares)} rates")
    if local.update_noise is not None and plan.statistics == "average":
        raise TurnRefused(
            "this vehicle sends noised weights, and statistics can't be noised: set federated.statistics to "
            "local or frozen"
        )
    spec = local.model.spec
    exchanged = spec.shapes(statistics=plan.statistics == "average")
    [answer] = tools.ask([FetchWeights(**tools.header())])
    assert isinstance(answer, Weights)
    try:
        received = unpack(answer.tensors, exchanged)
    except WeightsError as error:
        raise TurnRefused(f"the cloud's weights don't fit the local model: {error}") from error
    own = own_statistics(state) if plan.statistics == "local" else {}
    started = {**local.model.weights, **own, **received}
    network = LocalNetwork(local.model, started, threads=local.threads, device=local.device)
    _send_scores(tools, local, network)
    if turn.epochs == 0:
        return state, None
    progress = Progress(tools, b"federated", state_bytes(VehicleState(theta=state.theta, optimizer=started)))
    taken_up = progress.take_up()
    if taken_up is not None:
        losses, trained = taken_up[0], taken_up[1].optimizer
        log.info("turn %d: the training that it had done is there", turn.turn_id)
        network = LocalNetwork(
            local.model,
            {name: array.astype(np.float32) for name, array in trained.items()},
            threads=local.threads,
            device=local.device,
        )
    else:
        losses = _train(tools, network, plan, first_order)
        learnt = VehicleState(theta=state.theta, optimizer=network.weights)
        progress.note(losses, lambda: learnt, is_end=True)
    learnt_weights, told = {name: network.weights[name] for name in exchanged}, losses[-1]
    if local.update_noise is not None:  # a loss would tell of the frames without noise
        learnt_weights, told = noised(learnt_weights, received, local.update_noise, _asked(turn)), 0.0
    update = Update(
        **tools.header(),
        samples=len(tools.frames.splits["train"]),
        loss=told,
        tensors=pack(learnt_weights),
    )
    tools.ask([update])
    kept = spec.statistic_names if plan.statistics == "local" else ()
    statistics = {_STATISTIC + name: network.weights[name] for name in kept}
    return VehicleState(theta=state.theta, optimizer=statistics), told


def _asked(turn: Turn) -> bytes:
    """A turn as all its attempts have it."""
    return msgspec.msgpack.encode(msgspec.structs.replace(turn, grant=""))


def _train(
    tools: TurnTools, network: LocalNetwork, plan: FederatedPlan, first_order: FirstOrder
) -> list[float]:
    """The turn's epochs; returns the mean loss of each."""
    turn = tools.turn
    return network.train(
        LocalTraining(
            optimizer=plan.optimizer,
            momentum=plan.momentum,
            weight_decay=first_order.weight_decay,
            proximal=plan.proximal,
            frozen_statistics=plan.statistics == "frozen",
            seed=turn.seed,
            class_weights=tools.class_weights(),
        ),
        ((first_order.rate * share, _batches(tools, epoch)) for epoch, share in enumerate(turn.rate_shares)),
    )


def confusion_counts(
    label_HW: NDArray[np.uint8], prediction_HW: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Pixels by true class (rows) and predicted class (columns, the last: none); void is not counted.

    The same counts as the cloud's confusion matrix: int64 (K, K + 1).
    """
    known_HW = label_HW < num_classes
    truth = label_HW[known_HW].astype(np.int64)
    predicted = np.minimum(prediction_HW[known_HW], num_classes)
    width = num_classes + 1
    return np.bincount(truth * width + predicted, minlength=num_classes * width).reshape(num_classes, width)


def own_statistics(state: VehicleState) -> WeightArrays:
    """The BatchNorm statistics by name that have stayed on the vehicle (SiloBN)."""
    return {
        name.removeprefix(_STATISTIC): array.astype(np.float32)
        for name, array in state.optimizer.items()
        if name.startswith(_STATISTIC)
    }


def _send_scores(tools: TurnTools, local: LocalModelTools, network: LocalNetwork) -> None:
    """Count pixels frame by frame, at the labels' own size, and send the counts alone."""
    if not tools.turn.scores:
        return
    predict = network.predictor()
    space = local.label_space
    for split in tools.turn.scores:
        few, shown = evenly(len(tools.frames.splits[split]), FRAMES_A_VEHICLE), []
        looked_at = local.latest if split in _SHOWN and not tools.turn.save_predictions else None
        counts = np.zeros((space.num_classes, space.num_classes + 1), np.int64)
        for place, index in enumerate(tools.frames.splits[split]):
            tools.attend()
            label_HW = tools.frames.label(index)
            height, width = label_HW.shape
            [prediction_HW] = predict(tools.frames.images([index]), (height, width))
            counts += confusion_counts(label_HW, prediction_HW, space.num_classes)
            if tools.turn.save_predictions and split in local.predictions:
                write_prediction(local.predictions[split], tools.frames.keys[index], prediction_HW, space)
            if place in few and looked_at is not None:
                shown.append((tools.frames.keys[index], label_HW, prediction_HW))
        if looked_at is not None:
            write_predictions(looked_at, tools.turn.turn_id, split, space.name, shown)
        rows = tuple(tuple(row) for row in counts.tolist())
        frames = len(tools.frames.splits[split])
        tools.ask([SplitScores(**tools.header(), split=split, frames=frames, counts=rows)])


def _batches(tools: TurnTools, epoch: int) -> Iterator[Batch]:
    """The epoch's batches of images and labels, in an order of its own."""
    order, draw = tools.shuffled(epoch), tools.views.draw(epoch)
    for start, stop in batch_bounds(len(order), tools.turn.batch_size):
        tools.attend()
        batch = order[start:stop]
        label_BHW = np.stack([tools.views.label(index, draw) for index in batch])
        yield tools.views.images(batch, draw), label_BHW
