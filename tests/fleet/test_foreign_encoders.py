"""Encoders of somebody else's, by `package.module:name`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fleet.export.bundle import export_bundle
from fleet.export.encoders import architecture
from fleet.run.checks import check_runnable
from fleet.scenario import load_scenario
from protocol.doors import DoorError
from protocol.errors import Mistake

MODULE = """
from fleet.export.convolutions import ConvolutionEncoder, Layer

def thin():
    return ConvolutionEncoder([Layer(channels=5, stride=4), Layer(channels=3, stride=2, relu=False)])

def thirds():
    return ConvolutionEncoder([Layer(channels=4, stride=3)])

def empty():
    return ConvolutionEncoder([])

def even():
    return ConvolutionEncoder([Layer(channels=4, kernel=2)])

def list_of_layers():
    return [Layer(channels=4)]

def unfinished():
    return ConvolutionEncoder([Layer(channels=4), *MORE])
"""


@pytest.fixture
def module(foreign: Callable[[str, str], str]) -> str:
    return foreign("foreign_encoders", MODULE)


def test_bundle_of_somebody_elses_encoder_carries_its_name(module: str, tmp_path: Path) -> None:
    name = f"{module}:thin"
    bundle = export_bundle(name, tmp_path / "bundle", image_size=(64, 48), seed=1)
    assert bundle.spec.name == name
    assert bundle.spec.feature_shape == (3, 6, 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", ["at least one layer"]),
        ("even", ["kernel must be odd", "got 2"]),
        ("list_of_layers", ["must return a torch module, got list"]),
        ("unfinished", ["NameError", "MORE", "foreign_encoders.py, line"]),
    ],
)
def test_encoder_that_does_not_fit_is_refused_in_one_line(module: str, name: str, words: list[str]) -> None:
    with pytest.raises(DoorError) as refusal:
        architecture(f"{module}:{name}")
    assert str(refusal.value).startswith(f"encoder {module}:{name}: ")
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": "11x9", "encoder.name": "foreign_encoders:thin"}, ["8x8", "too small"]),
        ({"image_size": "63x48", "encoder.name": "foreign_encoders:thirds"}, ["feature stride", "got 3"]),
        ({"encoder.name": "foreign_encoders:thick"}, ["did you mean 'thin'"]),
        ({"encoder.name": "foreign_networks_of_mine:unet"}, ["PYTHONPATH"]),
        ({"encoders": {"car-01": "foreign_encoders:none"}}, ["has no 'none'"]),
        ({"network.name": "foreign_encoders:thin"}, ["network", "must take (spec), takes ()"]),
    ],
)
def test_scenario_is_refused_before_anything_starts(
    module: str, settings: Mapping[str, Any], words: list[str]
) -> None:
    with pytest.raises(Mistake) as refusal:
        check_runnable(load_scenario(None, settings))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
