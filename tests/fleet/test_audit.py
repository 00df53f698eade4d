"""Attacks on a run: each finds what is planted, and what an audit leaves says what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_fixtures import World
from rich.console import Console

from cloud_server.storage.label_store import LabelStore
from datasets.labels import CAMVID
from evaluation.predictions import prediction_name
from fleet.audit.command import Settings, audit
from fleet.audit.extraction import alike_maps, by_answers, planted_extraction
from fleet.audit.material import Material
from fleet.audit.recognition import drive_by_name
from fleet.audit.reconstruction import Effort, by_gradient, planted_features, planted_gradient
from fleet.audit.scores import MOST_PSNR_DB, auc, psnr, ssim
from fleet.errors import OperatorError
from fleet.model.export import read_ended
from fleet.privacy import PrivacyPart
from fleet.report.audited import read_audit
from fleet.run.launch import launch
from fleet.scenario import DatasetPart, EncoderPart, Scenario
from protocol.errors import SettingError
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan

QUIET = Console(quiet=True)
FEW: dict[str, Any] = {"frames": 2, "shadow_frames": 10, "steps": 4}


@pytest.fixture(scope="module")
def run(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "run"
    scenario = Scenario(
        vehicles=2,
        rounds=2,
        image_size="64x48",
        cores=1,
        broker="memory",
        encoder=EncoderPart(name="stride8-c4", mode="rebuild"),
        dataset=DatasetPart(name="camvid", root=str(tiny_world.data_root)),
        first_order=FirstOrder(epochs=1, batch_size=4),
        local_loss=LocalLossPlan(warm_up_epochs=1, epochs=1),
        privacy=PrivacyPart(names="numbers", decoder_weight=0.1, label_square=8),
    )
    launch(scenario, folder, resume=False, console=QUIET)
    return folder


@pytest.fixture(scope="module")
def material(run: Path) -> Material:
    scenario, _ = read_ended(run)
    return Material(scenario, run, "car-01", frames=2, shadow_frames=14)


def effort(steps: int) -> Effort:
    return Effort(steps=steps, seed=1, progress=lambda done, total: None)


# Scores -----------------------------------------------------------------------------------------------


def flat(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((16, 20, 3), value, np.uint8)


def test_scores_of_flat_pictures_are_those_of_their_formulas() -> None:
    assert psnr(flat(100), flat(110)) == pytest.approx(10 * np.log10(255**2 / 100))
    stable = (0.01 * 255) ** 2
    assert ssim(flat(100), flat(150)) == pytest.approx((2 * 100 * 150 + stable) / (100**2 + 150**2 + stable))
    assert (psnr(flat(7), flat(7)), ssim(flat(7), flat(7))) == (MOST_PSNR_DB, pytest.approx(1))


def test_auc_counts_equals_half() -> None:
    assert auc([3, 2], [1, 2]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert (auc([1], [0]), auc([0], [1]), auc([5, 5], [5])) == (1, 0, 0.5)


# Planted cases: an attack that misses them says nothing of privacy ---------------------------------------


def test_decoder_and_search_find_the_frames_that_features_hold(material: Material) -> None:
    for search, steps in ((False, 70), (True, 60)):
        outcome = planted_features(material, effort(steps), search=search)
        assert outcome.scores.psnr_db > outcome.nothing.psnr_db + 6  # type: ignore[operator]
        assert outcome.scores.psnr_db > 18  # type: ignore[operator]


def test_gradient_of_one_frame_gives_the_frame_back(material: Material) -> None:
    outcome = planted_gradient(material, effort(60))
    assert outcome.scores.psnr_db > outcome.nothing.psnr_db + 10  # type: ignore[operator]


def test_gradient_of_the_run_s_own_networks_can_be_searched(material: Material) -> None:
    outcome = by_gradient(material, effort(2))
    assert outcome.recovered_BHWC is not None
    assert outcome.recovered_BHWC.shape == (2, 48, 64, 3)


def test_answers_of_every_class_give_an_easy_network_away(material: Material) -> None:
    outcome = planted_extraction(material, effort(60))
    assert outcome.scores.agreement > 0.6  # type: ignore[operator]
    assert outcome.nothing.agreement < 0.3  # type: ignore[operator]


def test_the_run_s_own_network_can_be_imitated_with_one_answer_and_with_more(material: Material) -> None:
    for answers in (1, 3):
        outcome = by_answers(material, effort(2), answers=answers)
        assert 0 <= outcome.scores.miou <= outcome.scores.agreement <= 1  # type: ignore[operator]
        assert outcome.bits_a_frame == answers * 8 * 6 * 8


def test_class_maps_are_compared_cell_by_cell_and_class_by_class() -> None:
    theirs = np.array([[[0, 0], [1, 2]]])
    assert alike_maps(np.zeros_like(theirs), theirs).agreement == 0.5
    assert alike_maps(np.zeros_like(theirs), theirs).miou == pytest.approx((0.5 + 0 + 0) / 3)


# Names ------------------------------------------------------------------------------------------------


def test_names_tell_the_drive_unless_frames_are_called_by_numbers(run: Path, material: Material) -> None:
    told = drive_by_name(material, effort(0))
    assert told.scores.top1 == 1 and told.nothing.top1 == pytest.approx(0.5, abs=0.1)
    of_the_cloud = [path for path in (run / "cloud").rglob("*") if path.is_file()]
    assert of_the_cloud and not any(b"seq" in path.read_bytes() for path in of_the_cloud)
    for vehicle, share in material.shares.items():
        predicted = {path.name for path in (run / "predictions" / vehicle).iterdir()}
        assert predicted == {prediction_name(key) for key in share.test}


# An audit -----------------------------------------------------------------------------------------------


def test_audit_keeps_what_is_done_and_ends_in_table_and_report(run: Path) -> None:
    names = ("labels", "membership", "places", "extraction", "decoder-initial", "inversion-trained")
    first = audit(run, Settings(**FEW, attacks=names[:2]), QUIET)
    kept = (run / "audit" / "labels.json").read_bytes()
    found = audit(run, Settings(**FEW, attacks=names), QUIET)
    assert (run / "audit" / "labels.json").read_bytes() == kept
    assert tuple(each for each in found.findings if each.attack in names[:2]) == first.findings
    assert {finding.attack for finding in found.findings} == set(names)
    assert read_audit(run) == found
    by_name = {finding.attack: finding for finding in found.findings}
    assert by_name["extraction"].sees == "loss maps of each frame: 1"
    assert by_name["labels"].scores.psnr_db > by_name["labels"].nothing.psnr_db  # type: ignore[operator]
    assert 0 <= by_name["membership"].scores.auc <= 1  # type: ignore[operator]
    assert by_name["decoder-initial"].bits_a_frame > 0  # type: ignore[operator]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="audit"' in page and "decoder-initial · " in page
    assert (run / "audit" / "audit.json").stat().st_mode & 0o077 == 0


def test_audit_begins_nothing_after_its_time(run: Path) -> None:
    late = audit(run, Settings(**{**FEW, "steps": 3}, minutes=1e-9, attacks=("labels",)), QUIET)
    assert (late.findings, late.left_out) == ((), ("labels",))


def test_what_can_t_be_audited_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no run of"):
        audit(tmp_path, Settings(), QUIET)
    with pytest.raises(OperatorError, match=r"nobody the means for the attack 'names'"):
        audit(run, Settings(attacks=("names",)), QUIET)
    with pytest.raises(OperatorError, match=r"blackfleet gives nobody the means .* 'gradient-one-frame'"):
        audit(run, Settings(attacks=("gradient-one-frame",)), QUIET)
    for wrong in ({"frames": 1}, {"steps": 0}, {"minutes": 0.0}):
        with pytest.raises(SettingError, match=f"--{next(iter(wrong))} must be"):
            Settings(**wrong)  # type: ignore[arg-type]


def test_cloud_is_told_train_labels_in_squares_and_others_as_they_are(run: Path, material: Material) -> None:
    share, train, val = material.shares["car-01"], material.split("train", 99), material.split("val", 99)
    with LabelStore(run / "cloud" / "labels", num_classes=CAMVID.num_classes) as store:
        told_BHW = store.batch("car-01", range(len(share.train) + len(share.val)))
    (coarse_BHW, exact_BHW), places = np.split(told_BHW, [len(train.keys)]), np.arange(0, 48, 8)
    assert (coarse_BHW == coarse_BHW[:, places.repeat(8)]).all() and (train.label_BHW != coarse_BHW).any()
    assert (coarse_BHW == material.told_labels(train)).all() and (exact_BHW == val.label_BHW).all()
