"""Federated averaging as a Flower app, run by `benchmarks.flower` in an environment that has Flower.

Clients train the very network of a fedavg run of this project, by its own code (`edge_client.local.network`),
on the same frames, from the same weights, in the same order; Flower carries the weights, places the clients
and averages. What is to be done comes as a JSON file, see `Work`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from datasets.divided import open_frames
from datasets.labels import LabelSpace
from edge_client.frames import FrameCache, VehicleFrames
from edge_client.learners.federated import confusion_counts
from edge_client.local.network import Batch, LocalNetwork, LocalTraining
from evaluation.scores import ConfusionMatrix
from protocol.batches import batch_bounds
from protocol.local_model import FOLDER_NAME, LocalModel
from protocol.noise import derive_seed, permutation

WEIGHTS_NAME = "weights.npz"
RESULT_NAME = "flower.json"
MOMENTS_NAME = "moments.jsonl"
_FILE_KEY, _ROUND_KEY = "work", "server-round"


@dataclass(frozen=True, kw_only=True)
class Work:
    """The content of the JSON file."""

    run: str
    """Folder of the run that is done again: its start weights, and its vehicles' frames."""
    out: str
    """Folder for what this leaves."""
    seed: int
    rates: list[list[float]]
    """By round, the step size of each pass."""
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    cores: int

    @classmethod
    def read(cls, path: str) -> Work:
        """Read the file."""
        return cls(**json.loads(Path(path).read_text()))


class _Fleet:
    """What the clients of a process share."""

    def __init__(self, path: str) -> None:
        self.work = Work.read(path)
        run = Path(self.work.run)
        self.model = LocalModel.load(run / FOLDER_NAME)
        hosts = [json.loads(file.read_text()) for file in sorted((run / "hosts").glob("*.json"))]
        self.splits: dict[str, dict[str, list[str]]] = {
            vehicle["id"]: vehicle["frames"] for host in hosts for vehicle in host["vehicles"]
        }
        source = open_frames(hosts[0]["dataset"], Path(hosts[0]["data_root"]), hosts[0]["test_split"])
        self.space: LabelSpace = source.label_space
        self._cache = FrameCache(source, self.model.spec.image_size)

    def vehicle(self, context: Context) -> str:
        """Whose turn a client's is."""
        return sorted(self.splits)[int(context.node_config["partition-id"])]

    def frames(self, vehicle: str) -> VehicleFrames:
        """Its own, pixels shared with the others of this process."""
        return VehicleFrames(self._cache, self.splits[vehicle])


@lru_cache(maxsize=1)
def _fleet(path: str) -> _Fleet:
    return _Fleet(path)


def _opened(message: Message, context: Context, kind: str) -> tuple[_Fleet, str, VehicleFrames, LocalNetwork]:
    fleet = _fleet(str(message.content["config"][_FILE_KEY]))
    with (Path(fleet.work.out) / MOMENTS_NAME).open("a") as file:
        file.write(json.dumps({"time": time.time(), "kind": kind}) + "\n")
    vehicle = fleet.vehicle(context)
    weights = {name: array.numpy() for name, array in message.content["arrays"].items()}
    return fleet, vehicle, fleet.frames(vehicle), LocalNetwork(fleet.model, weights, threads=1)


def _miou(fleet: _Fleet, frames: VehicleFrames, network: LocalNetwork, split: str) -> float:
    """As vehicles score weights: frame by frame, at the labels' own size."""
    predict, classes = network.predictor(), fleet.space.num_classes
    counts = np.zeros((classes, classes + 1), np.int64)
    for index in frames.splits[split]:
        label_HW = frames.label(index)
        [prediction_HW] = predict(frames.images([index]), (label_HW.shape[0], label_HW.shape[1]))
        counts += confusion_counts(label_HW, prediction_HW, classes)
    return ConfusionMatrix.from_dict({"counts": counts.tolist()}, fleet.space).mean_iou()


def train(message: Message, context: Context) -> Message:
    """A turn of learning: score the weights on validation frames, train them, send them back."""
    fleet, vehicle, frames, network = _opened(message, context, "train")
    work, number = fleet.work, int(message.content["config"][_ROUND_KEY])
    seed = derive_seed(work.seed, "turn", number, vehicle)
    train = frames.splits["train"]

    def batches(epoch: int) -> Iterator[Batch]:
        order = [train[place] for place in permutation(derive_seed(seed, "batches", epoch), len(train))]
        for start, stop in batch_bounds(len(order), work.batch_size):
            batch = order[start:stop]
            yield frames.images(batch), np.stack([frames.label(index) for index in batch])

    miou = _miou(fleet, frames, network, "val")
    training = LocalTraining(
        optimizer=work.optimizer,
        momentum=work.momentum,
        weight_decay=work.weight_decay,
        proximal=0.0,
        frozen_statistics=False,
        seed=seed,
    )
    rates = work.rates[number - 1]
    losses = network.train(training, ((rate, batches(epoch)) for epoch, rate in enumerate(rates)))
    metrics = MetricRecord({"num-examples": len(train), "loss": losses[-1], "val_miou": miou})
    arrays = ArrayRecord({name: Array(array) for name, array in network.weights.items()})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    """Score the weights on the vehicle's own test frames."""
    fleet, _, frames, network = _opened(message, context, "evaluate")
    metrics = MetricRecord({"num-examples": 1, "test_miou": _miou(fleet, frames, network, "test")})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def main() -> int:
    """Run it: the JSON file is the argument. To be imported, not run: clients find it by its name."""
    # Ray would let its workers wait for whatever else the machine does: 15 nicer than what starts them.
    os.environ.update(RAY_worker_niceness="0")
    path = sys.argv[1]
    work, fleet = Work.read(path), _fleet(path)
    vehicles = len(fleet.splits)
    done: dict[str, Any] = {}

    def serve(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord({name: Array(array) for name, array in fleet.model.weights.items()})
        everyone: dict[str, Any] = {"min_available_nodes": vehicles}
        scoring = FedAvg(fraction_train=0.0, min_evaluate_nodes=vehicles, **everyone)
        learning = FedAvg(fraction_evaluate=0.0, min_train_nodes=vehicles, **everyone)

        def score(number: int, arrays: ArrayRecord) -> float:
            asked = scoring.configure_evaluate(number, arrays, ConfigRecord({_FILE_KEY: path}), grid)
            metrics = scoring.aggregate_evaluate(number, grid.send_and_receive(asked))
            assert metrics is not None, "no client has answered"
            return float(metrics["test_miou"])

        before = score(0, arrays)
        result = learning.start(
            grid, arrays, num_rounds=len(work.rates), train_config=ConfigRecord({_FILE_KEY: path})
        )
        rounds = {str(number): dict(told) for number, told in result.train_metrics_clientapp.items()}
        after = score(len(work.rates), result.arrays)
        done.update(rounds=rounds, test_before=before, test_after=after)
        np.savez(
            Path(work.out) / WEIGHTS_NAME, **{name: array.numpy() for name, array in result.arrays.items()}
        )

    server, client = ServerApp(), ClientApp()
    server.main()(serve)
    client.train()(train)
    client.evaluate()(evaluate)
    run_simulation(
        server,
        client,
        num_supernodes=vehicles,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": work.cores},
        },
    )
    Path(work.out, RESULT_NAME).write_text(json.dumps(done))
    return 0 if done else 1
