"""Ways of learning: one file each, with its plan and what vehicle and cloud say for it."""

from __future__ import annotations

from protocol.plans.activation import ActivationPlan
from protocol.plans.federated import FedAvgPlan
from protocol.plans.local_loss import LocalLossPlan
from protocol.plans.spsa import SpsaPlan
from protocol.plans.white_box import WhiteBoxPlan

Learner = SpsaPlan | ActivationPlan | WhiteBoxPlan | FedAvgPlan | LocalLossPlan
"""What `Turn.learner` may be."""


def follows_labels(learner: Learner | None) -> bool:
    """Whether the loss of train frames in a turn is one against their labels; without a learner it is."""
    return getattr(learner, "objective", "labels") == "labels"
