"""What every vehicle of a run must have: by the run's algorithm, and by its estimator."""

from __future__ import annotations

from dataclasses import replace

from cloud_server.algorithms.row import Needs
from cloud_server.algorithms.table import algorithm_row
from cloud_server.config import CloudConfig
from protocol.plans.checks import EstimatorPlan


def learns_by_surrogate(config: CloudConfig) -> bool:
    """Whether vehicles have a head that stands for the cloud's network: one whose normalisation is fixed."""
    plan = config.estimator
    asks = algorithm_row(config.algorithm).follows_estimator
    return asks and isinstance(plan, EstimatorPlan) and plan.needs_local_head


def run_needs(config: CloudConfig) -> Needs:
    """What an operator brings before the run starts."""
    needs = algorithm_row(config.algorithm).needs
    return replace(needs, local_head=needs.local_head or learns_by_surrogate(config))
