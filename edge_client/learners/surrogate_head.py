"""A model of the cloud's network on the vehicle, fitted to the loss maps that come back.

Legend: B frames, C channels, H W feature rows and columns, K seeds, M maps, y x of a loss map, h w rows and
columns of logits; ψ the head's parameters, float32 (n,).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_client.errors import StateError
from edge_client.estimators import Perturbations
from edge_client.estimators.activation import Activation
from edge_client.local.head import HeadLinearisation, LocalHead
from edge_client.local.loss_maps import JudgedLogits, judge
from edge_client.optimizers import Adam, Arrays
from edge_client.state import part_of
from protocol.noise import derive_seed
from protocol.perturbation import perturb
from protocol.plans.surrogate import SurrogatePlan

_PARAMETERS = "parameters"
_ADAM = "adam/"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the cloud has said about one batch."""

    features_BCHW: NDArray[np.float32]
    """As they arrived: quantised."""
    label_Bhw: NDArray[np.uint8] | None
    """At the size of the head's logits; None: the loss is an entropy."""
    perturbations: Perturbations
    maps_BMyx: NDArray[np.float32]
    """(B, 1 + K, y, x): the clean loss map, then each seed's difference."""

    @property
    def cells_yx(self) -> tuple[int, int]:
        """Rows and columns of its maps."""
        return self.maps_BMyx.shape[2], self.maps_BMyx.shape[3]


