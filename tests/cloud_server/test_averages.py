"""Averages that some liars can't decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.config import CloudConfig
from cloud_server.run.combinations import check_combination
from cloud_server.training.averages import LocalUpdate, average, negative_variance, weighted_average
from protocol.errors import SettingError
from protocol.plans.federated import FederatedPlan

SHAPES = {"a": (3, 2), "b": (4,)}
NOW = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
numbers = st.floats(-1, 1, width=32)
lies = st.one_of(st.floats(-1e6, 1e6, width=32), numbers)


def update(values: np.ndarray[Any, Any], samples: int = 10) -> LocalUpdate:
    """An update that holds `values`, ten numbers."""
    parts = np.split(values.astype(np.float32), [6])
    weights = {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}
    return LocalUpdate(samples=samples, loss=0.0, weights=weights)


def flat(weights: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.ravel(weights[name]) for name in SHAPES])


@st.composite
def rounds(draw: st.DrawFn) -> tuple[dict[str, LocalUpdate], int]:
    """Honest vehicles, and f liars among 2 f + 1 or more, at any places; and f."""
    liars = draw(st.integers(1, 2))
    honest = draw(st.integers(liars + 1, 4))
    names = draw(
        st.permutations([*(f"car-{k}" for k in range(honest)), *(f"liar-{k}" for k in range(liars))])
    )
    sent = {
        name: update(np.array(draw(st.lists(lies if "liar" in name else numbers, min_size=10, max_size=10))))
        for name in names
    }
    return sent, liars


@given(rounds(), st.sampled_from(["median", "trimmed-mean"]))
def test_no_number_leaves_those_of_the_honest(drawn: tuple[dict[str, LocalUpdate], int], how: str) -> None:
    sent, liars = drawn
    honest = np.array([flat(one.weights) for name, one in sent.items() if "car" in name], np.float64)
    result = flat(average(sent, NOW, FederatedPlan(aggregate=how, liars=liars)).weights)
    assert (result >= honest.min(axis=0) - 1e-9).all() and (result <= honest.max(axis=0) + 1e-9).all()


@given(rounds(), st.floats(1, 3))
def test_nobody_moves_the_average_farther_than_the_bound(
    drawn: tuple[dict[str, LocalUpdate], int], bound: float
) -> None:
    sent, _ = drawn
    lengths = {name: float(np.linalg.norm(flat(one.weights).astype(float))) for name, one in sent.items()}
    most = bound * float(np.median(list(lengths.values())))
    found = average(sent, NOW, FederatedPlan(norm_bound=bound))
    assert np.linalg.norm(flat(found.weights)) <= most * (1 + 1e-5) + 1e-9
    assert set(found.shortened) == {name for name, length in lengths.items() if length > most}


@pytest.mark.parametrize("lie", [1e5, -0.4])
def test_krum_leaves_out_who_is_far_from_all_and_averages_the_others(lie: float) -> None:
    rng = np.random.default_rng(0)
    sent = {f"car-{k}": update(rng.normal(0.5, 0.01, 10), samples=10 + k) for k in range(4)}
    sent = {"liar": update(np.full(10, lie), samples=10**6), **sent}
    found = average(sent, NOW, FederatedPlan(aggregate="krum"))
    assert found.left_out == ("liar",)
    assert np.array_equal(flat(found.weights), flat(weighted_average([sent[f"car-{k}"] for k in range(4)])))


@pytest.mark.parametrize("how", ["average", "median", "trimmed-mean", "krum"])
def test_a_vehicle_alone_is_the_average(how: str) -> None:
    """All others were lost in that round."""
    one = update(np.linspace(0, 1, 10))
    found = average({"car-1": one}, NOW, FederatedPlan(aggregate=how, norm_bound=1.0))
    assert np.array_equal(flat(found.weights), flat(one.weights))
    assert found.left_out == found.shortened == ()


def test_variances_below_nothing_are_found() -> None:
    fine = {"norm.running_mean": np.array([-1.0]), "norm.running_var": np.array([0.0, 2.0])}
    assert negative_variance(fine) == ""
    assert negative_variance({**fine, "norm.running_var": np.array([1.0, -1e-9])}) == "norm.running_var"


@pytest.mark.parametrize(
    ("federated", "vehicles"),
    [
        (FederatedPlan(aggregate="krum", liars=2), 4),
        (FederatedPlan(aggregate="trimmed-mean", client_fraction=0.5), 4),
        (FederatedPlan(aggregate="median"), 2),
    ],
)
def test_an_average_that_liars_would_decide_is_refused(federated: FederatedPlan, vehicles: int) -> None:
    names = tuple(f"car-{number}" for number in range(vehicles))
    config = CloudConfig(fleet="f", vehicles=names, algorithm="fedavg", federated=federated)
    with pytest.raises(SettingError, match=r"bears \d liar\(s\) of at least \d vehicles a round"):
        check_combination(config)
    check_combination(msgspec.structs.replace(config, vehicles=(*names, "one", "two", "three")))
