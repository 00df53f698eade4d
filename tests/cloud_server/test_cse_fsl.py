"""Local losses with rare uploads, and heads that are aligned to the cloud's gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, TinyFleet, World
from supervision import Supervisor

from datasets.labels import CAMVID
from edge_client.encoder.bundle import EncoderBundle
from edge_client.learners.fsl_sage import Aligned, gradients, misfit
from edge_client.local.head import LocalHead
from edge_client.optimizers import Adam
from fleet.export.head_export import head_for, write_head
from protocol.errors import SettingError
from protocol.plans.cse_fsl import CseFslPlan, uploaded_batches
from protocol.plans.first_order import FirstOrder
from protocol.plans.fsl_sage import FslSagePlan

_EVERY = 3
_PLANS = {"cse_fsl": CseFslPlan(upload_every=_EVERY), "fsl_sage": FslSagePlan(upload_every=_EVERY)}


def _run(world: World, folder: Path, algorithm: str, **changes: Any) -> TinyFleet:
    """Two batches a pass, four a turn."""
    fleet = _fleet(world, folder, algorithm, **changes)
    Supervisor(fleet).run()
    return fleet


def _fleet(world: World, folder: Path, algorithm: str, **changes: Any) -> TinyFleet:
    first = FirstOrder(epochs=2, batch_size=4, rate=5e-3)
    return TinyFleet(world, folder, **{"algorithm": algorithm, "first_order": first, **_PLANS, **changes})


@pytest.mark.parametrize(
    ("batches", "every", "expected"),
    [(7, 3, [2, 5]), (4, 1, [0, 1, 2, 3]), (2, 5, [1]), (1, 1, [0]), (0, 3, [])],
)
def test_every_so_manieth_batch_is_uploaded_but_one_at_least(
    batches: int, every: int, expected: list[int]
) -> None:
    assert list(uploaded_batches(batches, every)) == expected


@pytest.mark.parametrize(
    ("algorithm", "points"),
    [
        ("cse-fsl", {(CARS[0], "smashed", 1), (CARS[1], "judged", 2)}),
        ("fsl-sage", {(CARS[0], "ask-gradient", 2), (CARS[1], "smashed", 2)}),
    ],
)
def test_few_batches_go_up_and_killed_processes_change_nothing(
    algorithm: str, points: set[tuple[str, str, int]], tiny_world: World, tmp_path: Path
) -> None:
    calm = _run(tiny_world, tmp_path / "calm", algorithm)
    result = calm.result()
    frames = [event["frames_seen"] for event in calm.events("curve")]
    assert frames[0] * 2 == frames[1] == result["frames_seen"] <= 2 * 2 * 4, "a batch a turn"
    for entry in result["vehicles"].values():
        down, up = entry["downlink_bytes_by_type"], entry["uplink_bytes_by_type"]
        assert {"smashed", "sendencoder", "labels"} <= set(up)
        assert ("gradient" in down) == ("askgradient" in up) == (algorithm == "fsl-sage")
    assert result["mean_local_miou"] > 2 * result["initial_local_miou"]
    fleet = _fleet(tiny_world, tmp_path / "killed", algorithm)
    Supervisor(fleet).run_with_kills(points)
    assert fleet.fingerprint() == calm.fingerprint()
    assert fleet.scores() == calm.scores()


def test_alignment_descends_the_misfit_of_gradients(tiny_world: World, tmp_path: Path) -> None:
    """Towards another head's, and against a second derivative in torch."""
    spec, random = EncoderBundle.load(tiny_world.bundle).spec, np.random.default_rng(3)
    module = head_for(spec, CAMVID, width=8, depth=1, seed=0, fixed=True)
    features = random.standard_normal((2, *spec.feature_shape)).astype(np.float32)
    module.settle(torch.from_numpy(features))
    head = LocalHead(write_head(module, spec, tmp_path / "head", CAMVID.name))
    label_Bhw = random.integers(0, CAMVID.num_classes, (2, *head.spec.logit_shape[1:]), dtype=np.uint8)
    blank = Aligned(
        features_BCHW=features, label_Bhw=label_Bhw, weight_Bhw=None, gradient_BCHW=np.zeros_like(features)
    )
    spread = np.float32(0.3 * np.abs(head.initial).mean())
    teacher = head.initial + spread * random.standard_normal(head.initial.shape).astype(np.float32)
    answer = replace(blank, gradient_BCHW=gradients(head, teacher, blank, features)[1])
    at = torch.from_numpy(features).requires_grad_()
    loss = torch.nn.functional.cross_entropy(module(at), torch.from_numpy(answer.label_Bhw).long())
    [gradient] = torch.autograd.grad(loss, at, create_graph=True)
    wanted = torch.from_numpy(answer.gradient_BCHW)
    expected = ((gradient - wanted) ** 2).sum() / (wanted**2).sum()
    parts = torch.autograd.grad(expected, list(module.parameters()), allow_unused=True)
    exact = torch.cat(
        [
            torch.zeros(parameter.numel()) if part is None else part.ravel()
            for part, parameter in zip(parts, module.parameters(), strict=True)
        ]
    ).numpy()
    found, slope = misfit(head, head.initial, answer)
    assert found == pytest.approx(expected.item(), rel=1e-3)
    # Not the same: autograd does not see that slopes change at the kinks of ReLU.
    assert slope @ exact / np.linalg.norm(slope) / np.linalg.norm(exact) > 0.7
    psi, adam = head.initial, Adam(3e-3)
    for _ in range(40):
        psi = adam.step(psi, misfit(head, psi, answer)[1])
    assert misfit(head, psi, answer)[0] < found / 3


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingError, match=r"cse_fsl\.upload_every must be at least 1, got 0"):
        CseFslPlan(upload_every=0)
    with pytest.raises(SettingError, match=r"fsl_sage\.gradient_bits must be one of"):
        FslSagePlan(gradient_bits=5)