class Surrogate:
    """ψ, fitted to each answer, and the gradient at the features that comes of it.

    The loss map of the head at features z is ℓ_ψ(z), its difference along ξ_k like the cloud's d_k(ψ). One
    step of the fit is Adam's on

        mean (ℓ_ψ(ẑ) − M)² / var M + mean (d_k(ψ) − Δ_k)² / var Δ,   k drawn from the answer's seeds,

    and the estimate Ĝ = ∂(mean ℓ_ψ(ẑ))/∂z + λ · (the zeroth-order estimate from Δ_k − d_k(ψ)): a control
    variate. With λ = 1 and a ψ that doesn't depend on ξ its expectation is the zeroth-order estimate's own,
    whatever ψ is, and its variance that of what ψ misses. After Tucker et al., REBAR (arXiv 1703.07370), and
    Maheswaranathan et al., guided ES (arXiv 1806.10230); a model fitted to the server's gradients is
    FSL-SAGE's (arXiv 2505.23182).

    Args:
        head: whose normalisation is fixed.
        plan: how it is fitted.
        activation: `estimator_of(plan)`.
    """

    def __init__(self, head: LocalHead, plan: SurrogatePlan, activation: Activation) -> None:
        self._head = head
        self._plan = plan
        self._activation = activation
        self._adam = Adam(plan.fit_rate)
        self.parameters = head.initial
        self._kept: deque[Answered] = deque()

    # State --------------------------------------------------------------------------------------------

    def state_arrays(self) -> Arrays:
        """ψ and its optimizer's, to go on with; kept answers are none of it."""
        arrays = {_ADAM + name: array for name, array in self._adam.state_arrays().items()}
        return {_PARAMETERS: self.parameters.copy(), **arrays}

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from what `state_arrays` returned; empty: from the head's start.

        Raises:
            StateError: arrays of something else, or of another head.
        """
        if not arrays:
            return
        parameters = arrays.get(_PARAMETERS)
        if parameters is None or parameters.shape != self._head.initial.shape:
            raise StateError("the vehicle's state is of another way of learning, or of another head")
        self.parameters = parameters.astype(np.float32)
        self._adam.load_state_arrays(part_of(arrays, _ADAM))

    # The fit ------------------------------------------------------------------------------------------

    def fit(self, answered: Answered, seed: int) -> None:
        """Take the plan's steps on an answer, each followed by one on an answer kept from before, if any."""
        for step in range(self._plan.fit_steps):
            self.fit_step(answered, derive_seed(seed, "fit", step))
            if self._kept:
                drawn = derive_seed(seed, "replayed", step)
                self.fit_step(self._kept[drawn % len(self._kept)], derive_seed(seed, "refit", step))
        self._keep(answered)

    def _keep(self, answered: Answered) -> None:
        """Remember it, and forget the oldest until no more frames are kept than the plan says."""
        self._kept.append(answered)
        while sum(len(kept.features_BCHW) for kept in self._kept) > self._plan.replay_frames:
            self._kept.popleft()

    def fit_step(self, answered: Answered, seed: int) -> float:
        """One step of ψ; returns the misfit before it. Which perturbation counts is drawn from `seed`."""
        drawn = seed % len(answered.perturbations.seeds)
        misfit, gradient = self.misfit(answered, drawn)
        self.parameters = self._adam.step(self.parameters, gradient)
        return misfit

    def misfit(self, answered: Answered, number: int) -> tuple[float, NDArray[np.float32]]:
        """What is fitted, with its gradient at ψ, of the clean map and the difference of one perturbation."""
        frames = len(answered.features_BCHW)
        copies = [answered.features_BCHW, *self._moved(answered, number)]
        linearised, judged = self._judge(answered, copies)
        maps = judged.map_Byx.reshape(len(copies), frames, *answered.cells_yx)
        errors = (
            (maps[0] - answered.maps_BMyx[:, 0], _inverse_variance(answered.maps_BMyx[:, 0])),
            (
                maps[1] - maps[-1 if self._plan.two_sided else 0] - answered.maps_BMyx[:, 1 + number],
                _inverse_variance(answered.maps_BMyx[:, 1:]),
            ),
        )
        misfit = sum(float((error**2).mean(dtype=np.float64)) * weight for error, weight in errors)
        slopes = [np.float32(2 * weight / error.size) * error for error, weight in errors]
        v = np.zeros_like(maps)
        v[0] = slopes[0]
        v[1] += slopes[1]
        v[-1 if self._plan.two_sided else 0] -= slopes[1]
        gradient, _ = linearised.pull_back(judged.pull_back(v.reshape(-1, *answered.cells_yx)))
        return misfit, gradient

    # The estimate -------------------------------------------------------------------------------------

    def estimate(self, answered: Answered) -> NDArray[np.float32]:
        """Ĝ float32 (B, C, H, W) of the mean of the frames' losses; the answer is that proposed for last."""
        linearised, judged = self._judge(answered, [answered.features_BCHW])
        v_Byx = np.full_like(judged.map_Byx, 1 / judged.map_Byx.size)
        _, gradient_BCHW = linearised.pull_back(judged.pull_back(v_Byx))
        if self._plan.correction == 0:
            return gradient_BCHW
        missed_BMyx = answered.maps_BMyx.copy()
        for number in range(len(answered.perturbations.seeds)):
            missed_BMyx[:, 1 + number] -= self._difference(answered, number, judged.map_Byx)
        correction_BCHW = self._activation.estimate(missed_BMyx)
        corrected: NDArray[np.float32] = gradient_BCHW + np.float32(self._plan.correction) * correction_BCHW
        return corrected

    def _difference(
        self, answered: Answered, number: int, clean_Byx: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """d_k(ψ), float32 (B, y, x)."""
        copies = self._moved(answered, number)
        logits_BKhw = self._head.linearise(self.parameters, np.concatenate(copies)).logits_BKhw
        maps = judge(logits_BKhw, _repeated(answered.label_Bhw, len(copies)), answered.cells_yx).map_Byx
        plus_Byx = maps[: len(clean_Byx)]
        return plus_Byx - (maps[len(clean_Byx) :] if self._plan.two_sided else clean_Byx)

    def _moved(self, answered: Answered, number: int) -> list[NDArray[np.float32]]:
        """The features moved along one direction, and against it where the plan is two-sided."""
        proposed = answered.perturbations
        return [
            perturb(
                answered.features_BCHW,
                proposed.scale_C,
                proposed.seeds[number],
                sign=sign,
                block=proposed.block,
            )
            for sign in ((1, -1) if self._plan.two_sided else (1,))
        ]

    def _judge(
        self, answered: Answered, copies: Sequence[NDArray[np.float32]]
    ) -> tuple[HeadLinearisation, JudgedLogits]:
        linearised = self._head.linearise(self.parameters, np.concatenate(copies))
        label_Bhw = _repeated(answered.label_Bhw, len(copies))
        return linearised, judge(linearised.logits_BKhw, label_Bhw, answered.cells_yx)


def _repeated(label_Bhw: NDArray[np.uint8] | None, copies: int) -> NDArray[np.uint8] | None:
    return None if label_Bhw is None else np.tile(label_Bhw, (copies, 1, 1))


def _inverse_variance(maps: NDArray[np.float32]) -> float:
    """0 where nothing varies."""
    variance = float(maps.var(dtype=np.float64))
    return 1 / variance if variance > 0 else 0.0
