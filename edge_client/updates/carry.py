"""What a vehicle goes on with when its bundle or its head has changed between two turns."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_client.encoder.bundle import BundleError, EncoderBundle, EncoderSpec, spec_digest
from edge_client.state import VehicleState

log = logging.getLogger(__name__)

_HEADS = ("head", "surrogate/parameters")
"""Where learners keep the parameters of a head."""


@dataclass(frozen=True, kw_only=True)
class Carry:
    """Takes states of earlier bundles and heads over."""

    bundle: EncoderBundle
    """The present one."""
    keeps_learnt: bool
    """Whether what was learnt goes on, where the parameters are alike; else the bundle's own θ."""
    earlier: tuple[Path, ...]
    """Folders of bundles that the vehicle may have had before."""
    head: str
    """Digest of the present head's update; empty: the vehicle was started with it."""
    keeps_head: bool
    head_parameters: int | None
    """Of the present head; None: there is none."""

    def over(self, state: VehicleState, bundle: str, head: str) -> VehicleState | None:
        """The state to go on with after one of the bundle and head of these digests; None: that bundle is
        unknown."""
        if bundle != spec_digest(self.bundle.spec):
            spec = self._spec(bundle)
            if spec is None:
                return None
            if not self.keeps_learnt or spec.parameters != self.bundle.spec.parameters:
                log.info("θ starts from the bundle's own: %s", self._why(spec))
                return VehicleState(theta=self.bundle.theta0, optimizer={})
            log.info("what was learnt with the bundle before goes on: names and shapes of θ are the same")
        if head != self.head and not self._fits_head(state):
            log.info("the local head and all moments start anew; θ goes on")
            return VehicleState(theta=state.theta, optimizer={})
        return state

    def _fits_head(self, state: VehicleState) -> bool:
        kept = [state.optimizer[name] for name in _HEADS if name in state.optimizer]
        return self.keeps_head and all(np.size(each) == self.head_parameters for each in kept)

    def _why(self, spec: EncoderSpec) -> str:
        if spec.parameters != self.bundle.spec.parameters:
            return "it has other parameters than the one before"
        return "the update says so"

    def _spec(self, digest: str) -> EncoderSpec | None:
        return next((spec for spec in _specs(self.earlier) if spec_digest(spec) == digest), None)


def _specs(folders: Iterable[Path]) -> Iterable[EncoderSpec]:
    for folder in folders:
        try:
            yield EncoderBundle.load(folder).spec
        except BundleError as error:
            log.warning("%s", error)
