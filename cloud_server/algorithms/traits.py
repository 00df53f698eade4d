"""What rows of the table say of a run's settings; without torch, as everyone asks them."""

from __future__ import annotations

from cloud_server.config import RunSettings
from protocol.errors import SettingError
from protocol.plans.blackfleet import BlackFleetSettings
from protocol.plans.federated import FederatedPlan
from protocol.plans.local_loss import LocalLossPlan
from protocol.plans.present import Present
from protocol.plans.sharing import Sharing


def one_encoder(settings: RunSettings) -> bool:
    """Whether vehicles with the same bundle have one encoder."""
    return settings.way(Sharing).is_on


def shares_all(settings: RunSettings) -> bool:
    """Whether vehicles share their encoders, and are all served by the latest network."""
    return one_encoder(settings) and settings.way(BlackFleetSettings).serving == "latest"


def same_statistics(settings: RunSettings) -> bool:
    """Whether no vehicle has BatchNorm statistics of its own."""
    return settings.way(Present).statistics == 0


def wants_present_frames(plan: Present, objective: str) -> bool:
    """Whether features of train frames have to come up for what is done about present frames."""
    return plan.statistics > 0 or plan.guard > 0 or objective == "pseudo-labels"


def averages_statistics(settings: RunSettings) -> bool:
    """Whether every vehicle has the very same network: none keeps BatchNorm statistics of its own."""
    return settings.way(FederatedPlan).statistics != "local"


def local_passes(settings: RunSettings) -> int:
    """The warm-up and the first round's."""
    local = settings.way(LocalLossPlan)
    return local.warm_up_epochs + local.epochs


def first_order_epochs(settings: RunSettings) -> int:
    """Without those of replay, which the cloud takes."""
    return settings.first_order.epochs


def first_order_passes(settings: RunSettings) -> int:
    """Those of replay among them."""
    return settings.first_order.passes


def has_no_proximal(settings: RunSettings) -> str | None:
    """That a proximal term was asked for where there is none."""
    asked = settings.way(FederatedPlan).proximal
    if asked in (0, FederatedPlan().proximal):
        return None
    return f"federated.proximal {asked:g} is of fedprox alone: fedavg has no such term"


def needs_proximal(settings: RunSettings) -> None:
    """Refuse a proximal term of no weight.

    Raises:
        SettingError: it is 0.
    """
    if settings.way(FederatedPlan).proximal == 0:
        raise SettingError("fedprox with federated.proximal 0 is fedavg: give a μ above 0, or choose fedavg")
