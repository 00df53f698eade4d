"""Vehicles with pictures and no labels: what is read, what crosses, and what they are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, TinyFleet, World
from supervision import Supervisor
from test_objectives import ACTIVATION, STAYS, Recorder

from cloud_server.errors import CloudError
from datasets.check import check_frames
from datasets.frame import DatasetError
from datasets.labels import CAMVID, VOID
from datasets.readers.folder import DatasetMissing
from datasets.readers.unlabelled import Pictures
from edge_client.host import Host, HostConfig
from protocol.errors import SettingError
from protocol.plans.adaptation import Adaptation

ENTROPY: dict[str, Any] = {
    "algorithm": "blackfed-v2",
    **ACTIVATION,
    "network": STAYS,
    "adaptation": Adaptation(objective="entropy"),
}


class PictureFleet(TinyFleet):
    """A tiny fleet whose vehicles have the pictures of the others, each frame once, and no label file."""

    def __init__(self, world: World, folder: Path, **changes: Any) -> None:
        super().__init__(world, folder, **changes)
        self.pictures = folder / "pictures"
        self.pictures.mkdir(parents=True)
        for path in (world.data_root / "train").iterdir():
            sequence, number = path.stem.split("_")
            (self.pictures / sequence).mkdir(exist_ok=True)
            shutil.copy(path, self.pictures / sequence / f"{number}.png")

    def host(self, *cars: str, **patience: float) -> HostConfig:
        plain = super().host(*cars, **patience)
        return msgspec.structs.replace(
            plain, dataset="pictures", data_root=str(self.pictures), label_space="camvid"
        )


def write_picture(path: Path, brightness: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((6, 8, 3), brightness, np.uint8))


def test_pictures_are_frames_by_drive_and_name_with_void_labels(tmp_path: Path) -> None:
    for name in ("monday/0002.jpg", "monday/0001.PNG", "tuesday/0001.jpeg", "monday/.hidden.png"):
        write_picture(tmp_path / "drives" / name)
    (tmp_path / "drives" / "notes.txt").write_text("rain")
    source = Pictures(tmp_path / "drives", CAMVID)
    assert [ref.key for ref in source.refs] == ["monday_0001", "monday_0002", "tuesday_0001"]
    assert [ref.city for ref in source.refs] == ["monday", "monday", "tuesday"]
    frame = source.load(source.refs[0])
    assert frame.image_HWC.shape == (6, 8, 3)
    assert frame.label_HW.shape == (6, 8)
    assert (frame.label_HW == VOID).all()
    assert np.array_equal(source.load_label(source.refs[0]), frame.label_HW)
    check_frames(source)


def test_pictures_beside_each_other_are_one_drive(tmp_path: Path) -> None:
    write_picture(tmp_path / "drive" / "a.png")
    [ref] = Pictures(tmp_path / "drive", CAMVID).refs
    assert (ref.key, ref.sequence, ref.label_path) == ("drive_a", "drive", None)


def test_folder_without_pictures_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match=r"no pictures in .*: expected \.png or \.jpg"):
        Pictures(tmp_path, CAMVID)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.png", "a/1.jpg"], "two pictures of one name: .*1.jpg and .*1.png"),
        (["a/one two.png"], "name is not made of letters"),
    ],
)
def test_names_that_do_not_work_are_named(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        write_picture(tmp_path / name)
    with pytest.raises(DatasetError, match=message):
        Pictures(tmp_path, CAMVID)


def test_vehicles_without_labels_learn_from_entropy(tiny_world: World, tmp_path: Path) -> None:
    """As the same vehicles with labels do: the same encoders to the bit, and no score but null."""
    recorder = Recorder()
    fleet = PictureFleet(tiny_world, tmp_path / "pictures", **ENTROPY)
    Supervisor(fleet, recorder.bus).run()
    labelled = TinyFleet(tiny_world, tmp_path / "labelled", **ENTROPY)
    Supervisor(labelled).run()
    for car in CARS:
        first, *_, last = [
            event["stage"] for event in fleet.events("turn_done") if event["vehicle"] == car and event["loss"]
        ]
        theta = fleet.states(car).load(last).theta
        assert np.array_equal(theta, labelled.states(car).load(last).theta)
        assert not np.array_equal(theta, fleet.states(car).load(first).theta)
        assert recorder.labelled[car].isdisjoint(fleet_train(fleet, car))
    result = fleet.result()
    assert result["mean_local_miou"] is None
    for car, entry in result["vehicles"].items():
        assert entry["local_miou"] is None
        frames = {split: len(keys) for split, keys in fleet.frames[car].items() if keys}
        assert entry["labels"] == {split: {"none": count} for split, count in frames.items()}
        used = labelled.result()["vehicles"][car]["labels"]
        assert used == {split: {"none" if split == "train" else "files": n} for split, n in frames.items()}
    assert sorted(path.name for path in (fleet.run_folder / "predictions" / CARS[0]).iterdir())


def fleet_train(fleet: TinyFleet, car: str) -> range:
    """A vehicle's train frames come first."""
    return range(len(fleet.frames[car]["train"]))


@pytest.mark.parametrize("algorithm", ["blackfed-v1", "blackfleet", "split", "frozen"])
def test_learning_from_labels_is_refused_before_it_begins(
    algorithm: str, tiny_world: World, tmp_path: Path
) -> None:
    fleet = PictureFleet(tiny_world, tmp_path, algorithm=algorithm)
    with pytest.raises(CloudError, match="this vehicle's frames have no labels, and this run learns from"):
        Supervisor(fleet).run()
    assert fleet.events("committed")[-1]["stage"] == 0


def test_unknown_layout_is_named(tiny_world: World, tmp_path: Path) -> None:
    config = msgspec.structs.replace(TinyFleet(tiny_world, tmp_path).host(CARS[0]), dataset="films")
    with pytest.raises(
        SettingError, match="'films', expected one of: folder, cityscapes, camvid, generated, pictures"
    ):
        Host(config, lambda *_: pytest.fail("must not connect"), None)  # type: ignore[arg-type]
