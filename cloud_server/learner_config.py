"""The cloud's settings of how vehicles learn: one part for each way of learning."""

from __future__ import annotations

import msgspec

from cloud_server.training.rates import SCHEDULES
from protocol.codec.tensor import BITS
from protocol.errors import SettingError
from protocol.messages import EPOCHS_LIMIT, MOST_SEEDS, ActivationPlan, SpsaPlan
from protocol.plans.checks import Config, above, at_least, one_of

SERVINGS = ("best", "latest", "statistics")
"""What `blackfleet.serving` may name."""


class ActivationConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
        above(self.scale, 0, "zeroth_order.activation.scale")
        at_least(self.seeds, 1, "zeroth_order.activation.seeds")
        if self.seeds > MOST_SEEDS:
            raise SettingError(
                f"zeroth_order.activation.seeds must be at most {MOST_SEEDS}, got {self.seeds}"
            )
        at_least(self.map_stride, 1, "zeroth_order.activation.map_stride")
        one_of(self.map_bits, BITS, "zeroth_order.activation.map_bits")
        if self.box_width < 1 or self.box_width % 2 == 0:
            raise SettingError(
                f"zeroth_order.activation.box_width must be odd and at least 1, got {self.box_width}"
            )
        above(self.rate, 0, "zeroth_order.activation.rate")


class ZerothOrderConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
        at_least(self.epochs, 0, "zeroth_order.epochs")
        at_least(self.batches, 0, "zeroth_order.batches")
        at_least(self.batch_size, 1, "zeroth_order.batch_size")
        above(self.perturbation, 0, "zeroth_order.perturbation")
        at_least(self.queries, 1, "zeroth_order.queries")
        above(self.rate, 0, "zeroth_order.rate")
        if not 0 <= self.momentum < 1:
            raise SettingError(f"zeroth_order.momentum must be at least 0 and below 1, got {self.momentum}")
        one_of(self.estimator, ("spsa-gc", "activation"), "zeroth_order.estimator")
        if self.answers_per_frame > self.max_answers_per_frame:
            raise SettingError(
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


class WhiteBoxConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How vehicles learn from the gradients of their features (`split`, `individual`)."""

    rate: float = 1e-3
    """Adam's step size on the encoder at its highest; it follows `first_order.schedule`."""
    gradient_bits: int = 32
    """Quantisation of the gradients: 32, 8, 6, 4, 3 or 2 bits."""

    def __post_init__(self) -> None:
        above(self.rate, 0, "white_box.rate")
        one_of(self.gradient_bits, BITS, "white_box.gradient_bits")


class LocalLossConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
        at_least(self.warm_up_epochs, 0, "local_loss.warm_up_epochs")
        at_least(self.epochs, 0, "local_loss.epochs")
        above(self.rate, 0, "local_loss.rate")
        above(self.head_rate, 0, "local_loss.head_rate")
        at_least(self.weight_power, 0, "local_loss.weight_power")
        at_least(self.weight_cap, 1, "local_loss.weight_cap")
        at_least(self.weight_map_stride, 1, "local_loss.weight_map_stride")
        if self.warm_up_epochs + self.epochs > EPOCHS_LIMIT:
            raise SettingError(
                f"local_loss.warm_up_epochs and epochs must be at most {EPOCHS_LIMIT} together, got "
                f"{self.warm_up_epochs} and {self.epochs}"
            )
        one_of(self.schedule, SCHEDULES, "local_loss.schedule")


class BlackFleetConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`blackfleet` only."""

    serving: str = "best"
    """Which weights of the cloud's network predict for a vehicle: `best`, those that did best on its
    validation frames; `latest`, the same for all; or `statistics`, the latest with BatchNorm statistics of
    its own train features (AdaBN, Li et al., 2017)."""

    def __post_init__(self) -> None:
        one_of(self.serving, SERVINGS, "blackfleet.serving")


class FederatedConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
            raise SettingError(
                f"federated.client_fraction must be above 0 and at most 1, got {self.client_fraction}"
            )
        for name, choices in (
            ("optimizer", ("adamw", "sgd")),
            ("statistics", ("average", "local", "frozen")),
            ("server_optimizer", ("average", "momentum", "adam")),
        ):
            one_of(getattr(self, name), choices, f"federated.{name}")
        for name in ("momentum", "server_momentum", "server_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(
                    f"federated.{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        at_least(self.proximal, 0, "federated.proximal")
        above(self.server_rate, 0, "federated.server_rate")
        above(self.server_adaptivity, 0, "federated.server_adaptivity")
        if self.patience_rounds is not None:
            at_least(self.patience_rounds, 1, "federated.patience_rounds")
        if self.deadline_s is not None:
            above(self.deadline_s, 0, "federated.deadline_s")
