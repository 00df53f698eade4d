"""The cloud's settings: what one run is, in one file that a run folder keeps.

Every part gets its own part. Each struct checks itself when it is built, so that a mistake is named before
anything starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from cloud_server.errors import CloudError
from cloud_server.unknown_keys import explain
from protocol.codec.bits import check_frame_bytes
from protocol.doors import FOREIGN_CHOICE, is_foreign
from protocol.errors import SettingError
from protocol.json_files import decode_json
from protocol.noise import derive_seed
from protocol.plans import ESTIMATORS, Ways
from protocol.plans.adaptation import Adaptation
from protocol.plans.augmentation import Augmentation
from protocol.plans.checks import EstimatorPlan, Plan, Section, Way
from protocol.plans.class_weights import NONE, ClassWeights, check_class_weights
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.own import OwnPlan, OwnSettings
from protocol.plans.participation import ALL, Participation, drawn_of, rounds_of
from protocol.rates import SCHEDULES
from protocol.session import topics
from protocol.session.link import DEFAULT_PAYLOAD_LIMIT_BYTES, SMALLEST_PAYLOAD_LIMIT_BYTES
from protocol.session.presence import DEFAULT_STEP_S

_Way = TypeVar("_Way", bound=Way)

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16", "float16")


class NetworkConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cloud's part of the segmentation network."""

    section = "network"

    name: str = "compact"
    """A row of `cloud_server.networks.table.NETWORKS`, or `package.module:name` of your own."""
    weights: str | None = None
    """Pretrained weights for networks that take them: a folder (SegFormer) or a file (`lite0-unet`); None =
    random from the seed, or those that come with the network."""
    learns: bool = True
    """False: it stays as it starts; it answers, and vehicles adapt to it."""
    start: str | None = None
    """File of weights that the whole network starts from, relative to the run folder; None = as built."""
    source_features: str | None = None
    """File of labelled features of the source domain, relative to the run folder."""
    source_replay: float = 0.0
    """Probability that a first-order step on uploaded features is followed by one on source features."""

    def __post_init__(self) -> None:
        if not 0 <= self.source_replay <= 1:
            raise SettingError(f"network.source_replay must be from 0 to 1, got {self.source_replay}")


class ZerothOrderConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often vehicles learn from the cloud's answers (ZOO), and by which estimator."""

    section = "zeroth_order"

    epochs: int = 1
    """Passes over the vehicle's train frames in each turn."""
    batches: int = 4
    """At most so many batches an epoch; 0 = all."""
    batch_size: int = 8
    """Frames of a query."""
    estimator: str = "spsa-gc"
    """`spsa-gc`, with the settings of `spsa`, `activation`, with those of `activation`, or
    `package.module:name` of your own, with those of `own.estimator`."""
    schedule: str = "constant"
    """Of the estimator's rate over all rounds: `constant`, `cosine` or `one-cycle`. A turn has one rate."""
    max_answers_per_frame: int = 256
    """Most losses or loss maps about one frame that a vehicle may ask for in a turn."""
    max_answers_per_vehicle: int | None = None
    """Most of them, about all frames together, that a vehicle may have in the run, turns that it starts over
    included; None = more than an honest one needs."""

    def __post_init__(self) -> None:
        self._at_least(0, "epochs", "batches")
        self._at_least(1, "batch_size", "max_answers_per_vehicle")
        self._one_of(SCHEDULES, "schedule")
        if not is_foreign(self.estimator):
            self._one_of((*ESTIMATORS, FOREIGN_CHOICE), "estimator")


class UploadConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many frames' features cross the network, for links that cost money."""

    section = "uploads"

    train_frames: int | None = None
    """At most so many train frames of a vehicle in each of its turns, others in the next; None = all. Not of
    `split` and `individual`, which need each frame's gradient, and of `fedavg`, which sends none."""
    val_frames: int | None = None
    """At most so many validation frames of a vehicle, the same in each turn; None = all. Not of `fedavg`."""
    train_labels: str = "input"
    """Size at which labels of train frames are sent: `input`, the encoder's, or `logits`, at which the cloud
    compares: the same run to the bit in fewer bytes, but labels that no finer network can use. Not of
    `fedavg`, which sends none."""

    def __post_init__(self) -> None:
        self._at_least(1, "train_frames", "val_frames")
        self._one_of(("input", "logits"), "train_labels")


ON_FAILURE = ("continue", "readmit", "wait", "stop")
"""What may become of a run when a vehicle fails."""


class PatienceConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the cloud waits for what, in seconds."""

    section = "patience"

    join_s: float = 120.0
    """For all vehicles to appear."""
    retry_s: float = 5.0
    """Before an unanswered grant is sent again; then twice as long each time, up to a minute."""
    give_up_s: float = 600.0
    """For a vehicle that left in its turn, or a broker that left, to come back."""
    heartbeat_s: float = 10.0
    """Between signs of life, the cloud's and each vehicle's."""
    step_s: float = DEFAULT_STEP_S
    """For one step of work, the cloud's or a vehicle's: a batch, a frame's evaluation, a checkpoint. Who
    takes longer no longer says that it is alive."""
    turn_s: float = 21600.0
    """For one vehicle's turn, from its grant to its end: who says that it lives and never gets there has
    failed. While its car doesn't allow it to work this clock stands still. Where a way of learning has a
    deadline of its own, that one counts."""
    paused_s: float = 604800.0
    """For what its car may take of a turn by not allowing it to work; a week."""
    on_failure: str = "continue"
    """What becomes of the run when a vehicle does not join in `join_s`, fails, or stays away for `give_up_s`:
    `continue` without it, `readmit` it to the next round after it is back, `wait` until it is back, or
    `stop`."""

    def __post_init__(self) -> None:
        self._above(0, "join_s", "retry_s", "give_up_s", "heartbeat_s", "step_s", "turn_s", "paused_s")
        self._one_of(ON_FAILURE, "on_failure")

    @property
    def goes_on(self) -> bool:
        """Whether the run goes on without a vehicle that fails."""
        return self.on_failure in ("continue", "readmit")


class ServingConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Class maps for vehicles that drive: what the network that serves each makes of its newest frame."""

    section = "serving"

    share: float = 0.5
    """Most of one thread's time that it takes from what learns, above 0, at most 1."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SettingError(f"serving.share must be above 0 and at most 1, got {self.share}")


class RunSettings(Ways, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operator and cloud both know of a run; each way of learning adds a section (`protocol.plans`)."""

    algorithm: str = "blackfleet"
    rounds: int = 4
    seed: int = 0
    feedback_network: str = "latest"
    """blackfed-v2 only. Which weights answer a vehicle's queries: `latest`, or its own `best`."""
    device: str = "auto"
    """What the cloud computes on: `cpu`, `cuda`, or `auto` = CUDA where torch has it and it works. A run may
    go on on another one."""
    precision: str = "float32"
    """Of the convolutions and products in the cloud's network: `float32`, `bfloat16`, or, with CUDA,
    `float16`. Weights, moments, statistics and losses are float32."""
    payload_limit_bytes: int = DEFAULT_PAYLOAD_LIMIT_BYTES
    """Messages are sent in parts of at most this size; brokers have limits of their own."""
    participation: Participation = ALL
    """Vehicles that take part in a round: `all`, or so many, or such a share of them (below 1), drawn from
    the seed for each round; `first:M/N`: of N drawn the first M that finish; `async:K`: nobody is waited for,
    K contributions are a round."""
    commit_every: int = 1
    """Stages that are committed together where each is one vehicle's turn and no vehicle is in two of them; a
    cloud that is killed does as many again at most. 1 = each by itself."""
    public_events: bool = True
    """The cloud says on the bus what happens, scores and losses among it, for `blackfleet watch BROKER_URL`;
    false = only who is there can be seen."""
    coding: Coding = Coding()
    adaptation: Adaptation = Adaptation()
    augmentation: Augmentation = Augmentation()
    class_weights: ClassWeights = NONE
    """How much a pixel counts in losses against labels, the cloud's and the vehicles' own, by its class:
    `none` = all alike, `balanced`, or a table of weights by class name."""
    network: NetworkConfig = NetworkConfig()
    first_order: FirstOrder = FirstOrder()
    uploads: UploadConfig = UploadConfig()
    zeroth_order: ZerothOrderConfig = ZerothOrderConfig()
    patience: PatienceConfig = PatienceConfig()

    def __post_init__(self) -> None:
        self._at_least(1, "rounds", "commit_every")
        self._at_least(SMALLEST_PAYLOAD_LIMIT_BYTES, "payload_limit_bytes")
        if not 0 <= self.seed < 2**63:
            raise SettingError(f"seed must be at least 0 and below 2^63, got {self.seed}")
        self._one_of(("latest", "best"), "feedback_network")
        self._one_of(DEVICES, "device")
        self._one_of(PRECISIONS, "precision")
        if self.precision == "float16" and self.device == "cpu":
            raise SettingError("precision float16 is for device cuda; on a CPU take bfloat16 or float32")
        check_class_weights(self.class_weights)
        drawn_of(self.participation, 1)
        zeroth, asked = self.zeroth_order, self.answers_per_frame
        if self.way(OwnSettings).estimator and not is_foreign(zeroth.estimator):
            raise SettingError(
                f"own.estimator is for an estimator of your own, zeroth_order.estimator is "
                f"{zeroth.estimator!r}; remove it, or name yours"
            )
        if asked > zeroth.max_answers_per_frame:
            raise SettingError(
                f"zeroth_order.max_answers_per_frame is {zeroth.max_answers_per_frame}, but "
                f"{zeroth.estimator} asks for {asked} answers about a frame in a turn; raise it, or lower "
                f"the epochs, queries or seeds"
            )

    def way(self, kind: type[_Way]) -> _Way:
        """The section of a way of learning, or of an algorithm."""
        section: _Way = getattr(self, kind.section)
        return section

    @property
    def estimator(self) -> Plan:
        """The settings of the estimator that `zeroth_order` names."""
        name = self.zeroth_order.estimator
        if is_foreign(name):
            return OwnPlan(target=name, settings=self.way(OwnSettings).estimator)
        return self.way(ESTIMATORS[name])

    @property
    def answers_per_frame(self) -> int:
        """Losses or loss maps about each frame that a turn takes of vehicles that learn by the estimator; 0
        where it is not ours, which is found out when it asks."""
        plan = self.estimator
        return self.zeroth_order.epochs * plan.answers_per_frame if isinstance(plan, EstimatorPlan) else 0


