"""A run goes on as what it began as: the same frames and settings, and more rounds where that is defined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import pytest
from fleet_fixtures import World
from start_fixtures import QUIET, changed, killed_after, learnt, run

from cloud_server.config import CloudConfig
from cloud_server.errors import CloudError
from cloud_server.run.more_rounds import check_more_rounds
from evaluation.latest import decode_picture, read_latest
from fleet.cli import app as cli
from fleet.errors import OperatorError
from fleet.run.pretrain import pretrain
from fleet.scenario import DatasetPart, EncoderPart, EvaluationPart, Scenario, load_scenario, save_scenario
from fleet.start import Start
from protocol.plans.first_order import FirstOrder


@pytest.fixture
def frames(tiny_world: World, tmp_path: Path) -> Path:
    """A data set of one's own to spoil."""
    return shutil.copytree(tiny_world.data_root, tmp_path / "camvid")


@pytest.fixture
def scenario(frames: Path) -> Scenario:
    return _scenario(frames)


def _scenario(frames: Path, **changes: Any) -> Scenario:
    scenario = Scenario(
        algorithm="centralized",
        vehicles=2,
        rounds=2,
        image_size="64x48",
        cores=1,
        broker="memory",
        encoder=EncoderPart(name="stride8-c4", mode="rebuild"),
        dataset=DatasetPart(name="camvid", root=str(frames)),
        first_order=FirstOrder(epochs=1, batch_size=4, schedule="constant"),
        evaluation=EvaluationPart(overlays=0),
    )
    return changed(scenario, **changes)


