"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fleet_fixtures import TinyFleet, World, build_world
from hypothesis import HealthCheck, settings
from process_fixtures import ROOT, Launch, Refuse, one_line, write_scenario
from start_fixtures import QUIET, source_scenario_of, target_scenario_of
from supervision import Supervisor

from fleet.cli import app as cli
from fleet.run.pretrain import pretrain
from fleet.scenario import Scenario
from fleet.start import Start

# Sums are split by threads: what tests compute with torch must be split as the trainer's, which has one.
torch.set_num_threads(1)

# It speaks of power cuts alone, which no test brings about: what is written here outlives its process anyway.
# The processes that tests start wait for the disk as they do everywhere.
os.fsync = lambda _: None  # type: ignore[assignment]

# How fast an example is says nothing on a machine that does other work, too.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


FLEET_FIXTURES = {"tiny_world", "undisturbed", "frames_root", "source_scenario"}
"""What a test that runs whole fleets in its own process begins with."""
FLEET_FILES = {
    "test_benchmark_runs.py",
    "test_compare.py",
    "test_estimator_cosine.py",
    "test_federated_average.py",
    "test_lite0.py",
    "test_modules.py",
    "test_report.py",
    "test_resuming.py",
    "test_smallest_images.py",
}
"""Those whose fixtures don't tell: they run fleets, or export networks by torch's exporter."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in `system/` starts processes, brokers or browsers.

    What takes longest comes first, file by file, lest one core waits at the end for a long file on the other.
    """
    for item in items:
        if "system" in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker(pytest.mark.system)
        elif FLEET_FIXTURES & set(getattr(item, "fixturenames", ())) or item.path.name in FLEET_FILES:
            item.add_marker(pytest.mark.fleet)
    fleets = {item.path for item in items if item.get_closest_marker("fleet")}
    items.sort(key=lambda item: (item.get_closest_marker("system") is None, item.path not in fleets))


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Puts a module of somebody else's on the import path, from its name and its text; gives the name."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    names = []

    def write(name: str, text: str) -> str:
        (folder / f"{name}.py").write_text(text)
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the tests and all processes that they start, instead of the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """The real CamVid in the SegNet layout: $BLACKFLEET_CAMVID, or ../shared beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"
    root = Path(os.environ.get("BLACKFLEET_CAMVID", beside))
    if not (root / "trainannot").is_dir():
        pytest.skip(f"no CamVid in {root}: set BLACKFLEET_CAMVID to its folder")
    return root


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A data set and an encoder bundle for tiny fleets."""
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def frames_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where launched runs share their generated frames; the first run renders them."""
    return tmp_path_factory.mktemp("frames") / "data"


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, frames_root: Path) -> Launch:
    """An undisturbed run over amqtt, which every machine has."""
    folder = tmp_path_factory.mktemp("reference")
    scenario = write_scenario(folder / "scenario.yaml", frames_root)
    launch = Launch(folder / "run", scenario)
    try:
        return launch.start("--broker", "amqtt").complete()
    finally:
        launch.stop()


@pytest.fixture(scope="session")
def undisturbed(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    """A tiny fleet after a run without any disturbance."""
    fleet = TinyFleet(tiny_world, tmp_path_factory.mktemp("undisturbed"))
    Supervisor(fleet).run()
    return fleet


@pytest.fixture(scope="session", params=["split", "individual"])
def calm_white_box(
    request: pytest.FixtureRequest, tiny_world: World, tmp_path_factory: pytest.TempPathFactory
) -> TinyFleet:
    """A tiny fleet that learns from gradients, after a run without any disturbance."""
    fleet = TinyFleet(tiny_world, tmp_path_factory.mktemp(request.param), algorithm=request.param)
    Supervisor(fleet).run()
    return fleet


@pytest.fixture(scope="session")
def source_scenario(tiny_world: World) -> Scenario:
    """Pretraining on one of the tiny world's cities."""
    return source_scenario_of(tiny_world)


@pytest.fixture(scope="session")
def start(source_scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """What that pretraining leaves."""
    folder = tmp_path_factory.mktemp("pretrain") / "start"
    return pretrain(source_scenario, folder, resume=False, console=QUIET)


@pytest.fixture
def target_scenario(tiny_world: World, start: Start) -> Scenario:
    """A short run in the other city that begins from the start."""
    return target_scenario_of(tiny_world, start)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refuse:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def refuse(*arguments: str | Path) -> str:
        monkeypatch.setattr("sys.argv", ["blackfleet", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.main()
        error = capfd.readouterr().err
        assert ending.value.code == 2, error
        return one_line(error, "blackfleet: ")

    return refuse
