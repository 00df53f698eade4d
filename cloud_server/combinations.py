"""Which settings of one run contradict each other: who learns, what of an encoder, from what."""

from __future__ import annotations

from cloud_server.config import CloudConfig

_IN_ONE_PIECE = frozenset({"fedavg", "centralized"})
"""Algorithms that train encoder and network as one, on labels."""


def check_combination(config: CloudConfig) -> None:
    """Refuse settings that the algorithm can't follow.

    Raises:
        ValueError: the message names the setting, its value and what to do.
    """
    algorithm, entropy = config.algorithm, config.objective == "entropy"
    if algorithm in _IN_ONE_PIECE:
        for name, value, needed in (
            ("network.learns", str(config.network.learns).lower(), "true"),
            ("subspace", config.subspace, "all"),
            ("objective", config.objective, "labels"),
            ("anchor", f"{config.anchor:g}", "0"),
            ("network.source_replay", f"{config.network.source_replay:g}", "0"),
        ):
            if value != needed:
                raise ValueError(
                    f"{algorithm} trains encoder and network in one piece, on labels: {name} must be "
                    f"{needed}, got {value}; choose another algorithm"
                )
    if config.network.source_replay and not config.network.learns:
        raise ValueError(
            f"network.source_replay is for a network that learns, got {config.network.source_replay:g} with "
            f"network.learns false; set it to 0"
        )
    if entropy and algorithm == "blackfleet":
        raise ValueError(
            "blackfleet's vehicles learn with a local head, which needs labels: objective must be labels, "
            "got entropy; choose another algorithm"
        )
    if entropy and config.network.learns:
        raise ValueError(
            "objective entropy needs network.learns false (--no-network-learns): a network that learns "
            "with it collapses, certain of one class everywhere"
        )
