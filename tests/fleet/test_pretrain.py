"""`blackfleet pretrain`: what it leaves, which frames it takes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import World
from start_fixtures import QUIET, SOURCE, TARGET, assert_same_start, changed, killed_after, run

from cloud_server.storage.checkpoint import load_checkpoint, read_tensors
from cloud_server.training.source_features import SourceFeatures
from datasets.catalog import open_dataset
from datasets.frame import DatasetError, FrameSource
from datasets.subset import CitySubset
from edge_client.encoder.bundle import EncoderBundle
from edge_client.frames import FrameCache
from fleet.cli.scenario_options import with_scenario_options
from fleet.errors import OperatorError
from fleet.export.local_model import WholeNetwork, build_whole_network
from fleet.frames.allocation import open_data
from fleet.run.pretrain import pretrain
from fleet.scenario import DatasetPart, Scenario
from fleet.start import Start
from protocol.plans.adaptation import Adaptation
from protocol.plans.first_order import FirstOrder


def test_start_says_what_was_trained_on_what(start: Start, tiny_world: World) -> None:
    spec = Start.load(start.folder).spec
    assert spec == start.spec
    assert (spec.encoder, spec.network, spec.image_size) == ("stride8-c4", "compact", (64, 48))
    assert (spec.label_space, spec.dataset, spec.cities) == ("camvid", "camvid", (SOURCE,))
    assert spec.feature_shape == EncoderBundle.load(start.encoder_folder).spec.feature_shape
    keys = {ref.key for ref in open_dataset("camvid", tiny_world.data_root).refs if ref.city == SOURCE}
    assert set(spec.val) | set(spec.test) <= keys
    assert not set(spec.val) & set(spec.test)
    result = json.loads((start.folder / "result.json").read_text())
    assert spec.test_miou == result["mean_local_miou"] > 3 * result["initial_local_miou"]
    assert 0 < spec.val_miou <= 1


def _whole(start: Start) -> WholeNetwork:
    """Encoder and network with the weights of the start, behind each other."""
    whole = build_whole_network(
        "stride8-c4",
        "compact",
        image_size=(64, 48),
        num_classes=11,
        encoder_seed=7,
        network_seed=7,
        begin=start.begin,
    )
    return whole.eval()


def test_bundle_and_network_are_the_trained_ones(start: Start) -> None:
    whole = _whole(start)
    tensors, _ = load_checkpoint(start.folder / "cloud" / "checkpoints")
    trained = {
        name.partition("network/")[2]: value for name, value in tensors.items() if "/network/" in f"/{name}"
    }
    for name, value in whole.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_source_features_are_those_of_the_exported_encoder(start: Start, tiny_world: World) -> None:
    kept = SourceFeatures.load(start.folder / "source_features.msgpack", num_classes=11)
    partition = json.loads((start.folder / "partition.json").read_text())["vehicles"]["car-01"]
    assert len(kept) == len(partition["train"])
    features_BCHW, label_BHW = kept.batch([2])
    cache = FrameCache(open_dataset("camvid", tiny_world.data_root), (64, 48))
    image_HWC, label_HW = cache.resized(partition["train"][2])
    whole = _whole(start)
    expected_BCHW = whole.encoder(torch.from_numpy(image_HWC[None])).detach().numpy()
    np.testing.assert_allclose(features_BCHW, expected_BCHW, atol=1e-4)
    assert np.array_equal(label_BHW[0], label_HW)


def test_interrupted_pretraining_resumes_to_the_same_start(
    source_scenario: Scenario, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "start"
    with killed_after(2):
        pretrain(source_scenario, folder, resume=False, console=QUIET)
    with pytest.raises(OperatorError, match=r"holds no start \(start.json is missing\).*--resume"):
        Start.load(folder)
    resumed = pretrain(source_scenario, folder, resume=True, console=QUIET)
    assert_same_start(resumed, start)
    monkeypatch.setattr("fleet.run.pretrain.launch", None)
    assert pretrain(source_scenario, folder, resume=True, console=QUIET).spec == resumed.spec


def test_pretraining_sees_all_frames_clearly_whatever_the_fleet(
    source_scenario: Scenario, start: Start, tmp_path: Path
) -> None:
    """One scenario file serves pretraining and fleet."""
    foggy = changed(
        source_scenario,
        vehicles=3,
        conditions={"car-02": "fog:5"},
        algorithm="split",
        adaptation=Adaptation(anchor=1.0, subspace="film"),
    )
    assert_same_start(pretrain(foggy, tmp_path / "start", resume=False, console=QUIET), start)


def test_network_of_the_start_lies_in_a_file_that_verifies_itself(start: Start) -> None:
    tensors, meta = read_tensors(start.folder / "cloud_network.safetensors")
    assert meta == {"network": "compact"}
    assert any(name.endswith("running_var") for name in tensors)


def test_pretraining_from_a_start_is_refused(target_scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="pretraining begins with random weights; remove start"):
        pretrain(target_scenario, tmp_path / "start", resume=False, console=QUIET)


# Cities ----------------------------------------------------------------------------------------------


def test_cities_limit_the_frames_of_vehicles(tiny_world: World) -> None:
    whole = open_dataset("camvid", tiny_world.data_root)
    subset = CitySubset(whole, [TARGET])
    assert {ref.city for ref in subset.refs} == {TARGET}
    assert np.array_equal(subset.load(subset.refs[0]).label_HW, whole.load_label(subset.refs[0]))
    assert np.array_equal(subset.load_image(subset.refs[0]), whole.load_image(subset.refs[0]))
    with pytest.raises(DatasetError, match="no city 'seq9'; it has: seq0, seq1"):
        CitySubset(whole, [TARGET, "seq9"])


def test_city_is_an_option_that_repeats() -> None:
    given: list[Scenario] = []

    @with_scenario_options()
    def command(*, scenario: Scenario) -> None:
        given.append(scenario)

    options = dict.fromkeys(name for name in command.__annotations__ if name != "scenario_file")
    command(scenario_file=None, **{**options, "city": ["a", "b"]})
    command(scenario_file=None, **{**options, "city": []})
    assert [scenario.dataset.cities for scenario in given] == [("a", "b"), None]


def test_rendered_cities_need_not_be_as_many_as_vehicles(source_scenario: Scenario, tmp_path: Path) -> None:
    """Generated frames: pretrained on one city, the fleet goes to another of the same world."""
    data = DatasetPart(root=str(tmp_path / "data"), frames_per_sequence=5, generated_cities=2)
    generated = changed(source_scenario, dataset=data, first_order=FirstOrder(epochs=1, batch_size=4))
    names = sorted({ref.city for ref in _rendered(generated, tmp_path / "look").refs})
    assert len(names) == 2
    first = changed(generated, dataset=msgspec.structs.replace(data, cities=names[:1]))
    made = pretrain(first, tmp_path / "start", resume=False, console=QUIET)
    assert made.spec.cities == (names[0],)
    second = changed(
        generated,
        algorithm="centralized",
        start=str(made.folder),
        dataset=msgspec.structs.replace(data, cities=names[1:]),
    )
    result = run(second, tmp_path / "run")
    assert result["initial_source_miou"] is not None


def _rendered(scenario: Scenario, folder: Path) -> FrameSource:
    return open_data(scenario, folder, QUIET)
