"""How the cloud trains its network from gradients of its own, and a vehicle that trains the whole network."""

from __future__ import annotations

from protocol.base import EPOCHS_LIMIT
from protocol.errors import SettingError
from protocol.plans.checks import Section
from protocol.rates import SCHEDULES


class FirstOrder(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the cloud trains its network (FOO)."""

    section = "first_order"

    epochs: int = 10
    """Passes over the uploaded features in each turn."""
    batch_size: int = 8
    """Frames of a step."""
    rate: float = 2e-3
    """AdamW's step size at its highest."""
    weight_decay: float = 0.01
    """AdamW's, as a share of the rate."""
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
        self._at_least(0, "epochs", "replay_steps", "weight_decay")
        self._at_least(1, "batch_size", "cache_frames")
        self._above(0, "rate")
        self._one_of(SCHEDULES, "schedule")
        if self.replay_steps and self.cache_frames < self.batch_size:
            raise SettingError(
                f"{self.key('cache_frames')} must be at least {self.key('batch_size')}, {self.batch_size}, "
                f"got {self.cache_frames}"
            )
        if self.passes > EPOCHS_LIMIT:
            raise SettingError(
                f"{self.key('epochs')} times 1 + replay_steps must be at most {EPOCHS_LIMIT}, got "
                f"{self.passes}"
            )

    @property
    def passes(self) -> int:
        """Passes over the train frames in each turn that are as many steps as epochs and replay together."""
        return self.epochs * (1 + self.replay_steps)
