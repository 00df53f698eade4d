"""Learning from the vehicle's own labels with its local head, weighted by where the cloud's loss lay."""

from __future__ import annotations

from protocol.base import EPOCHS_LIMIT, Index, Request
from protocol.errors import SettingError
from protocol.plans.checks import Plan
from protocol.rates import SCHEDULES


class LocalLossPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="local_loss"):
    """How vehicles learn from their own labels with a local head (`blackfleet`)."""

    section = "local_loss"

    warm_up_epochs: int = 40
    """Passes over the vehicle's train frames in the first round besides `epochs`, before its first upload."""
    epochs: int = 10
    """Passes over them in each round."""
    rate: float = 2e-3
    """Adam's step size on the encoder at its highest."""
    head_rate: float = 5e-3
    """Adam's step size on the head at its highest."""
    schedule: str = "one-cycle"
    """`constant`, `cosine` or `one-cycle`, over the warm-up and all rounds."""
    weight_power: float = 0.5
    """p: each pixel counts with min(ℓ / mean ℓ, cap)^p, ℓ the cloud's loss there after the round before; 0 =
    all count alike, and no loss maps are fetched."""
    weight_cap: float = 5.0
    """Multiple of the mean loss above which a pixel's loss counts no more."""
    weight_map_stride: int = 1
    """Feature cells that a cell of those loss maps covers along each side; must divide the feature map."""

    def __post_init__(self) -> None:
        self._at_least(0, "warm_up_epochs", "epochs", "weight_power")
        self._above(0, "rate", "head_rate")
        self._at_least(1, "weight_cap", "weight_map_stride")
        if self.warm_up_epochs + self.epochs > EPOCHS_LIMIT:
            raise SettingError(
                f"{self.key('warm_up_epochs')} and epochs must be at most {EPOCHS_LIMIT} together, got "
                f"{self.warm_up_epochs} and {self.epochs}"
            )
        self._one_of(SCHEDULES, "schedule")


class FetchLossMaps(Request, frozen=True, array_like=True, kw_only=True, tag="fetch-maps"):
    """Where did the loss lie in some train frames after the latest learning? Answered by `LossMaps`."""

    answered_by = "LossMaps"

    frames: tuple[Index, ...]
    """A batch as it was uploaded."""