class CloudConfig(RunSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run, as the cloud sees it."""

    fleet: str
    vehicles: tuple[str, ...]
    """Ids of the vehicles that take part, in the order of their turns."""
    dataset: str = "cityscapes"
    """Name of the data set in the results: a row of `datasets.catalog.DATASETS`."""
    label_space: str = "cityscapes"
    """Name of the classes (`datasets.catalog.label_space`); a path is relative to the run folder."""
    feature_shapes: tuple[tuple[int, int, int], ...] | None = None
    """C, H, W that vehicles may declare, each gets an input stem; None = what most of them declare."""
    image_size: tuple[int, int] | None = None
    """Width, height of the frames that encoders see; None = what most vehicles declare."""
    evaluated: tuple[str, ...] | None = None
    """The vehicles that are evaluated at the start and at the end, and stand for the others; None = all."""
    store_capacity: int = 16
    """Vehicles whose own networks stay in memory; the others' are read from the disk."""
    training_threads: int = 1
    """Torch threads while the vehicles wait (FOO). Thread counts decide the last bits of a result."""
    inference_threads: int = 1
    """Torch threads while a vehicle works too (ZOO, evaluation)."""
    serving: ServingConfig | None = None
    """How vehicles are served that ask for class maps, in the run and after it, until the cloud is stopped;
    None = none is."""
    parallel_turns: int = 2
    """Turns under way at once where their order doesn't matter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        topics.check_id(self.fleet, "fleet id")
        if not self.vehicles:
            raise SettingError("a fleet needs at least one vehicle, got none")
        for vehicle in self.vehicles:
            topics.check_vehicle_id(vehicle)
        strangers = sorted(set(self.evaluated or ()) - set(self.vehicles))
        if strangers:
            raise SettingError(f"evaluated names vehicle {strangers[0]!r}, which is not in this fleet")
        if len(set(self.vehicles)) != len(self.vehicles):
            raise SettingError(f"vehicle ids must differ, got {', '.join(self.vehicles)}")
        if self.coding.frame_bytes is not None:
            for shape in self.feature_shapes or ():
                check_frame_bytes(self.coding.frame_bytes, shape)
        if self.network.source_replay and self.network.source_features is None:
            raise SettingError(
                "network.source_replay needs source features, which a pretrained start brings; give --start "
                "(by hand: network.source_features)"
            )
        self._at_least(1, "store_capacity", "training_threads", "inference_threads", "parallel_turns")

    def answers_per_vehicle(self, train_frames: int) -> int:
        """Most losses or loss maps that a vehicle with so many train frames may have in the run.

        Where the setting doesn't say it: the most that its turns may take, twice, since turns may start over.
        """
        zeroth = self.zeroth_order
        if zeroth.max_answers_per_vehicle is not None:
            return zeroth.max_answers_per_vehicle
        turns = self.rounds * (rounds_of(self.participation, len(self.vehicles)).buffer or 1)
        return 2 * turns * train_frames * zeroth.max_answers_per_frame


def network_seed(seed: int) -> int:
    """The seed of the cloud network's initial weights in a run of this seed."""
    return derive_seed(seed, "network") % 2**63


def read_config(path: Path) -> CloudConfig:
    """Read a JSON file.

    Raises:
        CloudError: it is missing or does not describe a run; the message names the key.
    """
    try:
        return decode_json(path.read_bytes(), CloudConfig)
    except OSError as error:
        raise CloudError(f"can't read the cloud's settings {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CloudError(f"{path}: {explain(str(error), CloudConfig)}") from error
