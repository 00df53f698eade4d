"""Learning by a head that estimates the gradient of the cloud's network at the vehicle's features.

Legend: B frames of a batch, C channels, H W feature rows and columns, h w logit rows and columns; ψ the
head's parameters, float32 (n,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.class_weights import pixel_weights
from edge_client.learners.cse_fsl import uploading
from edge_client.learners.local_loss import Training, head_of
from edge_client.learners.white_box import checked_gradient
from edge_client.local.cross_entropy import cross_entropy, downsample_label
from edge_client.local.head import LocalHead
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.codec.tensor import decode
from protocol.messages import AskGradient, FslSagePlan, Gradient

_PROBE = 0.1
"""Length of the step by which the mixed derivative is differenced, in standard deviations of the features:
long enough for how slopes change at the kinks of ReLU to be an average, and not the chance of one."""


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """What the cloud has said about one batch."""

    features_BCHW: NDArray[np.float32]
    """As they arrived: quantised."""
    label_Bhw: NDArray[np.uint8]
    """At the size of the head's logits."""
    weight_Bhw: NDArray[np.float32] | None
    """What a pixel counts; None: all alike."""
    gradient_BCHW: NDArray[np.float32]
    """G = ∂loss/∂features of the cloud's network there."""


def learn_aligned(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """Align the head where the turn says so, then train the encoder by it; every h-th batch goes up.

    Raises:
        TurnRefused: a local head or the VJP is missing, plan or state don't fit, an answer is not what it
            should be, or training diverged.
    """
    plan, head = tools.turn.learner, head_of(tools)
    assert isinstance(plan, FslSagePlan)
    tools.send_train_labels()
    training = Training(
        tools,
        plan,
        head,
        state,
        head_learns=plan.first_by_labels,
        after_step=uploading(tools, plan.upload_every),
    )
    answers = _ask(tools, plan, head, training.theta)
    for _ in range(plan.fit_passes):
        for answer in answers:
            tools.attend()
            training.fit_head(lambda psi, answer=answer: misfit(head, psi, answer)[1], plan.fit_rate)  # type: ignore[misc]
    means = [training.epoch(epoch, share) for epoch, share in enumerate(tools.turn.rate_shares)]
    return training.state(), means[-1] if means else None


def _ask(tools: TurnTools, plan: FslSagePlan, head: LocalHead, theta: NDArray[np.float32]) -> list[Aligned]:
    """The cloud's gradients at the features of some batches under θ, seen as the first pass will see them."""
    class_weights, draw = tools.class_weights(), tools.views.draw(0)
    size_hw = head.spec.logit_shape[1], head.spec.logit_shape[2]
    answers = []
    for batch in list(tools.batches(0))[: plan.align_batches]:
        coded = tools.encode(theta, tools.views.images(batch, draw))
        asked = AskGradient(**tools.header(), frames=batch, features=coded, draw=draw)
        [answer] = tools.ask([asked])
        assert isinstance(answer, Gradient)
        shape = (len(batch), *head.spec.feature_shape)
        label_Bhw = np.stack([downsample_label(tools.views.label(index, draw), size_hw) for index in batch])
        answers.append(
            Aligned(
                features_BCHW=decode(coded, expected_shape=shape),
                label_Bhw=label_Bhw,
                weight_Bhw=None if class_weights is None else pixel_weights(class_weights, label_Bhw),
                gradient_BCHW=checked_gradient(answer, shape),
            )
        )
    return answers


def misfit(head: LocalHead, psi: NDArray[np.float32], answer: Aligned) -> tuple[float, NDArray[np.float32]]:
    """F(ψ) = ‖g_ψ − G‖² / ‖G‖², g_ψ = ∂ℓ_ψ/∂features, and its gradient float32 (n,).

    With r = g_ψ − G held, ∂F/∂ψ = 2/‖G‖² · ∂/∂ψ ⟨g_ψ, r⟩, a mixed second derivative: what ∂ℓ_ψ/∂ψ changes by
    along r, as a central difference (as in DARTS, arXiv 1806.09055). Two passes of the head, and no graph of
    second order.
    """
    _, gradient_BCHW = gradients(head, psi, answer, answer.features_BCHW)
    missed_BCHW = gradient_BCHW - answer.gradient_BCHW
    size = float(np.sum(answer.gradient_BCHW.astype(np.float64) ** 2))
    length = float(np.sqrt(np.mean(missed_BCHW.astype(np.float64) ** 2)))
    if size == 0 or length == 0:
        return 0.0, np.zeros_like(psi)
    probe = _PROBE * float(answer.features_BCHW.std(dtype=np.float64)) / length
    moved_BCHW = np.float32(probe) * missed_BCHW
    ahead, _ = gradients(head, psi, answer, answer.features_BCHW + moved_BCHW)
    behind, _ = gradients(head, psi, answer, answer.features_BCHW - moved_BCHW)
    slope: NDArray[np.float32] = np.float32(1 / (probe * size)) * (ahead - behind)
    return float(np.sum(missed_BCHW.astype(np.float64) ** 2)) / size, slope


def gradients(
    head: LocalHead, psi: NDArray[np.float32], answer: Aligned, features_BCHW: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """∂ℓ_ψ/∂ψ float32 (n,) and ∂ℓ_ψ/∂features (B, C, H, W)."""
    judged = head.linearise(psi, features_BCHW)
    _, v_BKhw = cross_entropy(judged.logits_BKhw, answer.label_Bhw, answer.weight_Bhw)
    return judged.pull_back(v_BKhw)
