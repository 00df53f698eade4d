"""From the gradient at the features to that of what learns: by the bundle's VJP, or by forward passes alone.

Legend: B frames of a batch, C channels, H W rows and columns; φ what learns.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_client.estimators.forward_differences import Forward, ForwardDifferences
from edge_client.learners.subspaces import Learning
from edge_client.turn import TurnTools
from protocol.noise import derive_seed
from protocol.plans.checks import LossMapPlan


class Linearised(Protocol):
    """The encoder around one θ and one batch."""

    features_BCHW: NDArray[np.float32]

    def pull_back(self, v_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient of ⟨features, v⟩ for φ, float32 (m,)."""
        ...


def linearise(
    tools: TurnTools,
    learning: Learning,
    batch: tuple[int, ...],
    draw: int | None,
    plan: LossMapPlan | None,
    seed: int,
) -> Linearised:
    """Features of frames, as `draw` shows them, and the way back that the plan says; without one, the VJP.

    Raises:
        TurnRefused: the way back is the bundle's, and it has none.
    """
    if plan is None or plan.needs_way_back:
        return tools.linearise(learning.theta, batch, learning.subspace, draw)
    image_BHWC = tools.views.images(batch, draw)
    return ForwardDifferences(
        forward_passes(tools, learning, image_BHWC),
        learning.phi,
        tools.encoder.forward(learning.theta, image_BHWC),
        passes=plan.forward_passes,
        distance=plan.forward_distance,
        seed=derive_seed(seed, "way back"),
    )


def forward_passes(tools: TurnTools, learning: Learning, image_BHWC: NDArray[np.uint8]) -> Forward:
    """Runs the encoder at any φ, heeding what else there is to do."""
    subspace = learning.subspace

    def forward(phi: NDArray[np.float32], frame: int) -> NDArray[np.float32]:
        tools.attend()
        [features_CHW] = tools.encoder.forward(subspace.theta_of(phi), image_BHWC[frame : frame + 1])
        moved_CHW: NDArray[np.float32] = features_CHW
        return moved_CHW

    return forward
