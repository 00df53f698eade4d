"""Fixtures that test files of the cloud share."""

from __future__ import annotations

import pytest
from fleet_fixtures import TinyFleet, World
from seeded_fixtures import undisturbed_tiny


@pytest.fixture(scope="session")
def calm_all(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    """A fleet with estimator activation after a run without any disturbance."""
    return undisturbed_tiny(tiny_world, tmp_path_factory.mktemp("all"), "all")


@pytest.fixture(scope="session")
def calm_film(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    """The same, on scales and biases alone."""
    return undisturbed_tiny(tiny_world, tmp_path_factory.mktemp("film"), "film")


@pytest.fixture(params=["calm_all", "calm_film"])
def calm(request: pytest.FixtureRequest) -> TinyFleet:
    """Either of the two."""
    fleet: TinyFleet = request.getfixturevalue(request.param)
    return fleet
