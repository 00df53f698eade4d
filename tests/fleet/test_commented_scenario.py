"""`blackfleet init`: a scenario file that explains itself, and is read back to the same."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from process_fixtures import Refuse

from fleet.cli import app as cli
from fleet.cli.commented_scenario import commented
from fleet.cli.setting_docs import section_text, setting_text
from fleet.presets import PRESETS
from fleet.scenario import Scenario, load_scenario
from fleet.scenario_file import read_table

STRANGE = msgspec.convert(
    {
        "vehicles": 2,
        "conditions": {"car-01": "fog:3"},
        "class_weights": {"car": 2.0, "x: # y": 0.5},
        "start": "a # b\nc",
        "fleet": "007",
        "own": {"algorithm": {"speed": 1e-3}},
    },
    Scenario,
)


def _init(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["blackfleet", "init", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == 0


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(),
        STRANGE,
        *(load_scenario(None, {"dataset.root": "cityscapes"}, preset=preset) for preset in PRESETS),
    ],
    ids=["defaults", "strange", *PRESETS],
)
def test_what_is_written_is_read_back(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(commented(scenario), encoding="utf-8")
    assert load_scenario(path, {}) == scenario


def test_every_setting_is_there_and_explained(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(commented(Scenario()), encoding="utf-8")
    content = read_table(path)
    for field in msgspec.structs.fields(Scenario):
        part = field.type
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            assert section_text(part), field.name
            assert set(content[field.name]) == set(part.__struct_fields__)
            for name in part.__struct_fields__:
                assert setting_text(part, name, f"{field.name}.{name}"), f"{field.name}.{name}"
        else:
            assert field.name in content
            assert setting_text(Scenario, field.name, field.name), field.name
    lines = path.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 110
    first = [line.partition(":")[0] for line in lines if line and line[0] not in " #"]
    assert first[:4] == ["vehicles", "algorithm", "rounds", "seed"]


def test_comments_are_texts_of_the_code() -> None:
    text = " ".join(commented(Scenario()).replace("#", "").split())
    assert "Passes over the uploaded features" not in text  # an option says it for users
    assert "Passes over the train frames in a turn, by first-order steps. (--foo-epochs)" in text
    assert "null = those that the launcher may use here." in text


def test_init_writes_what_its_options_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    _init(
        monkeypatch, path, "--vehicles", "3", "--set", "first_order.rate=1e-3", "--condition", "car-01=fog:3"
    )
    wanted = {"vehicles": 3, "first_order.rate": 1e-3, "conditions": {"car-01": "fog:3"}}
    assert load_scenario(path, {}) == load_scenario(None, wanted)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_init_overwrites_nothing(tmp_path: Path, refuse: Refuse) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\n")
    assert refuse("init", path) == (f"blackfleet: {path} is there already; name another file, or remove it")
    assert path.read_text() == "seed: 3\n"
    assert "No such file" in refuse("init", tmp_path / "nowhere" / "mine.yaml")
