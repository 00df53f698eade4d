"""Every algorithm, one row each. Whoever treats one differently from another asks its row."""

from __future__ import annotations

from functools import partial

from cloud_server.algorithms.blackfed import BlackFed
from cloud_server.algorithms.blackfleet import BlackFleet
from cloud_server.algorithms.fedavg import FedAvg
from cloud_server.algorithms.individual import individual
from cloud_server.algorithms.row import AlgorithmRow, Needs
from cloud_server.algorithms.split import split
from protocol.errors import SettingError

_ROWS = (
    AlgorithmRow(
        name="blackfleet",
        title="a local loss on each vehicle, all at once",
        build=BlackFleet,
        colour="#0c8599",
        needs=Needs(local_head=True),
        cloud_rests=True,
    ),
    AlgorithmRow(
        name="blackfed-v1",
        title="losses alone, one network for all",
        build=partial(BlackFed, personal=False),
        colour="#74b3f0",
    ),
    AlgorithmRow(
        name="blackfed-v2",
        title="losses alone, each vehicle served by its best weights",
        build=partial(BlackFed, personal=True),
        colour="#2b6fe0",
    ),
    AlgorithmRow(
        name="frozen",
        title="encoders never learn: the lower bound",
        build=partial(BlackFed, personal=False, frozen_encoders=True),
        colour="#8a94a3",
    ),
    AlgorithmRow(
        name="split",
        title="gradients cross the network: the upper bound",
        build=split,
        colour="#2f9e55",
    ),
    AlgorithmRow(
        name="individual",
        title="a network for each vehicle, nothing shared",
        build=individual,
        colour="#d04a7a",
    ),
    AlgorithmRow(
        name="fedavg",
        title="vehicles train the whole network, the cloud averages",
        build=FedAvg,
        colour="#e8701a",
        needs=Needs(whole_network=True),
        in_one_piece=True,
        cloud_rests=True,
    ),
    AlgorithmRow(
        name="centralized",
        title="all frames in one place, without a fleet",
        build=None,
        colour="#9357c9",
        in_one_piece=True,
    ),
)

ALGORITHMS = {row.name: row for row in _ROWS}
"""What `algorithm` in a scenario may name."""
FLEET_ALGORITHMS = {row.name: row for row in _ROWS if row.build is not None}
"""What `algorithm` in the cloud's settings may name."""


def algorithm_row(name: str) -> AlgorithmRow:
    """The row of a name.

    Raises:
        SettingError: no algorithm has this name; the message says which there are.
    """
    try:
        return ALGORITHMS[name]
    except KeyError:
        raise SettingError(f"unknown algorithm {name!r}, expected one of: {', '.join(ALGORITHMS)}") from None
