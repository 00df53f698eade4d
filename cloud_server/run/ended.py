"""A run that has ended, read from its folder: what serves each of its vehicles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from cloud_server.algorithms.base import Algorithm, Context, Serves
from cloud_server.algorithms.one_network import OneNetwork
from cloud_server.algorithms.shared_encoder import SharedEncoder
from cloud_server.algorithms.shared_steps import Record, SharedSteps
from cloud_server.algorithms.table import algorithm_row, build_algorithm
from cloud_server.algorithms.white_box import WhiteBox
from cloud_server.config import CloudConfig
from cloud_server.desk.ledger import UploadLedger
from cloud_server.desk.registry import Registry
from cloud_server.desk.roster import Roster
from cloud_server.errors import CloudError
from cloud_server.events import Events
from cloud_server.run.combinations import settled_adaptation
from cloud_server.run.persistence import RunState
from cloud_server.run.shared_trainer import build_trainer
from cloud_server.storage.label_store import LabelStore
from datasets.catalog import label_space
from protocol.codec.weights import WeightArrays, unpack
from protocol.plans.adaptation import Adaptation


class EndedRun:
    """The algorithm as its last commit left it; nothing goes on from here."""

    def __init__(self, config: CloudConfig, run_folder: Path) -> None:
        """Read the last commit.

        Raises:
            CloudError: there is none, it is damaged, or its network is another one.
            SettingError: the algorithm is unknown.
        """
        self.config = config
        classes = label_space(config.label_space, run_folder)
        state = RunState(run_folder / "cloud", config, resume=True)
        committed = state.load(goes_on=False)
        if committed is None:
            raise CloudError(f"{run_folder} holds no committed run; end it first, with --resume")
        roster = Roster(run_folder / "cloud", resume=True)
        row = algorithm_row(config.algorithm)
        registry = Registry(
            config.vehicles,
            label_space=classes.name,
            feature_shapes=config.feature_shapes,
            frame_bytes=config.coding.frame_bytes,
            equipment=row.needs.equipment,
        )
        registry.know(roster.declared, roster.failed)
        if registry.declared:  # of those that never joined nothing is known
            config = self.config = msgspec.structs.replace(config, vehicles=tuple(registry.declared))
        registry.settle()
        self._trainer = build_trainer(config, registry, run_folder, num_classes=classes.num_classes)
        with LabelStore(run_folder / "cloud" / "labels", num_classes=classes.num_classes) as labels:
            self._algorithm: Algorithm = build_algorithm(
                config.algorithm,
                Context(
                    config=config,
                    label_space=classes,
                    trainer=self._trainer,
                    labels=labels,
                    events=Events(),
                    run_folder=run_folder,
                    check_stop=lambda: None,
                    train_frames={v: len(registry.frames(v, "train")) for v in config.vehicles},
                    ledger=UploadLedger(),
                    source_frames={v: len(registry.frames(v, "source")) for v in config.vehicles},
                    bundles={v: declared.bundle_digest for v, declared in roster.declared.items()},
                ),
            )
            committed.restore(self._algorithm, registry)
        self._declared = roster.declared
        self.last_trained: Mapping[str, int] = committed.last_trained
        """By vehicle: the latest turn that it has learnt in; without those that never did."""

    def network(self, vehicle: str) -> nn.Module:
        """The network that serves a vehicle, features_BCHW to logits_BKhw, in evaluation mode.

        Raises:
            CloudError: the algorithm doesn't tell.
        """
        if not isinstance(self._algorithm, Serves):
            raise CloudError(
                f"algorithm {self.config.algorithm} does not tell what serves a vehicle; give it the method "
                f"`serving` (cloud_server.algorithms.base.Serves)"
            )
        with self._algorithm.serving(vehicle):
            return self._trainer.network()

    def displacement(self, vehicle: str) -> NDArray[np.float32] | None:
        """How far the fleet's encoder went from its start, float32 (m,); None where there is none."""
        shared = self._shared()
        return shared.displacement(vehicle) if isinstance(shared, SharedEncoder) else None

    def steps(self, vehicle: str) -> Record | None:
        """What the fleet's encoder has learnt by, where it is known by its steps."""
        shared = self._shared()
        return shared.record(vehicle) if isinstance(shared, SharedSteps) else None

    def adaptation(self, vehicle: str) -> Adaptation:
        """What of the vehicle's encoder learns, and how."""
        return settled_adaptation(self.config, self._declared[vehicle])

    def _shared(self) -> SharedEncoder | SharedSteps | None:
        algorithm = self._algorithm
        return algorithm.shared_encoder if isinstance(algorithm, OneNetwork | WhiteBox) else None

    def whole_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> WeightArrays:
        """The weights of encoder and network by name, where vehicles train both (`Needs.whole_network`).

        Args:
            shapes: of each array that is wanted.

        Raises:
            CloudError: the algorithm has none.
        """
        weights = getattr(self._algorithm, "weights", None)
        if weights is None:
            raise CloudError(f"algorithm {self.config.algorithm} has no weights of the whole network")
        return unpack(weights(), shapes)

    def evaluated_at_once(self, vehicle: str) -> int:
        """Frames of a message in which a vehicle has sent its test frames' features."""
        return self._algorithm.plan(self._algorithm.stages[-1], vehicle).batch_size
