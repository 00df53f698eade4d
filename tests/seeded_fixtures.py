"""What tests of seeded queries share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fleet_fixtures import CARS, TinyFleet, World
from supervision import Supervisor

from cloud_server.config import ZerothOrderConfig
from protocol.codec.tensor import EncodedTensor
from protocol.messages import SeededQuery
from protocol.noise import derive_seed
from protocol.perturbation import pack_scale
from protocol.plans.activation import ActivationPlan
from protocol.plans.adaptation import Adaptation
from protocol.plans.first_order import FirstOrder

CAR = CARS[0]


def seeded(frames: int, seeds: int, scale_C: np.ndarray, *, two_sided: bool) -> SeededQuery:
    return SeededQuery(
        vehicle=CAR,
        grant="0" * 16,
        turn_id=1,
        step=0,
        frames=tuple(range(frames)),
        features=EncodedTensor(32, (), b"", b"", b""),
        seeds=tuple(derive_seed("query", number) for number in range(seeds)),
        scale=pack_scale(scale_C),
        two_sided=two_sided,
        map_size=(6, 8),
    )


def zeroth(**changes: Any) -> ZerothOrderConfig:
    return ZerothOrderConfig(**{"batches": 2, "batch_size": 3, "estimator": "activation", **changes})


def plan(**changes: Any) -> ActivationPlan:
    return ActivationPlan(**{"seeds": 3, "rate": 1e-2, **changes})


def tiny(world: World, folder: Path, **changes: Any) -> TinyFleet:
    settings = {
        "zeroth_order": zeroth(),
        "activation": plan(),
        "first_order": FirstOrder(epochs=1, batch_size=4, rate=5e-3),
        "algorithm": "blackfed-v1",
        "rounds": 2,
    }
    return TinyFleet(world, folder, **{**settings, **changes})


def undisturbed_tiny(world: World, folder: Path, subspace: str) -> TinyFleet:
    fleet = tiny(world, folder, zeroth_order=zeroth(epochs=2), adaptation=Adaptation(subspace=subspace))
    Supervisor(fleet).run()
    return fleet


def again(calm: TinyFleet, folder: Path) -> TinyFleet:
    return tiny(calm.world, folder, zeroth_order=calm.config.zeroth_order, adaptation=calm.config.adaptation)
