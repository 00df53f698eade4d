"""Learning from the vehicle's own labels with a local head, and uploading the features of few batches.

Legend: B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_client.learners.local_loss import AfterStep, Training, head_of
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.batches import batch_bounds
from protocol.messages import CseFslPlan, Smashed
from protocol.plans.cse_fsl import uploaded_batches


def learn_uploading(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """Train encoder and head on the vehicle's own labels; every h-th batch's features go up, none comes back.

    Raises:
        TurnRefused: a local head or the VJP is missing, plan or state don't fit, or training diverged.
    """
    plan = tools.turn.learner
    assert isinstance(plan, CseFslPlan)
    tools.send_train_labels()
    training = Training(tools, plan, head_of(tools), state, after_step=uploading(tools, plan.upload_every))
    means = [training.epoch(epoch, share) for epoch, share in enumerate(tools.turn.rate_shares)]
    return training.state(), means[-1] if means else None


def uploading(tools: TurnTools, every: int) -> AfterStep:
    """What uploads every so-manieth batch of a turn, once."""
    per_epoch = len(batch_bounds(len(tools.frames.splits["train"]), tools.turn.batch_size))
    wanted = uploaded_batches(tools.turn.epochs * per_epoch, every)
    taken = 0

    def after_step(batch: tuple[int, ...], draw: int | None, features_BCHW: NDArray[np.float32]) -> None:
        nonlocal taken
        if taken in wanted:
            features = tools.code(features_BCHW)
            tools.send(Smashed(**tools.header(), frames=batch, features=features, draw=draw))
        taken += 1

    return after_step
