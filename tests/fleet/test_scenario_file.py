"""Scenario files: what they may look like, and that nothing in them is dropped in silence."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fleet.cli.option import ScenarioOption
from fleet.cli.options import SCENARIO_OPTIONS
from fleet.cli.scenario_options import with_scenario_options
from fleet.errors import OperatorError
from fleet.scenario import Scenario, load_scenario, save_scenario
from fleet.scenario_file import read_table, write_table


@pytest.mark.parametrize(
    ("content", "key", "lines"),
    [
        ("rounds: 2\nseed: 1\nrounds: 3\n", "rounds", "1 and 3"),
        ("dataset: {name: camvid}\ndataset: {root: x}\n", "dataset", "1 and 2"),
        ("dataset:\n  name: camvid\n  name: generated\n", "name", "2 and 3"),
        ("conditions:\n  car-01: fog:3\n  car-01: night:4\n", "car-01", "2 and 3"),
        ("encoders: {car-01: stride8-c4, 'car-01': stride8-c8}\n", "car-01", "1 and 1"),
        ("conditions:\n  activation: {seeds: 2,\n    seeds: 2}\n", "seeds", "2 and 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, content: str, key: str, lines: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(content)
    with pytest.raises(OperatorError, match=f"{path} has the key '{key}' twice, in lines {lines}"):
        load_scenario(path, {})


_BY_VEHICLE = [o for o in SCENARIO_OPTIONS if o.type == list[str] and o.by_vehicle]


@pytest.mark.parametrize("option", _BY_VEHICLE, ids=lambda option: option.name)
def test_an_option_that_names_a_vehicle_twice_is_refused(option: ScenarioOption) -> None:
    with pytest.raises(OperatorError, match=r"^--[a-z-]+ names vehicle car-01 twice, with a:1 and b:2; keep"):
        _scenario_of(**{option.name: ["car-01=a:1", "car-02=a:1", "car-01=b:2"]})


def test_vehicles_that_are_named_once_each_get_their_values() -> None:
    assert {option.name for option in _BY_VEHICLE} >= {"condition", "vehicle_encoder"}
    scenario = _scenario_of(condition=["car-01=fog:3", "car-02=night:4"])
    assert scenario.conditions == {"car-01": "fog:3", "car-02": "night:4"}


def _scenario_of(**options: Any) -> Scenario:
    """What a command makes of these options."""
    made: list[Scenario] = []

    @with_scenario_options()
    def command(*, scenario: Scenario) -> None:
        made.append(scenario)

    names = [name for name in command.__annotations__ if name != "scenario_file"]
    command(scenario_file=None, **{**dict.fromkeys(names), **options})
    return made[0]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    ],
)
def test_any_way_in_which_editors_save_text_is_read(tmp_path: Path, encode: Callable[[str], bytes]) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_bytes(encode("seed: 3\ndataset: {name: camvid, root: données}\n"))
    scenario = load_scenario(path, {})
    assert (scenario.seed, scenario.dataset.root) == (3, "données")


def test_text_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_bytes("start: für\n".encode("latin-1"))
    with pytest.raises(OperatorError, match="is not YAML"):
        load_scenario(path, {})


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "1.e-3", "0.001", "10e-4", "+1e-3"])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(f"first_order: {{rate: {text}}}\n")
    assert load_scenario(path, {}).first_order.rate == pytest.approx(1e-3)


def test_names_of_sequences_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("dataset: {cities: [0016E5, 0006R0, 0001TP]}\n")
    assert load_scenario(path, {}).dataset.cities == ("0016E5", "0006R0", "0001TP")


def test_endless_nesting_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("[" * 100_000)
    with pytest.raises(OperatorError, match="is not YAML"):
        load_scenario(path, {})


# PyYAML takes these three for ends of lines. Surrogates are there: they stand for bytes of a path.
_TEXT = st.text(st.characters(exclude_characters="\x85\u2028\u2029"))
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | _TEXT
    | st.from_regex(r"[-+]?[0-9]{1,3}\.?[0-9]{0,2}[eE][-+]?[0-9]{1,2}", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(content=st.dictionaries(_TEXT, _VALUES, max_size=4))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(write_table(content), encoding="utf-8", newline="")
    assert read_table(path) == content


def test_a_scenario_is_written_as_yaml_for_any_reader(tmp_path: Path) -> None:
    scenario = Scenario(start="1e-3", seed=2)
    path = tmp_path / "scenario.yaml"
    path.write_text(save_scenario(scenario), encoding="utf-8")
    assert load_scenario(path, {}) == scenario
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["start"] == "1e-3"
