"""Federated averaging: what an average is, what the server makes of it, and who trains when."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from federated_fixtures import ONE_STEP, SGD, FederatedFleet, tiny_module
from fleet_fixtures import CARS, IMAGE_SIZE, World
from supervision import Supervisor

from cloud_server.algorithms.fedavg import (
    drawn_vehicles,
    epoch_rate_shares,
    federated_stages,
)
from cloud_server.config import CloudConfig
from cloud_server.schedule import Kind
from cloud_server.training.averages import LocalUpdate, weighted_average
from cloud_server.training.losses import cross_entropy, downsample_labels
from cloud_server.training.server_optimizers import build_server_optimizer
from datasets.catalog import open_dataset
from datasets.frame import resize_frame
from protocol.codec.weights import WeightsError, WeightTensor, pack, unpack
from protocol.plans.federated import FederatedPlan
from protocol.plans.first_order import FirstOrder


def test_one_step_equals_centralized_sgd_on_the_union(tiny_world: World, tmp_path: Path) -> None:
    """Exact with BatchNorm normalising by fixed statistics: a batch's own differ between vehicles and union.

    Every frame here has the same number of labelled pixels, so that the mean over the pixels of the union is
    the mean of the vehicles' means weighted by frames. The vehicles have different numbers of frames.
    """
    fleet = FederatedFleet(tiny_world, tmp_path, rounds=1, first_order=ONE_STEP, federated=SGD)
    fleet.frames["car-1"]["train"] = fleet.frames["car-1"]["train"][:2]
    Supervisor(fleet).run()
    source = open_dataset("camvid", tiny_world.data_root)
    refs = {ref.key: ref for ref in source.refs}
    frames = [
        resize_frame(source.load(refs[key]), *IMAGE_SIZE)
        for car in CARS
        for key in fleet.frames[car]["train"]
    ]
    assert len(frames) == 8
    module = tiny_module().eval()
    logits = module(torch.from_numpy(np.stack([frame.image_HWC for frame in frames])))
    label_BHW = torch.from_numpy(np.stack([frame.label_HW for frame in frames]))
    small_Bhw = downsample_labels(label_BHW, logits.shape[-2:])
    assert len({int((label != 255).sum()) for label in small_Bhw}) == 1
    cross_entropy(logits, small_Bhw).backward()
    moved = 0.0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        expected = (parameter - ONE_STEP.rate * parameter.grad).detach().numpy()
        np.testing.assert_allclose(fleet.weights()[name], expected, rtol=0, atol=1e-5, err_msg=name)
        moved = max(moved, float(parameter.grad.abs().max()) * ONE_STEP.rate)
    assert moved > 1e-3


def test_average_is_weighted_by_samples() -> None:
    updates = [
        LocalUpdate(samples=samples, loss=0.0, weights={"w": np.full((2, 2), value, np.float32)})
        for samples, value in ((1, 0.0), (3, 4.0), (4, 10.0))
    ]
    assert np.array_equal(weighted_average(updates)["w"], np.full((2, 2), (3 * 4 + 4 * 10) / 8))


def test_server_momentum_is_that_of_torch() -> None:
    optimizer = build_server_optimizer(
        FederatedPlan(server_optimizer="momentum", server_rate=0.5, server_momentum=0.8)
    )
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    reference = torch.optim.SGD([parameter], lr=0.5, momentum=0.8)
    ours = np.zeros(3)
    for gradient in _gradients():
        parameter.grad = torch.from_numpy(gradient)
        reference.step()
        ours = ours - optimizer.step({"w": gradient})["w"]
        np.testing.assert_allclose(ours, parameter.detach().numpy(), atol=1e-12)


def test_server_adam_is_that_of_torch_without_bias_correction() -> None:
    """torch's Adam divides both moments by 1 − βᵗ: a rate and an ε for each step undo that."""
    rate, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-3
    optimizer = build_server_optimizer(
        FederatedPlan(
            server_optimizer="adam",
            server_rate=rate,
            server_momentum=beta1,
            server_beta2=beta2,
            server_adaptivity=tau,
        )
    )
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    reference = torch.optim.Adam([parameter], betas=(beta1, beta2))
    ours = np.zeros(3)
    for step, gradient in enumerate(_gradients(), start=1):
        root = math.sqrt(1 - beta2**step)
        reference.param_groups[0].update(lr=rate * (1 - beta1**step) / root, eps=tau / root)
        parameter.grad = torch.from_numpy(gradient)
        reference.step()
        ours = ours - optimizer.step({"w": gradient})["w"]
        np.testing.assert_allclose(ours, parameter.detach().numpy(), atol=1e-12)


