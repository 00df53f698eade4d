"""What every algorithm is to the server, and what they all share: data, scores and evaluation turns.

Legend: B frames, K classes, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_server.algorithms.upload_limit import UploadLimit
from cloud_server.config import CloudConfig
from cloud_server.desk.ledger import UploadLedger
from cloud_server.desk.turns import Features
from cloud_server.events import Events
from cloud_server.schedule import Kind, Stage
from cloud_server.storage.label_store import LabelStore
from datasets.augment import seen_labels
from datasets.labels import LabelSpace
from evaluation.latest import LatestFrames
from evaluation.scores import ConfusionMatrix
from protocol.batches import batch_count
from protocol.errors import SettingError
from protocol.messages import Learner, Shared
from protocol.plans.first_order import FirstOrder
from protocol.plans.own import OwnSettings

if TYPE_CHECKING:  # the operator reads the table of algorithms, and torch takes seconds to load
    import torch

    from cloud_server.training.trainer import Trainer

T = TypeVar("T", bound=msgspec.Struct)

PREDICTED = {"test": "predictions", "fleet": "fleet_predictions"}
"""By split whose final predictions are written: their folder in a run folder, a folder a vehicle in it."""


@dataclass(frozen=True, kw_only=True)
class TurnPlan:
    """What a vehicle is to do in a turn; the server adds ids and grants. `Turn` explains the fields."""

    learner: Learner | None
    epochs: int
    batches: int
    batch_size: int
    uploads: tuple[str, ...]
    rate_shares: tuple[float, ...] = ()
    first_order: FirstOrder | None = None
    loss_map_frames: tuple[int, ...] | None = None
    scores: tuple[str, ...] = ()
    save_predictions: bool = False
    sharing: Shared | None = None
    limits: Mapping[str, UploadLimit] = field(default_factory=dict)
    """Of splits in `uploads` of which not every frame is wanted."""

    def told(self) -> dict[str, Any]:
        """What a `Turn` says of it in fields of the same names: all but the limits."""
        return {name: value for name, value in vars(self).items() if name != "limits"}


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the server lends to its algorithm."""

    config: CloudConfig
    label_space: LabelSpace
    trainer: Trainer
    labels: LabelStore
    events: Events
    run_folder: Path
    check_stop: Callable[[], None]
    """Raises `Stopped` when the process was asked to stop; called during long work."""
    train_frames: Mapping[str, int]
    """Number of train frames by vehicle."""
    ledger: UploadLedger
    """Told of each first-order step on uploaded features."""
    source_frames: Mapping[str, int]
    """Number of frames of the source domain by vehicle, on which forgetting is measured."""
    class_weights: Callable[[Sequence[str]], NDArray[np.float32]] | None = None
    """Weights of classes, float32 (K,), of a network that learns from these vehicles' frames; None: all count
    alike. The trainer has those of all vehicles."""
    fleet_frames: Mapping[str, int] = field(default_factory=dict)
    """Number of frames of the fleet's test split by vehicle whose model is scored on it."""
    bundles: Mapping[str, str] = field(default_factory=dict)
    """By vehicle: what its encoder bundle is known by; those with the same one began alike."""

    @cached_property
    def latest(self) -> LatestFrames:
        """For whoever looks on."""
        return LatestFrames(self.run_folder, self.config.vehicles, self.config.label_space)

    def own_settings(self, kind: type[T]) -> T:
        """`own.algorithm` of the run's settings, as the struct of an algorithm that is not ours."""
        return own_settings(self.config, kind)

    def labels_of(self, vehicle: str, features: Features) -> NDArray[np.uint8]:
        """The label_BHW of frames whose features a vehicle has sent, as it has seen them."""
        return seen_labels(self.labels.batch(vehicle, features.indices), features.views)

    def targets(self, vehicle: str, indices: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """The label_BHW that feedback about a vehicle's train frames is of; None where it is the entropy."""
        return self.labels.batch(vehicle, indices) if self.config.adaptation.objective == "labels" else None


def own_settings(config: CloudConfig, kind: type[T]) -> T:
    """`own.algorithm` as a struct of settings.

    Raises:
        SettingError: it does not fit.
    """
    try:
        return msgspec.convert(config.way(OwnSettings).algorithm, kind)
    except msgspec.ValidationError as error:
        raise SettingError(f"own.algorithm of {config.algorithm}: {error}") from error


def training_steps(config: CloudConfig, frames: int) -> int:
    """First-order steps that the whole run takes on a vehicle with so many train frames, 1 at least; those on
    replayed features belong to the vehicle whose steps they follow."""
    first = config.first_order
    return max(1, batch_count(frames, first.batch_size) * first.passes * config.rounds)


@dataclass(kw_only=True)
class Scores:
    """Confusion matrices over test frames, by vehicle: at the start, local and out of domain; over frames of
    the source domain, at the end and at the start; and over the fleet's test split."""

    initial: dict[str, ConfusionMatrix] = field(default_factory=dict)
    local: dict[str, ConfusionMatrix] = field(default_factory=dict)
    ood: dict[str, ConfusionMatrix] = field(default_factory=dict)
    source: dict[str, ConfusionMatrix] = field(default_factory=dict)
    initial_source: dict[str, ConfusionMatrix] = field(default_factory=dict)
    fleet: dict[str, ConfusionMatrix] = field(default_factory=dict)

    def of(self, kind: Kind, split: str) -> dict[str, ConfusionMatrix]:
        """Where the scores of a split belong at an evaluation of this kind."""
        if kind is Kind.FINAL:
            final = {"test": self.local, "ood": self.ood, "source": self.source, "fleet": self.fleet}
            return final[split]
        return {"test": self.initial, "source": self.initial_source}[split]

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for the checkpoint."""
        return {
            name: {vehicle: matrix.to_dict() for vehicle, matrix in matrices.items()}
            for name, matrices in vars(self).items()
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], classes: LabelSpace) -> Scores:
        """Rebuild from `to_dict`."""
        return cls(
            **{
                name: {
                    vehicle: ConfusionMatrix.from_dict(matrix, classes)
                    for vehicle, matrix in matrices.items()
                }
                for name, matrices in content.items()
            }
        )


@dataclass(kw_only=True)
class TrainingProgress:
    """How far a run has come: the newest point of its curves."""

    frames_seen: int = 0
    """Train frames that networks have taken first-order steps on, each as often as it was used."""
    steps: int = 0
    """First-order steps that networks have taken, each on a batch; of `fedavg`, those of its vehicles."""
    loss: dict[str, float] = field(default_factory=dict)
    """By vehicle: mean training loss of its latest pass."""
    val_miou: dict[str, float] = field(default_factory=dict)
    """By vehicle: mIoU on its validation frames of the weights that it would be served with."""
    left_out: dict[str, int] = field(default_factory=dict)
    """By vehicle: how often what it made of the fleet's encoder, or network, was not taken."""
    taken_back: dict[str, int] = field(default_factory=dict)
    """By vehicle: how many of its turns did not count."""
    doubted: dict[str, int] = field(default_factory=dict)
    """By vehicle: how many of its turns looked like a liar's, and counted nevertheless."""

    @property
    def mean_loss(self) -> float | None:
        """Over the vehicles known so far."""
        return _mean(self.loss)

    @property
    def mean_val_miou(self) -> float | None:
        """Over the vehicles known so far."""
        return _mean(self.val_miou)

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for the checkpoint."""
        return {
            "frames_seen": self.frames_seen,
            "steps": self.steps,
            "loss": dict(self.loss),
            "val_miou": dict(self.val_miou),
            "left_out": dict(self.left_out),
            "taken_back": dict(self.taken_back),
            "doubted": dict(self.doubted),
        }

    def leave_out(self, vehicles: Iterable[str]) -> None:
        """Count that what these vehicles made of the fleet's encoder, or network, was not taken."""
        for vehicle in vehicles:
            self.left_out[vehicle] = self.left_out.get(vehicle, 0) + 1

    def doubt(self, vehicle: str) -> None:
        """Count that a turn of the vehicle looked like a liar's."""
        self.doubted[vehicle] = self.doubted.get(vehicle, 0) + 1

    def take_back(self, vehicle: str) -> None:
        """Count that a turn of the vehicle does not count."""
        self.taken_back[vehicle] = self.taken_back.get(vehicle, 0) + 1

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainingProgress:
        """Rebuild from `to_dict`."""
        return cls(**content)


def _mean(values: Mapping[str, float]) -> float | None:
    return float(np.mean([values[vehicle] for vehicle in sorted(values)])) if values else None


class Learning(Protocol):
    """Whatever is learnt stage by stage: what `cloud_server.run.stages` runs, commits and reports."""

    stages: tuple[Stage, ...]
    scores: Scores
    progress: TrainingProgress

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold, besides `meta`."""

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON types."""

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Become what `tensors` and `meta` were taken from."""

    def committed(self) -> None:
        """The checkpoint with the present state is on disk: what only older ones need may go."""


class Algorithm(Learning, Protocol):
    """Who learns what in which order, in a fleet. The server calls these from one thread, in this order a
    stage: `plan` for each vehicle, `begin` at each (re)start of a turn, whatever the handlers of its row ask
    it for (`cloud_server.desk.handlers`), `turn_done`, `stage_done`; then the state is committed."""

    def plan(self, stage: Stage, vehicle: str) -> TurnPlan:
        """What the vehicle is to do."""

    def begin(self, stage: Stage, vehicle: str) -> None:
        """A turn starts, perhaps over again: nothing of an earlier attempt may be left."""

    def turn_done(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        """The vehicle has finished its turn."""

    def stage_done(self, stage: Stage) -> None:
        """All vehicles of the stage have finished."""


@runtime_checkable
class MayWaitForCommit(Protocol):
    """An algorithm whose stages need not be committed one by one."""

    def stage_kept(self) -> None:
        """A stage is over, and is committed now or together with some that follow: a turn of those that
        starts over goes back to the present state."""


@runtime_checkable
class MayEndEarly(Protocol):
    """An algorithm that may find further stages useless."""

    def is_needed(self, stage: Stage) -> bool:
        """Whether a stage is still to be run; follows from what was committed before it."""


@runtime_checkable
class MayTakeBack(Protocol):
    """An algorithm that may find that a turn was for the worse."""

    def took_back(self, stage: Stage, vehicle: str) -> bool:
        """Whether the turn that was just `turn_done` does not count: the vehicle's next one builds on the one
        before."""


@runtime_checkable
class Serves(Protocol):
    """An algorithm with a network in the cloud that tells what serves a vehicle: what `blackfleet export`
    takes."""

    def serving(self, vehicle: str) -> AbstractContextManager[None]:
        """Let the trainer predict, in the body, with the weights that serve the vehicle."""


def upload_limits(config: CloudConfig, stage: Stage) -> dict[str, UploadLimit]:
    """What `config.uploads` says of a training stage.

    Train frames take turns; validation frames stay, so that one round's mIoU can be compared with another's.
    """
    limits = {}
    if config.uploads.train_frames is not None:
        limits["train"] = UploadLimit(most=config.uploads.train_frames, shift=stage.round - 1)
    if config.uploads.val_frames is not None:
        limits["val"] = UploadLimit(most=config.uploads.val_frames)
    return limits


def evaluation_splits(context: Context, stage: Stage, vehicle: str) -> tuple[str, ...]:
    """What a vehicle is evaluated on: test frames, at the end those of others, any of the source, and at the
    end the fleet's test split."""
    final = stage.kind is Kind.FINAL
    return (
        "test",
        *(("ood",) if final else ()),
        *(("source",) if context.source_frames[vehicle] else ()),
        *(("fleet",) if final and context.fleet_frames.get(vehicle) else ()),
    )


def evaluation_plan(context: Context, stage: Stage, vehicle: str, batch_size: int) -> TurnPlan:
    """Features of what the vehicle is evaluated on."""
    uploads = evaluation_splits(context, stage, vehicle)
    return TurnPlan(learner=None, epochs=0, batches=0, batch_size=batch_size, uploads=uploads)


def validation_plan(config: CloudConfig, stage: Stage) -> TurnPlan:
    """Features of the vehicle's validation frames, and no learning."""
    return TurnPlan(
        learner=None,
        epochs=0,
        batches=0,
        batch_size=config.first_order.batch_size,
        uploads=("val",),
        limits=upload_limits(config, stage),
    )
