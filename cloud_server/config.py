"""The cloud's settings: what one run is, in one file that a run folder keeps.

Every part gets its own part. Each struct checks itself when it is built, so that a mistake is named before
anything starts.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cloud_server.errors import CloudError
from cloud_server.rates import SCHEDULES
from protocol import topics
from protocol.bit_allocation import check_frame_bytes
from protocol.link import DEFAULT_PAYLOAD_LIMIT_BYTES, SMALLEST_PAYLOAD_LIMIT_BYTES
from protocol.messages import EPOCHS_LIMIT, MOST_SEEDS, ActivationPlan, SpsaPlan
from protocol.noise import derive_seed
from protocol.tensor_codec import BITS

SERVINGS = ("best", "latest", "statistics")
"""What `blackfleet.serving` may name."""


def _at_least(value: float, lowest: float, name: str) -> None:
    if not value >= lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")


def _one_of(value: str, choices: tuple[str, ...], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _above(value: float, limit: float, name: str) -> None:
    if not value > limit:
        raise ValueError(f"{name} must be above {limit}, got {value}")


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read from and written to JSON; unknown keys are refused."""


class NetworkConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cloud's part of the segmentation network."""

    name: str = "compact"
    """A row of `cloud_server.networks.NETWORKS`."""
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
            raise ValueError(f"network.source_replay must be from 0 to 1, got {self.source_replay}")


class FirstOrderConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    """A row of `cloud_server.losses.LOSSES`; also the loss that vehicles get as feedback."""
    replay_steps: int = 0
    """τ: steps on cached features that follow each step on uploaded ones. `fedavg` and `centralized`, which
    upload none, take (1 + τ) times the passes over the frames instead."""
    cache_frames: int = 512
    """Most frames whose features are kept for replay."""

    def __post_init__(self) -> None:
        _at_least(self.epochs, 0, "first_order.epochs")
        _at_least(self.batch_size, 1, "first_order.batch_size")
        _at_least(self.replay_steps, 0, "first_order.replay_steps")
        _at_least(self.cache_frames, 1, "first_order.cache_frames")
        if self.replay_steps and self.cache_frames < self.batch_size:
            raise ValueError(
                f"first_order.cache_frames must be at least first_order.batch_size, {self.batch_size}, got "
                f"{self.cache_frames}"
            )
        if self.passes > EPOCHS_LIMIT:
            raise ValueError(
                f"first_order.epochs times 1 + replay_steps must be at most {EPOCHS_LIMIT}, got {self.passes}"
            )
        _above(self.rate, 0, "first_order.rate")
        _at_least(self.weight_decay, 0, "first_order.weight_decay")

    @property
    def passes(self) -> int:
        """Passes over the train frames in each turn that are as many steps as epochs and replay together."""
        return self.epochs * (1 + self.replay_steps)


class UploadConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many frames' features cross the network, for links that cost money."""

    train_frames: int | None = None
    """At most so many train frames of a vehicle in each of its turns, others in the next; None = all. Not of
    `split` and `individual`, which need each frame's gradient, and of `fedavg`, which sends none."""
    val_frames: int | None = None
    """At most so many validation frames of a vehicle, the same in each turn; None = all. Not of `fedavg`."""

    def __post_init__(self) -> None:
        for name in ("train_frames", "val_frames"):
            if getattr(self, name) is not None:
                _at_least(getattr(self, name), 1, f"uploads.{name}")


class ActivationConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The estimator `activation`: features are perturbed, loss maps come back, Adam takes the steps."""

    scale: float = 0.1
    """s: how far features are moved for a query, in standard deviations of their channel."""
    seeds: int = 16
    """K: perturbations averaged for one update; the features cross the network once for all of them."""
    two_sided: bool = False
    """Evaluate each perturbation with both signs: less noise, twice the cloud's work, the same bytes."""
    map_stride: int = 1
    """Feature cells that a cell of the loss map covers along each side; must divide the feature map."""
    map_bits: int = 8
    """Quantisation of the loss maps: 32, 8, 6, 4, 3 or 2 bits a cell."""
    box_width: int = 5
    """Side, in cells of the map and odd, of the window whose loss counts for the features in its middle."""
    rate: float = 1e-3
    """Adam's step size."""

    def __post_init__(self) -> None:
        _above(self.scale, 0, "zeroth_order.activation.scale")
        _at_least(self.seeds, 1, "zeroth_order.activation.seeds")
        if self.seeds > MOST_SEEDS:
            raise ValueError(f"zeroth_order.activation.seeds must be at most {MOST_SEEDS}, got {self.seeds}")
        _at_least(self.map_stride, 1, "zeroth_order.activation.map_stride")
        if self.map_bits not in BITS:
            raise ValueError(
                f"zeroth_order.activation.map_bits must be one of {', '.join(map(str, BITS))}, "
                f"got {self.map_bits}"
            )
        if self.box_width < 1 or self.box_width % 2 == 0:
            raise ValueError(
                f"zeroth_order.activation.box_width must be odd and at least 1, got {self.box_width}"
            )
        _above(self.rate, 0, "zeroth_order.activation.rate")


class ZerothOrderConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How vehicles learn from losses (ZOO)."""

    epochs: int = 1
    """Passes over the vehicle's train frames in each turn."""
    batches: int = 4
    """At most so many batches an epoch; 0 = all."""
    batch_size: int = 8
    estimator: str = "spsa-gc"
    """`spsa-gc`, SPSA with gradient correction (arXiv 2410.24181, 3.2), or `activation`."""
    perturbation: float = 0.005
    """`spsa-gc` only. c: how far the weights are moved for a query."""
    queries: int = 2
    """`spsa-gc` only. q: two-sided queries averaged for one update."""
    rate: float = 1e-4
    """`spsa-gc` only."""
    momentum: float = 0.9
    """`spsa-gc` only."""
    activation: ActivationConfig = ActivationConfig()
    max_answers_per_frame: int = 256
    """Most losses or loss maps about one frame that a vehicle may ask for in a turn."""

    def __post_init__(self) -> None:
        _at_least(self.epochs, 0, "zeroth_order.epochs")
        _at_least(self.batches, 0, "zeroth_order.batches")
        _at_least(self.batch_size, 1, "zeroth_order.batch_size")
        _above(self.perturbation, 0, "zeroth_order.perturbation")
        _at_least(self.queries, 1, "zeroth_order.queries")
        _above(self.rate, 0, "zeroth_order.rate")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"zeroth_order.momentum must be at least 0 and below 1, got {self.momentum}")
        _one_of(self.estimator, ("spsa-gc", "activation"), "zeroth_order.estimator")
        if self.answers_per_frame > self.max_answers_per_frame:
            raise ValueError(
                f"zeroth_order.max_answers_per_frame is {self.max_answers_per_frame}, but {self.estimator} "
                f"asks for {self.answers_per_frame} answers about a frame in a turn; raise it, or lower the "
                f"epochs, queries or seeds"
            )

    @property
    def answers_per_frame(self) -> int:
        """Losses or loss maps about each frame that a turn takes."""
        activation = self.estimator == "activation"
        return self.epochs * (1 + self.activation.seeds if activation else 2 * self.queries)

    def learner(self, *, subspace: str, objective: str) -> SpsaPlan | ActivationPlan:
        """What vehicles are told."""
        if self.estimator == "activation":
            settings = msgspec.structs.asdict(self.activation)
            return ActivationPlan(**settings, subspace=subspace, objective=objective)
        return SpsaPlan(
            perturbation=self.perturbation,
            queries=self.queries,
            rate=self.rate,
            momentum=self.momentum,
            subspace=subspace,
            objective=objective,
        )


class WhiteBoxConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How vehicles learn from the gradients of their features (`split`, `individual`)."""

    rate: float = 1e-3
    """Adam's step size on the encoder at its highest; it follows `first_order.schedule`."""
    gradient_bits: int = 32
    """Quantisation of the gradients: 32, 8, 6, 4, 3 or 2 bits."""

    def __post_init__(self) -> None:
        _above(self.rate, 0, "white_box.rate")
        if self.gradient_bits not in BITS:
            raise ValueError(
                f"white_box.gradient_bits must be one of {', '.join(map(str, BITS))}, "
                f"got {self.gradient_bits}"
            )


class LocalLossConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How vehicles learn from their own labels with a local head (`blackfleet`)."""

    warm_up_epochs: int = 40
    """Passes over the vehicle's train frames before its first upload."""
    epochs: int = 10
    """Passes over them in each round, those of the warm-up not counted."""
    rate: float = 2e-3
    """Adam's step size on the encoder at its highest."""
    head_rate: float = 5e-3
    """Adam's step size on the head at its highest."""
    schedule: str = "one-cycle"
    """`constant`, `cosine` or `one-cycle`, over the warm-up and all rounds."""
    weight_power: float = 0.0
    """p: each pixel counts with min(ℓ / mean ℓ, cap)^p, ℓ the cloud's loss there after the round before; 0 =
    all count alike, and no loss maps are fetched."""
    weight_cap: float = 5.0
    """Share of the mean loss above which a loss counts no more."""
    weight_map_stride: int = 1
    """Feature cells that a cell of those loss maps covers along each side; must divide the feature map."""

    def __post_init__(self) -> None:
        _at_least(self.warm_up_epochs, 0, "local_loss.warm_up_epochs")
        _at_least(self.epochs, 0, "local_loss.epochs")
        _above(self.rate, 0, "local_loss.rate")
        _above(self.head_rate, 0, "local_loss.head_rate")
        _at_least(self.weight_power, 0, "local_loss.weight_power")
        _at_least(self.weight_cap, 1, "local_loss.weight_cap")
        _at_least(self.weight_map_stride, 1, "local_loss.weight_map_stride")
        if self.warm_up_epochs + self.epochs > EPOCHS_LIMIT:
            raise ValueError(
                f"local_loss.warm_up_epochs and epochs must be at most {EPOCHS_LIMIT} together, got "
                f"{self.warm_up_epochs} and {self.epochs}"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"local_loss.schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
            )


class BlackFleetConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`blackfleet` only."""

    serving: str = "best"
    """Which weights of the cloud's network predict for a vehicle: `best`, those that did best on its
    validation frames; `latest`, the same for all; or `statistics`, the latest with BatchNorm statistics of
    its own train features (AdaBN, Li et al., 2017)."""

    def __post_init__(self) -> None:
        if self.serving not in SERVINGS:
            raise ValueError(f"blackfleet.serving must be one of {', '.join(SERVINGS)}, got {self.serving!r}")


class FederatedConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """fedavg only. Rate, its schedule, epochs and batch size are those of `first_order`."""

    client_fraction: float = 1.0
    """Share of the vehicles that is drawn for each round, one at least."""
    optimizer: str = "adamw"
    """Of the vehicles: `adamw` or `sgd`; it starts anew in each round."""
    momentum: float = 0.0
    """Of `sgd`."""
    proximal: float = 0.0
    """μ of FedProx (Li et al., MLSys 2020); 0 = plain local training."""
    statistics: str = "average"
    """BatchNorm statistics: `average` them like weights, keep them `local` on the vehicle (SiloBN, Andreux et
    al., 2020), or leave them `frozen` as they are at the start and normalise with them."""
    server_optimizer: str = "average"
    """What the cloud makes of the average: `average`, `momentum` (FedAvgM) or `adam` (FedAdam)."""
    server_rate: float = 1.0
    """Of the server's optimiser; 1 = all the way to the average. For `adam` 0.01 is a good start."""
    server_momentum: float = 0.9
    """β of `momentum`, β₁ of `adam`."""
    server_beta2: float = 0.99
    """β₂ of `adam`."""
    server_adaptivity: float = 1e-3
    """τ of `adam`."""
    patience_rounds: int | None = None
    """Training ends when the mean validation mIoU has not risen for so many rounds; None = never early."""
    deadline_s: float | None = 600.0
    """Longest that a vehicle may take for a turn, restarts included, before the round goes on without it;
    None = the round waits for everyone."""

    def __post_init__(self) -> None:
        if not 0 < self.client_fraction <= 1:
            raise ValueError(
                f"federated.client_fraction must be above 0 and at most 1, got {self.client_fraction}"
            )
        for name, choices in (
            ("optimizer", ("adamw", "sgd")),
            ("statistics", ("average", "local", "frozen")),
            ("server_optimizer", ("average", "momentum", "adam")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"federated.{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("momentum", "server_momentum", "server_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"federated.{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        _at_least(self.proximal, 0, "federated.proximal")
        _above(self.server_rate, 0, "federated.server_rate")
        _above(self.server_adaptivity, 0, "federated.server_adaptivity")
        if self.patience_rounds is not None:
            _at_least(self.patience_rounds, 1, "federated.patience_rounds")
        if self.deadline_s is not None:
            _above(self.deadline_s, 0, "federated.deadline_s")


class PatienceConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the cloud waits for what, in seconds."""

    join_s: float = 120.0
    """For all vehicles to appear."""
    retry_s: float = 5.0
    """Before an unanswered grant is sent again; then twice as long each time, up to a minute."""
    give_up_s: float = 600.0
    """For a vehicle that left in its turn, or a broker that left, to come back."""
    heartbeat_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("join_s", "retry_s", "give_up_s", "heartbeat_s"):
            _above(getattr(self, name), 0, f"patience.{name}")


class CloudConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run, as the cloud sees it."""

    fleet: str
    vehicles: tuple[str, ...]
    """Ids of the vehicles that take part, in the order of their turns."""
    algorithm: str = "blackfleet"
    rounds: int = 4
    seed: int = 0
    dataset: str = "cityscapes"
    """Name of the data set in the results: `generated`, `cityscapes` or `camvid`."""
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
            raise ValueError("a fleet needs at least one vehicle, got none")
        for vehicle in self.vehicles:
            topics.check_id(vehicle, "vehicle id")
            if vehicle == topics.CLOUD_ID:
                raise ValueError(f"{topics.CLOUD_ID!r} is the cloud's own id; name the vehicle otherwise")
        if len(set(self.vehicles)) != len(self.vehicles):
            raise ValueError(f"vehicle ids must differ, got {', '.join(self.vehicles)}")
        _at_least(self.rounds, 1, "rounds")
        _at_least(self.payload_limit_bytes, SMALLEST_PAYLOAD_LIMIT_BYTES, "payload_limit_bytes")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2^63, got {self.seed}")
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {self.bits}")
        if self.frame_bytes is not None:
            _at_least(self.frame_bytes, 1, "frame_bytes")
            if self.bits == 32:
                raise ValueError(
                    f"frame_bytes of {self.frame_bytes} needs bits of 8 or fewer, got 32, which no channel "
                    f"can have by itself; set bits to 8"
                )
            for shape in self.feature_shapes or ():
                check_frame_bytes(self.frame_bytes, shape)
        _one_of(self.subspace, ("all", "film"), "subspace")
        _one_of(self.objective, ("labels", "entropy"), "objective")
        _at_least(self.anchor, 0, "anchor")
        if self.network.source_replay and self.network.source_features is None:
            raise ValueError(
                "network.source_replay needs source features, which a pretrained start brings; give --start "
                "(by hand: network.source_features)"
            )
        if self.feedback_network not in ("latest", "best"):
            raise ValueError(f"feedback_network must be latest or best, got {self.feedback_network!r}")
        for name in ("store_capacity", "training_threads", "inference_threads", "parallel_turns"):
            _at_least(getattr(self, name), 1, name)


def network_seed(seed: int) -> int:
    """The seed of the cloud network's initial weights in a run of this seed."""
    return derive_seed(seed, "network") % 2**63


def read_config(path: Path) -> CloudConfig:
    """Read a JSON file.

    Raises:
        CloudError: it is missing or does not describe a run; the message names the key.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=CloudConfig)
    except OSError as error:
        raise CloudError(f"can't read the cloud's settings {path}: {error.strerror}") from error
    except (ValueError, msgspec.DecodeError) as error:
        raise CloudError(f"{path}: {error}") from error