def _gradients() -> list[np.ndarray]:
    return list(np.random.default_rng(1).normal(size=(4, 3)))


def _config(**changes: Any) -> CloudConfig:
    cars = tuple(f"car-{number}" for number in range(10))
    return CloudConfig(**{"fleet": "f", "vehicles": cars, "algorithm": "fedavg", "rounds": 6, **changes})


def test_drawn_vehicles_follow_from_the_seed() -> None:
    config = _config(federated=FederatedPlan(client_fraction=0.3))
    draws = [drawn_vehicles(config, number) for number in range(1, 7)]
    assert draws == [drawn_vehicles(config, number) for number in range(1, 7)]
    assert all(len(set(draw)) == 3 and set(draw) <= set(config.vehicles) for draw in draws)
    assert len(set(draws)) > 1
    other = msgspec.structs.replace(config, seed=1)
    assert draws != [drawn_vehicles(other, number) for number in range(1, 7)]


def test_stages_evaluate_everyone_and_train_the_drawn() -> None:
    config = _config(federated=FederatedPlan(client_fraction=0.01, deadline_s=5.0))
    first, *rounds, last = federated_stages(config)
    assert (first.kind, last.kind) == (Kind.INITIAL, Kind.FINAL)
    assert first.vehicles == last.vehicles == config.vehicles
    assert [len(stage.vehicles) for stage in rounds] == [1] * 6
    assert all(stage.deadline_s == 5.0 for stage in federated_stages(config))


def test_rates_follow_the_schedule_over_all_rounds() -> None:
    config = _config(first_order=FirstOrder(epochs=2, rate=1.0, schedule="cosine"))
    rates = [rate for number in range(1, 7) for rate in epoch_rate_shares(config, number)]
    expected = [0.5 * (1 + math.cos(math.pi * (epoch + 0.5) / 12)) for epoch in range(12)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "shape", "data", "message"),
    [
        ("b", (2,), np.ones(2, "<f4").tobytes(), "hold 'b', which this network has not"),
        ("a", (1, 2), np.ones(2, "<f4").tobytes(), r"shape \(1, 2\), expected \(2,\)"),
        ("a", (2,), b"1234", "4 bytes, expected 8"),
        ("a", (2,), np.array([1, np.nan], "<f4").tobytes(), "'a' hold NaN or infinity"),
        (
            "a",
            (2,),
            np.array([1, -1e30], "<f4").tobytes(),
            r"'a' hold numbers up to 1e\+30, 1e\+06 is the most",
        ),
    ],
    ids=["name", "shape", "size", "nan", "huge"],
)
def test_unpack_refuses(name: str, shape: tuple[int, ...], data: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        unpack([WeightTensor(name, shape, data)], {"a": (2,)})


def test_unpack_refuses_missing_and_double_tensors() -> None:
    tensors = pack({"a": np.zeros(2, np.float32)})
    with pytest.raises(WeightsError, match=r"lack 'b' \(1 of 2 tensors missing\)"):
        unpack(tensors, {"a": (2,), "b": ()})
    with pytest.raises(WeightsError, match="hold 'a' twice"):
        unpack(tensors * 2, {"a": (2,)})