@pytest.fixture(scope="module")
def stopped(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with killed_after(2):
        run(_scenario(tiny_world.data_root), folder)
    return folder


@pytest.fixture
def blackfleet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Runs the command with arguments; its exit code."""

    def blackfleet(*arguments: str | Path) -> int:
        monkeypatch.setattr("sys.argv", ["blackfleet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        assert isinstance(ending.value.code, int)
        return ending.value.code

    return blackfleet


def _partition(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "partition.json").read_text()))


# Frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["centralized", "blackfed-v2"])
def test_frames_that_appear_meanwhile_are_no_part_of_the_run(
    scenario: Scenario, frames: Path, tmp_path: Path, algorithm: str
) -> None:
    scenario = changed(scenario, algorithm=algorithm)
    undisturbed = run(scenario, tmp_path / "undisturbed")
    folder = tmp_path / "run"
    with killed_after(2):
        run(scenario, folder)
    before = (folder / "partition.json").read_bytes()
    image = min((frames / "train").iterdir())
    for stem in ("seq0_00000", "seq0_99999", "seq5_00001"):
        shutil.copy(image, frames / "train" / f"{stem}.png")
        shutil.copy(frames / "trainannot" / image.name, frames / "trainannot" / f"{stem}.png")
    resumed = run(scenario, folder, resume=True)
    assert (folder / "partition.json").read_bytes() == before
    assert resumed["confusion"] == undisturbed["confusion"]
    assert resumed["vehicles"].keys() == undisturbed["vehicles"].keys()
    # A run that begins now has them.
    assert json.loads(before)["vehicles"] != _partition_of_new_run(scenario, tmp_path / "new")


def _partition_of_new_run(scenario: Scenario, folder: Path) -> Any:
    with killed_after(1):
        run(scenario, folder)
    return _partition(folder)["vehicles"]


def test_frames_that_vanish_are_named(scenario: Scenario, frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with killed_after(2):
        run(scenario, folder)
    keys = sorted(_partition(folder)["image_bytes"])
    _vanish(frames, keys[0])
    with pytest.raises(
        OperatorError, match=rf"^frame {keys[0]}, with which .* not in the data set any more; put"
    ):
        run(scenario, folder, resume=True)
    for key in keys[1:8]:
        _vanish(frames, key)
    with pytest.raises(
        OperatorError, match=rf"frames {', '.join(keys[:5])} and 3 more, with which the run began"
    ):
        run(scenario, folder, resume=True)
    assert (folder / "scenario.yaml").exists()


def test_frames_that_become_others_are_named(scenario: Scenario, frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with killed_after(2):
        run(scenario, folder)
    key = min(_partition(folder)["image_bytes"])
    [image] = (path for path in frames.glob(f"*/{key}.png") if "annot" not in path.parent.name)
    kept = image.read_bytes()
    cv2.imwrite(str(image), cv2.imread(str(image)) // 2)
    with pytest.raises(OperatorError, match=rf"^frame {key}, with which .* not the same any more; put back"):
        run(scenario, folder, resume=True)
    image.write_bytes(kept)
    run(scenario, folder, resume=True)


def test_a_run_is_not_resumed_without_its_record(scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with killed_after(2):
        run(scenario, folder)
    kept = (folder / "partition.json").read_text()
    (folder / "partition.json").write_text(kept[:100])
    with pytest.raises(OperatorError, match=r"damaged .*partition\.json"):
        run(scenario, folder, resume=True)
    (folder / "partition.json").write_text(kept.replace("car-02", "car-03"))
    with pytest.raises(OperatorError, match="its vehicles are not those of the run"):
        run(scenario, folder, resume=True)
    (folder / "partition.json").unlink()
    with pytest.raises(OperatorError, match=r"partition\.json is missing: nobody knows which frames"):
        run(scenario, folder, resume=True)


def test_a_record_of_an_earlier_version_is_still_good(scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with killed_after(2):
        run(scenario, folder)
    record = _partition(folder)
    (folder / "partition.json").write_text(json.dumps({"vehicles": record["vehicles"]}))
    run(scenario, folder, resume=True)


def test_pretraining_resumes_with_its_frames(
    source_scenario: Scenario, start: Start, tiny_world: World, frames: Path, tmp_path: Path
) -> None:
    own = changed(source_scenario, dataset=DatasetPart(name="camvid", root=str(frames), cities=("seq0",)))
    with killed_after(2):
        pretrain(own, tmp_path / "start", resume=False, console=QUIET)
    image = min((frames / "train").glob("seq0*"))
    shutil.copy(image, frames / "train" / "seq0_99999.png")
    shutil.copy(frames / "trainannot" / image.name, frames / "trainannot" / "seq0_99999.png")
    made = pretrain(own, tmp_path / "start", resume=True, console=QUIET)
    assert made.spec.test == start.spec.test


def _vanish(frames: Path, key: str) -> None:
    for path in frames.glob(f"*/{key}.png"):
        path.unlink()


# Options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "3"], ["seed was 0, is now 3"]),
        (["--algorithm", "frozen"], ["algorithm was centralized, is now frozen"]),
        (
            ["--bits", "4", "--foo-epochs", "7"],
            ["coding.bits was 8, is now 4", "first_order.epochs was 1, is now 7"],
        ),
        (["--condition", "car-02=fog:3"], ["conditions.car-02 was None, is now fog:3"]),
        (["--data-root", "elsewhere"], ["dataset.root was /", "/elsewhere"]),
        (["--fleet", "mine"], ["fleet was fleet-", "is now mine"]),
        (["--rounds", "1"], ["rounds was 2, is now 1", "longer, not shorter"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_other_options_are_refused_by_name(
    blackfleet: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    stopped: Path,
    options: list[str],
    words: list[str],
) -> None:
    before = (stopped / "scenario.yaml").read_bytes()
    assert blackfleet("launch", "--resume", "--run-dir", stopped, *options) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert (stopped / "scenario.yaml").read_bytes() == before


def test_the_same_options_and_another_broker_are_no_other_settings(
    blackfleet: Callable[..., int], scenario: Scenario, tmp_path: Path
) -> None:
    folder, file = tmp_path / "run", tmp_path / "my.yaml"
    file.write_text(save_scenario(changed(scenario, cores=None)))
    with killed_after(2):
        run(scenario, folder)
    options = ("--seed", "0", "--broker", "amqtt", "--broker-port", "1234", "--scenario", file)
    assert blackfleet("launch", "--resume", "--run-dir", folder, *options) == 0


def test_a_complete_run_is_not_shown_for_other_options(
    blackfleet: Callable[..., int], capfd: pytest.CaptureFixture[str], scenario: Scenario, tmp_path: Path
) -> None:
    run(scenario, tmp_path / "run")
    assert blackfleet("launch", "--resume", "--run-dir", tmp_path / "run", "--seed", "1") == 2
    assert blackfleet("launch", "--resume", "--run-dir", tmp_path / "run") == 0


def test_pretraining_refuses_other_options_too(
    blackfleet: Callable[..., int], capfd: pytest.CaptureFixture[str], start: Start, tmp_path: Path
) -> None:
    folder = shutil.copytree(start.folder, tmp_path / "start")
    assert blackfleet("pretrain", folder, "--resume", "--seed", "5") == 2
    assert "seed was 0, is now 5" in capfd.readouterr().err
    assert blackfleet("pretrain", folder, "--resume", "--rounds", "9") == 2
    assert "first_order.schedule cosine lets the rates fall over all rounds" in capfd.readouterr().err
    assert blackfleet("pretrain", folder, "--resume") == 0


# Rounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "shorter"),
    [
        *((name, ["complete", "killed"]) for name in ("centralized", "blackfed-v2")),
        *((name, ["complete"]) for name in ("fedavg", "split", "blackfleet")),
    ],
)
def test_more_rounds_make_the_run_that_it_would_have_been(
    tiny_world: World, tmp_path: Path, algorithm: str, shorter: list[str]
) -> None:
    scenario = _with_constant_rates(_scenario(tiny_world.data_root, algorithm=algorithm, rounds=1))
    longer = changed(scenario, rounds=2)
    undisturbed = run(longer, tmp_path / "undisturbed")
    _check_latest(tmp_path / "undisturbed")
    for name in shorter:
        folder = tmp_path / name
        if name == "complete":
            assert run(scenario, folder)["rounds"] == 1
        else:
            with killed_after(1):
                run(scenario, folder)
        result = run(longer, folder, resume=True)
        assert result["rounds"] == 2
        for key in ("confusion", "classes", "initial_local_miou", "mean_ood_miou", "frames_seen"):
            assert result[key] == undisturbed[key]
        if algorithm != "centralized":
            assert learnt(folder) == learnt(tmp_path / "undisturbed")
        assert load_scenario(folder / "scenario.yaml", {}).rounds == 2
        assert run(longer, folder, resume=True) == result


def _check_latest(folder: Path) -> None:
    """Whoever looks on sees what each vehicle's last validation was of, whoever validates."""
    for vehicle, frames in _partition(folder)["vehicles"].items():
        [latest] = read_latest(folder, vehicle)
        events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        validated = [event["stage"] for event in events if event["event"] == "validation"]
        assert latest.stage in validated[-2:] and latest.split == "val"
        assert [frame.key for frame in latest.frames] == frames["val"][:2]
        for frame in latest.frames:
            assert decode_picture(frame.prediction).shape == decode_picture(frame.truth).shape


def _with_constant_rates(scenario: Scenario) -> Scenario:
    content = {
        "local_loss": {"schedule": "constant", "weight_power": 0, "warm_up_epochs": 1, "epochs": 1},
        "zeroth_order": {"batches": 1, "batch_size": 2},
    }
    given = load_scenario(None, content)
    return changed(scenario, local_loss=given.local_loss, zeroth_order=given.zeroth_order)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"first_order": {"schedule": "cosine"}}, "first_order.schedule cosine lets the rates fall"),
        ({"first_order": {"schedule": "one-cycle"}}, "first_order.schedule one-cycle"),
        ({"algorithm": "blackfleet"}, "local_loss.schedule one-cycle"),
        ({"zeroth_order": {"schedule": "cosine"}}, "zeroth_order.schedule cosine lets the rates fall"),
        (
            {"algorithm": "blackfleet", "local_loss": {"schedule": "constant", "weight_power": 1.0}},
            "loss maps .* are not made in the last round",
        ),
    ],
)
def test_rounds_that_a_setting_spans_are_refused_with_the_reason(
    settings: dict[str, Any], reason: str
) -> None:
    content = {"algorithm": "blackfed-v1", "first_order": {"schedule": "constant"}, **settings}
    config = load_scenario(None, {**content, "rounds": 8}).cloud_config()
    with pytest.raises(CloudError, match=f"rounds was 4, is now 8: {reason}"):
        check_more_rounds(config, 4)
    check_more_rounds(config, 8)
    with pytest.raises(CloudError, match="rounds was 9, is now 8: a run can be made longer, not shorter"):
        check_more_rounds(config, 9)


def test_rates_are_constant_unless_a_setting_says_otherwise() -> None:
    """A schedule that is added somewhere must be thought of in `check_more_rounds`."""
    keys = {key for key in _all_keys(CloudConfig(fleet="f", vehicles=("v",))) if key.endswith("schedule")}
    assert keys == {"first_order.schedule", "local_loss.schedule", "zeroth_order.schedule"}


def _all_keys(config: CloudConfig) -> set[str]:
    content = msgspec.to_builtins(config)
    return {f"{key}.{inner}" for key, part in content.items() if isinstance(part, dict) for inner in part}
