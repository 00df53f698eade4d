"""Encoders that are not ours, in fleets: they learn through their way back, and from losses alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fleet_fixtures import CARS, IMAGE_SIZE, TinyFleet, World
from seeded_fixtures import zeroth
from supervision import Supervisor
from torch import nn
from torch_modules import Mobile, residual

from edge_client.encoder.bundle import EncoderBundle
from fleet.export.bundle import export_encoder
from fleet.export.modules import ModuleEncoder
from protocol.plans.adaptation import Adaptation, SubspaceName
from protocol.plans.first_order import FirstOrder
from protocol.plans.spsa import SpsaPlan


class Projected(nn.Module):
    """Somebody's trunk with a projection behind."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Mobile()
        self.projection = nn.Conv2d(4, 3, 1)

    def forward(self, x_BCHW):  # type: ignore[no-untyped-def]
        return self.projection(self.trunk(x_BCHW))


@pytest.fixture(scope="module")
def worlds(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """The tiny world with each of the encoders in place of ours."""
    folder = tmp_path_factory.mktemp("foreign")
    found = {}
    builds: dict[str, Callable[[], nn.Module]] = {"residual": residual, "mobile": Projected}
    for name, build in builds.items():
        encoder = ModuleEncoder(build)
        encoder.initialise(0)
        export_encoder(encoder, name, folder / name, image_size=IMAGE_SIZE)
        found[name] = replace(tiny_world, bundle=folder / name)
    return found


@pytest.mark.parametrize(
    ("name", "algorithm", "estimator", "subspace"),
    [
        ("residual", "split", "spsa-gc", None),
        ("residual", "blackfed-v1", "spsa-gc", "film"),
        ("mobile", "split", "spsa-gc", "projection+film"),
        ("mobile", "blackfed-v1", "activation", "projection"),
        ("mobile", "blackfed-v1", "spsa-gc", "projection"),
    ],
)
def test_foreign_encoder_learns_what_it_is_told_to(
    worlds: dict[str, World],
    tmp_path: Path,
    name: str,
    algorithm: str,
    estimator: str,
    subspace: SubspaceName | None,
) -> None:
    fleet = TinyFleet(
        worlds[name],
        tmp_path,
        algorithm=algorithm,
        rounds=1,
        vehicles=CARS[:1],
        first_order=FirstOrder(epochs=1, batch_size=4),
        zeroth_order=zeroth(estimator=estimator),
        spsa=SpsaPlan(queries=1, rate=1e-3),
        adaptation=Adaptation(subspace=subspace),
    )
    Supervisor(fleet).run()
    bundle = EncoderBundle.load(worlds[name].bundle)
    state = fleet.states(CARS[0]).load(1)
    moved = state.theta != bundle.theta0
    assert np.isfinite(state.theta).all()
    learns = {p.name: moved[p.offset : p.offset + p.size].any() for p in bundle.spec.parameters}
    wanted = bundle.spec.projection if subspace == "projection" else tuple(learns)
    assert {parameter for parameter, has_moved in learns.items() if has_moved} == set(wanted)
    assert fleet.result()["vehicles"][CARS[0]]["subspace"] == (subspace or "all")
