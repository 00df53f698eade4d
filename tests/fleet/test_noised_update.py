"""Clipped and noised updates: how long they are, how much noise they carry, and what that guarantees."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from edge_client.local.noised_update import UpdateNoise, noised
from fleet.errors import OperatorError
from fleet.privacy import PrivacyPart
from fleet.privacy_budget import epsilon
from fleet.run.checks import check_runnable
from fleet.scenario import Scenario
from protocol.errors import SettingError
from protocol.plans.federated import FederatedPlan

BEFORE = {"a": np.zeros((100, 100), np.float32), "b": np.ones(4000, np.float32)}
AFTER = {"a": np.full((100, 100), 3, np.float32), "b": np.full(4000, -2, np.float32)}


def change(noise: float, *, seed: int = 1, clip: float = 2.0) -> dict[str, np.ndarray]:
    sent = noised(AFTER, BEFORE, UpdateNoise(clip=clip, noise=noise, seed=seed), b"turn 1")
    return {name: sent[name].astype(np.float64) - BEFORE[name] for name in BEFORE}


def test_update_is_as_long_as_the_clip_and_its_noise_normal_with_sigma() -> None:
    clean = change(1e-9)
    assert math.sqrt(sum((part**2).sum() for part in clean.values())) == pytest.approx(2, rel=1e-4)
    assert clean["a"][0, 0] > 0 > clean["b"][0]
    assert np.allclose(change(1e-9, clip=1e6)["a"], 3, atol=0.1)
    drawn = np.concatenate([(change(0.5)[name] - clean[name]).ravel() for name in clean])
    assert (drawn.mean(), drawn.std()) == (pytest.approx(0, abs=0.03), pytest.approx(1, abs=0.03))
    assert np.mean(np.abs(drawn) < 1) == pytest.approx(0.683, abs=0.02)
    assert abs(np.corrcoef(drawn[:7000], drawn[7000:])[0, 1]) < 0.05


def test_noise_is_the_same_when_a_turn_is_done_again_and_another_for_other_weights() -> None:
    noise = UpdateNoise(clip=1.0, noise=1.0, seed=5)
    first = noised(AFTER, BEFORE, noise, b"turn 1")
    assert np.array_equal(first["a"], noised(AFTER, BEFORE, noise, b"turn 1")["a"])
    moved = {**BEFORE, "b": BEFORE["b"] + 1}
    assert not np.array_equal(first["a"], noised(AFTER, moved, noise, b"turn 1")["a"])
    # The cloud says what a turn is: from the same weights in another way, the difference must not be clean.
    assert not np.array_equal(first["a"], noised(AFTER, BEFORE, noise, b"turn 2")["a"])
    assert not np.array_equal(
        first["a"], noised(AFTER, BEFORE, UpdateNoise(clip=1.0, noise=1.0, seed=6), b"turn 1")["a"]
    )


def test_accountant_agrees_with_the_bound_of_one_gaussian_mechanism() -> None:
    pytest.importorskip("dp_accounting", reason="no dp-accounting: pip install 'blackfleet[accountant]'")
    one = epsilon(8.0, 1, 1e-5)  # σ of 4 sensitivities
    assert 0 < one <= math.sqrt(2 * math.log(1.25 / 1e-5)) / 4 * 1.05
    assert one < epsilon(8.0, 10, 1e-5) < 10 * one < epsilon(1.0, 10, 1e-5)


def test_what_has_no_guarantee_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = PrivacyPart(update_clip=1.0)
    with pytest.raises(OperatorError, match="update_clip needs vehicles that send weights"):
        check_runnable(Scenario(broker="memory", privacy=noisy))
    with pytest.raises(OperatorError, match=r"federated.statistics.*local.*got 'average'"):
        check_runnable(Scenario(broker="memory", algorithm="fedavg", privacy=noisy))
    coarse = PrivacyPart(label_square=8)
    for algorithm in ("fedavg", "centralized"):
        with pytest.raises(OperatorError, match=rf"label_square needs .* those of {algorithm} don't"):
            check_runnable(Scenario(broker="memory", algorithm=algorithm, privacy=coarse))
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    local = FederatedPlan(statistics="local")
    with pytest.raises(OperatorError, match=r"pip install 'blackfleet\[accountant\]'"):
        check_runnable(Scenario(broker="memory", algorithm="fedavg", privacy=noisy, federated=local))
    for wrong in (
        {"update_clip": 0.0},
        {"update_noise": 0.0},
        {"label_square": 0},
        {"delta": 0.0},
        {"delta": 1.0},
    ):
        with pytest.raises(SettingError, match=f"privacy.{next(iter(wrong))}"):
            PrivacyPart(**wrong)
