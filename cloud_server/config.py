"""The cloud's settings: what one run is, in one file that a run folder keeps.

Every part gets its own part. Each struct checks itself when it is built, so that a mistake is named before
anything starts.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cloud_server.errors import CloudError
from cloud_server.learner_config import (
    BlackFleetConfig,
    FederatedConfig,
    LocalLossConfig,
    WhiteBoxConfig,
    ZerothOrderConfig,
)
from protocol.codec.bits import check_frame_bytes
from protocol.codec.tensor import BITS
from protocol.errors import SettingError
from protocol.messages import EPOCHS_LIMIT
from protocol.noise import derive_seed
from protocol.plans.checks import Config, above, at_least, one_of
from protocol.session import topics
from protocol.session.link import DEFAULT_PAYLOAD_LIMIT_BYTES, SMALLEST_PAYLOAD_LIMIT_BYTES
from protocol.text_files import decode_text


class NetworkConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cloud's part of the segmentation network."""

    name: str = "compact"
    """A row of `cloud_server.networks.build.NETWORKS`, or `package.module:name` of your own."""
    weights: str | None = None
    """Folder of pretrained weights for networks that take them; None = random from the seed."""
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


class FirstOrderConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the cloud trains its network (FOO)."""

    epochs: int = 10
    """Passes over the uploaded features in each turn."""
    batch_size: int = 8
    rate: float = 2e-3
    """AdamW's step size at its highest."""
    weight_decay: float = 0.01
    schedule: str = "cosine"
    """`constant`, `cosine` or `one-cycle`, over all rounds."""
    loss: str = "cross-entropy"
    """A row of `cloud_server.training.losses.LOSSES`; also the loss that vehicles get as feedback."""
    replay_steps: int = 0
    """τ: steps on cached features that follow each step on uploaded ones. `fedavg` and `centralized`, which
    upload none, take (1 + τ) times the passes over the frames instead."""
    cache_frames: int = 512
    """Most frames whose features are kept for replay."""

    def __post_init__(self) -> None:
        at_least(self.epochs, 0, "first_order.epochs")
        at_least(self.batch_size, 1, "first_order.batch_size")
        at_least(self.replay_steps, 0, "first_order.replay_steps")
        at_least(self.cache_frames, 1, "first_order.cache_frames")
        if self.replay_steps and self.cache_frames < self.batch_size:
            raise SettingError(
                f"first_order.cache_frames must be at least first_order.batch_size, {self.batch_size}, got "
                f"{self.cache_frames}"
            )
        if self.passes > EPOCHS_LIMIT:
            raise SettingError(
                f"first_order.epochs times 1 + replay_steps must be at most {EPOCHS_LIMIT}, got {self.passes}"
            )
        above(self.rate, 0, "first_order.rate")
        at_least(self.weight_decay, 0, "first_order.weight_decay")

    @property
    def passes(self) -> int:
        """Passes over the train frames in each turn that are as many steps as epochs and replay together."""
        return self.epochs * (1 + self.replay_steps)


class UploadConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many frames' features cross the network, for links that cost money."""

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
        for name in ("train_frames", "val_frames"):
            if getattr(self, name) is not None:
                at_least(getattr(self, name), 1, f"uploads.{name}")
        one_of(self.train_labels, ("input", "logits"), "uploads.train_labels")


class PatienceConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the cloud waits for what, in seconds."""

    join_s: float = 120.0
    """For all vehicles to appear."""
    retry_s: float = 5.0
    """Before an unanswered grant is sent again; then twice as long each time, up to a minute."""
    give_up_s: float = 600.0
    """For a vehicle that left in its turn, or a broker that left, to come back."""
    heartbeat_s: float = 10.0
    on_failure: str = "stop"
    """What becomes of the run when a vehicle fails, or stays away for `give_up_s`: `stop`, or `continue`
    without it."""

    def __post_init__(self) -> None:
        one_of(self.on_failure, ("stop", "continue"), "patience.on_failure")
        for name in ("join_s", "retry_s", "give_up_s", "heartbeat_s"):
            above(getattr(self, name), 0, f"patience.{name}")


class CloudConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run, as the cloud sees it."""

    fleet: str
    vehicles: tuple[str, ...]
    """Ids of the vehicles that take part, in the order of their turns."""
    algorithm: str = "blackfleet"
    rounds: int = 4
    seed: int = 0
    dataset: str = "cityscapes"
    """Name of the data set in the results: a row of `datasets.catalog.DATASETS`."""
    label_space: str = "cityscapes"
    bits: int = 8
    """Quantisation of the features."""
    frame_bytes: int | None = None
    """Most bytes of a frame's features: each channel gets as many bits as fit, `bits` at most; None = all get
    `bits`."""
    anchor: float = 0.0
    """λ of the penalty λ/2·‖φ − φ_start‖² on how far a vehicle's encoder goes from its start."""
    feature_shapes: tuple[tuple[int, int, int], ...] | None = None
    """C, H, W that vehicles may declare, each gets an input stem; None = what the first one declares."""
    subspace: str = "all"
    """What of an encoder learns: `all`, or `film`: a scale and a bias of each output channel."""
    objective: str = "labels"
    """What vehicles learn to lower: `labels`, the loss against the labels of their train frames, or
    `entropy`, that of the cloud's own predictions, for which no train label is sent."""
    feedback_network: str = "latest"
    """blackfed-v2 only. Which weights answer a vehicle's queries: `latest`, or its own `best`."""
    store_capacity: int = 16
    """Vehicles whose own networks stay in memory; the others' are read from the disk."""
    training_threads: int = 1
    """Torch threads while the vehicles wait (FOO). Thread counts decide the last bits of a result."""
    inference_threads: int = 1
    """Torch threads while a vehicle works too (ZOO, evaluation)."""
    payload_limit_bytes: int = DEFAULT_PAYLOAD_LIMIT_BYTES
    """Messages are sent in parts of at most this size; brokers have limits of their own."""
    parallel_turns: int = 2
    """Turns under way at once where their order doesn't matter."""
    network: NetworkConfig = NetworkConfig()
    first_order: FirstOrderConfig = FirstOrderConfig()
    uploads: UploadConfig = UploadConfig()
    zeroth_order: ZerothOrderConfig = ZerothOrderConfig()
    white_box: WhiteBoxConfig = WhiteBoxConfig()
    federated: FederatedConfig = FederatedConfig()
    local_loss: LocalLossConfig = LocalLossConfig()
    blackfleet: BlackFleetConfig = BlackFleetConfig()
    patience: PatienceConfig = PatienceConfig()

    def __post_init__(self) -> None:
        topics.check_id(self.fleet, "fleet id")
        if not self.vehicles:
            raise SettingError("a fleet needs at least one vehicle, got none")
        for vehicle in self.vehicles:
            topics.check_vehicle_id(vehicle)
        if len(set(self.vehicles)) != len(self.vehicles):
            raise SettingError(f"vehicle ids must differ, got {', '.join(self.vehicles)}")
        at_least(self.rounds, 1, "rounds")
        at_least(self.payload_limit_bytes, SMALLEST_PAYLOAD_LIMIT_BYTES, "payload_limit_bytes")
        if not 0 <= self.seed < 2**63:
            raise SettingError(f"seed must be at least 0 and below 2^63, got {self.seed}")
        one_of(self.bits, BITS, "bits")
        if self.frame_bytes is not None:
            at_least(self.frame_bytes, 1, "frame_bytes")
            if self.bits == 32:
                raise SettingError(
                    f"frame_bytes of {self.frame_bytes} needs bits of 8 or fewer, got 32, which no channel "
                    f"can have by itself; set bits to 8"
                )
            for shape in self.feature_shapes or ():
                check_frame_bytes(self.frame_bytes, shape)
        one_of(self.subspace, ("all", "film"), "subspace")
        one_of(self.objective, ("labels", "entropy"), "objective")
        at_least(self.anchor, 0, "anchor")
        if self.network.source_replay and self.network.source_features is None:
            raise SettingError(
                "network.source_replay needs source features, which a pretrained start brings; give --start "
                "(by hand: network.source_features)"
            )
        if self.feedback_network not in ("latest", "best"):
            raise SettingError(f"feedback_network must be latest or best, got {self.feedback_network!r}")
        for name in ("store_capacity", "training_threads", "inference_threads", "parallel_turns"):
            at_least(getattr(self, name), 1, name)


def network_seed(seed: int) -> int:
    """The seed of the cloud network's initial weights in a run of this seed."""
    return derive_seed(seed, "network") % 2**63


def read_config(path: Path) -> CloudConfig:
    """Read a JSON file.

    Raises:
        CloudError: it is missing or does not describe a run; the message names the key.
    """
    try:
        return msgspec.json.decode(decode_text(path.read_bytes()), type=CloudConfig)
    except OSError as error:
        raise CloudError(f"can't read the cloud's settings {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CloudError(f"{path}: {error}") from error
