"""The ways of learning that `benchmarks.adaptation` compares, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNLABELLED = "no labels, own statistics"
"""The setting in which nobody has labels, and gains are measured by the white box that has some."""
_PASSES = 8
"""A round: 9 batches each; in all of them 288 uploads of a batch."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of learning, with what it may spend."""

    settings: Mapping[str, Any]
    rate_key: str = ""
    rates: tuple[float, ...] = ()
    """Of which the best counts; none where nothing is to be chosen."""
    without_labels: bool = True
    """Whether it can learn from entropy."""
    network_stays: bool = True
    """Whether it means anything where the cloud's network may not change."""
    network_learns: bool = True
    """Whether it is run where the cloud's network learns along."""
    unlabelled: bool = False
    """Whether it is of the setting `UNLABELLED`, and of no other."""


_ZEROTH = {"algorithm": "blackfed-v1", "zeroth_order.batches": 0, "first_order.epochs": _PASSES}
# A query takes two uploads: half the steps.
_SPSA = {**_ZEROTH, "zeroth_order.epochs": _PASSES // 2, "spsa.queries": 1}
_ACTIVATION = {
    **_ZEROTH,
    "zeroth_order.epochs": _PASSES,
    "zeroth_order.estimator": "activation",
    "activation.seeds": 4,
}
_SURROGATE = {**_ACTIVATION, "zeroth_order.estimator": "surrogate"}
_GRADIENTS = {"algorithm": "split", "first_order.epochs": _PASSES}
_ANCHOR = 10.0
_GUARD = 0.5
METHODS: dict[str, Method] = {
    "cloud alone": Method(
        settings={"algorithm": "frozen", "first_order.epochs": _PASSES},
        without_labels=False,
        network_stays=False,
    ),
    "spsa-gc": Method(
        settings=_SPSA,
        rate_key="spsa.rate",
        rates=(3e-4, 1e-3, 3e-3),
    ),
    "spsa-gc cosine": Method(
        settings={**_SPSA, "zeroth_order.schedule": "cosine"},
        rate_key="spsa.rate",
        rates=(3e-4, 1e-3, 3e-3),
        without_labels=False,
        network_learns=False,
    ),
    "activation": Method(
        settings=_ACTIVATION,
        rate_key="activation.rate",
        rates=(1e-3, 3e-3, 1e-2),
    ),
    "activation K=1": Method(
        settings={**_ACTIVATION, "activation.seeds": 1},
        rate_key="activation.rate",
        rates=(1e-3, 3e-3, 1e-2),
        without_labels=False,
        network_learns=False,
    ),
    "region-spsa": Method(
        # Features and a move take about a third more than features: three quarters of the steps.
        settings={
            **_ZEROTH,
            "zeroth_order.epochs": _PASSES * 3 // 4,
            "zeroth_order.estimator": "region-spsa",
            "zeroth_order.schedule": "cosine",
            "region_spsa.map_stride": 4,
        },
        rate_key="region_spsa.rate",
        rates=(3e-3, 1e-2, 3e-2),
    ),
    "forward-only activation": Method(
        # As many as `region-spsa` takes.
        settings={**_ACTIVATION, "activation.forward_passes": 12},
        rate_key="activation.rate",
        rates=(1e-3, 3e-3, 1e-2),
    ),
    "surrogate K=1": Method(
        settings={**_SURROGATE, "surrogate.seeds": 1},
        rate_key="surrogate.rate",
        rates=(1e-3, 3e-3, 1e-2),
    ),
    "surrogate K=4": Method(
        settings={**_SURROGATE, "surrogate.seeds": 4},
        rate_key="surrogate.rate",
        rates=(1e-3, 3e-3, 1e-2),
        without_labels=False,
        network_learns=False,
    ),
    # Held back from forgetting, at the rate of `activation` alone.
    "activation, anchored": Method(
        settings={**_ACTIVATION, "adaptation.anchor": _ANCHOR}, without_labels=False, network_learns=False
    ),
    "activation, source replayed": Method(
        settings={**_ACTIVATION, "network.source_replay": 1.0}, without_labels=False, network_stays=False
    ),
    "nobody learns": Method(
        settings={"algorithm": "frozen", "adaptation.objective": "entropy"}, unlabelled=True
    ),
    "entropy": Method(
        settings={**_GRADIENTS, "adaptation.objective": "entropy", "present.guard": _GUARD},
        rate_key="white_box.rate",
        rates=(1e-3,),
        unlabelled=True,
    ),
    "pseudo-labels": Method(
        settings={**_GRADIENTS, "adaptation.objective": "pseudo-labels", "present.guard": _GUARD},
        rate_key="white_box.rate",
        rates=(1e-3,),
        unlabelled=True,
    ),
    "pseudo-labels by loss maps": Method(
        settings={**_ACTIVATION, "adaptation.objective": "pseudo-labels", "present.guard": _GUARD},
        rate_key="activation.rate",
        rates=(1e-3,),
        unlabelled=True,
    ),
    "local-loss": Method(
        settings={
            "algorithm": "blackfleet",
            "first_order.epochs": _PASSES,
            "local_loss.warm_up_epochs": 0,
            "local_loss.epochs": _PASSES,
            "local_loss.schedule": "constant",
            "local_loss.weight_power": 0,
        },
        rate_key="local_loss.rate",
        rates=(1e-3, 3e-3, 1e-2),
        without_labels=False,
    ),
    "white-box": Method(
        settings=_GRADIENTS,
        rate_key="white_box.rate",
        rates=(1e-3, 3e-3, 1e-2),
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "labels": {"network.learns": False, "first_order.schedule": "constant"},
    "no labels": {
        "network.learns": False,
        "first_order.schedule": "constant",
        "adaptation.objective": "entropy",
    },
    UNLABELLED: {"network.learns": False, "first_order.schedule": "constant", "present.statistics": 0.9},
    "labels, the network learns": {"network.learns": True},
}
"""What may change and what vehicles learn from, by scenario key."""


def means_something(setting: str, method: str) -> bool:
    """Whether a method can do anything in a setting."""
    overrides, chosen = SETTINGS[setting], METHODS[method]
    if chosen.unlabelled or setting == UNLABELLED:
        return chosen.unlabelled and setting == UNLABELLED
    runs = chosen.network_learns if overrides["network.learns"] else chosen.network_stays
    return runs and (chosen.without_labels or overrides.get("adaptation.objective") != "entropy")
