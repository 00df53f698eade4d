"""What noised updates guarantee over a run: ε by Google's `dp-accounting`, an optional extra."""

from __future__ import annotations

from typing import Any

from fleet.errors import OperatorError
from fleet.scenario import Scenario

EXTRA = "accountant"


def guarantee(scenario: Scenario) -> dict[str, Any] | None:
    """What goes into `result.json`; None where updates are sent as they are.

    Raises:
        OperatorError: the accountant is not installed.
    """
    privacy = scenario.privacy
    if privacy.update_clip is None:
        return None
    return {
        "epsilon": epsilon(privacy.update_noise, scenario.rounds, privacy.delta),
        "delta": privacy.delta,
        "update_clip": privacy.update_clip,
        "update_noise": privacy.update_noise,
        "releases": scenario.rounds,
        "protects": "all train frames of a vehicle, replaced by any others, from who sees its updates",
    }


def epsilon(noise: float, releases: int, delta: float) -> float:
    """ε of so many Gaussian mechanisms one after another, by Rényi divergences (Mironov, 2017).

    `noise` is σ in clips; two updates are at most two clips apart, so that it is σ/2 in sensitivities.

    Raises:
        OperatorError: the accountant is not installed.
    """
    try:
        from dp_accounting import GaussianDpEvent
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise OperatorError(
            "privacy.update_clip needs an accountant of differential privacy; install it with "
            f"`pip install 'blackfleet[{EXTRA}]'`"
        ) from error
    accountant = RdpAccountant()
    accountant.compose(GaussianDpEvent(noise / 2), releases)
    return float(accountant.get_epsilon(delta))
