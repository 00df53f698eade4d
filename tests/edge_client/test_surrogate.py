"""The head that stands for the cloud's network: its loss maps, its fit and its estimate, against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cloud_server.training import losses
from datasets.labels import CAMVID, VOID
from edge_client.errors import StateError
from edge_client.estimators.activation import estimator_of
from edge_client.learners.surrogate_head import Answered, Surrogate
from edge_client.local.head import LocalHead
from edge_client.local.loss_maps import judge
from fleet.export.bundle import export_bundle
from fleet.export.head_export import head_for, write_head
from fleet.export.heads import HeadModule
from protocol.noise import derive_seed
from protocol.perturbation import directions, perturb
from protocol.plans.surrogate import SurrogatePlan

RANDOM = np.random.default_rng(11)
FRAMES = 3
MODES = pytest.mark.parametrize("labelled", [True, False], ids=["labels", "entropy"])


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> tuple[HeadModule, LocalHead]:
    folder = tmp_path_factory.mktemp("head")
    spec = export_bundle("stride8-c4", folder / "bundle", image_size=(64, 48), seed=0).spec
    head = head_for(spec, CAMVID, width=6, depth=1, seed=3, fixed=True)
    head.settle(torch.from_numpy(2 + features((8, *spec.feature_shape))))
    return head, LocalHead(write_head(head, spec, folder / "head", CAMVID.name))


def features(shape: tuple[int, ...]) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def labels(size_hw: tuple[int, int]) -> np.ndarray:
    label_Bhw = RANDOM.integers(0, CAMVID.num_classes, (FRAMES, *size_hw)).astype(np.uint8)
    label_Bhw[RANDOM.random(label_Bhw.shape) < 0.2] = VOID
    return label_Bhw


def torch_map(logits: Tensor, label: np.ndarray | None, cells_yx: tuple[int, int]) -> Tensor:
    if label is None:
        return losses.entropy_map(logits, cells_yx)
    return losses.loss_map(logits, torch.from_numpy(label), cells_yx)


def answer(head: LocalHead, plan: SurrogatePlan, *, labelled: bool) -> Answered:
    """What some cloud may have said, with nothing in it that the head could know."""
    features_BCHW = 2 + features((FRAMES, *head.spec.feature_shape))
    activation = estimator_of(plan)
    maps = RANDOM.random((FRAMES, 1 + plan.seeds, *activation.map_size(features_BCHW.shape)))
    return Answered(
        features_BCHW=features_BCHW,
        label_Bhw=labels(head.spec.logit_shape[1:]) if labelled else None,
        perturbations=activation.propose(features_BCHW, 5),
        maps_BMyx=maps.astype(np.float32),
    )


def close(value: np.ndarray, expected: np.ndarray, share: float = 1e-4) -> None:
    np.testing.assert_allclose(value, expected, rtol=0, atol=share * np.abs(expected).max())


@MODES
@pytest.mark.parametrize("cells_yx", [(12, 16), (6, 8), (2, 4)])
def test_map_and_the_way_back_equal_the_clouds(labelled: bool, cells_yx: tuple[int, int]) -> None:
    logits = torch.from_numpy(3 * features((FRAMES, CAMVID.num_classes, 12, 16))).requires_grad_()
    label = labels((12, 16)) if labelled else None
    expected = torch_map(logits, label, cells_yx)
    v = features(tuple(expected.shape))
    expected.backward(torch.from_numpy(v))  # type: ignore[no-untyped-call]
    judged = judge(logits.detach().numpy(), label, cells_yx)
    close(judged.map_Byx, expected.detach().numpy(), 1e-5)
    assert logits.grad is not None
    close(judged.pull_back(v), logits.grad.numpy(), 1e-5)


@MODES
@pytest.mark.parametrize(
    "changes", [{}, {"two_sided": True, "seeds": 3, "map_stride": 2}, {"block": 1}], ids=str
)
def test_fit_and_estimate_equal_autograd(
    labelled: bool, changes: dict[str, Any], module: tuple[HeadModule, LocalHead]
) -> None:
    """The misfit and its gradient at every parameter; without correction, the estimate is the head's own."""
    torch_head, head = module
    plan = SurrogatePlan(**{"scale": 0.3, "correction": 0.0, **changes})
    answered = answer(head, plan, labelled=labelled)
    surrogate = Surrogate(head, plan, estimator_of(plan))
    number = plan.seeds - 1
    proposed = answered.perturbations

    def maps(sign: int, leaf: Tensor) -> Tensor:
        xi = torch.from_numpy(directions(proposed.seeds[number], leaf.shape, plan.block).copy())
        scale = torch.from_numpy(proposed.scale_C)[:, None, None]
        return torch_map(torch_head(leaf + sign * scale * xi), answered.label_Bhw, answered.cells_yx)

    leaf = torch.from_numpy(answered.features_BCHW).requires_grad_()
    clean, plus = maps(0, leaf), maps(1, leaf)
    other = maps(-1, leaf) if plan.two_sided else clean
    told = torch.from_numpy(answered.maps_BMyx)
    misfit = ((clean - told[:, 0]) ** 2).mean() / told[:, 0].var(correction=0)
    misfit = misfit + ((plus - other - told[:, 1 + number]) ** 2).mean() / told[:, 1:].var(correction=0)
    expected = torch.autograd.grad(misfit, list(torch_head.parameters()), retain_graph=True)
    value, gradient = surrogate.misfit(answered, number)
    assert value == pytest.approx(float(misfit.detach()), rel=1e-4)
    close(gradient, torch.cat([part.ravel() for part in expected]).numpy())
    [at_features] = torch.autograd.grad(clean.mean(), leaf)
    close(surrogate.estimate(answered), at_features.numpy())


def test_estimate_has_the_clouds_gradient_as_its_mean_and_less_variance(
    module: tuple[HeadModule, LocalHead],
) -> None:
    """Whatever the head is: here the cloud is the same head, moved a little."""
    _, head = module
    wide = 2 * max(head.spec.feature_shape) + 1
    plan = SurrogatePlan(scale=0.02, two_sided=True, block=1, box_width=wide, correction=1.0)
    activation = estimator_of(plan)
    surrogate = Surrogate(head, plan, activation)
    moved = (1 + 0.1 * RANDOM.standard_normal(head.initial.shape)).astype(np.float32)
    cloud = Surrogate(head, SurrogatePlan(correction=0.0), activation)
    cloud.parameters = head.initial * moved
    asked = answer(head, plan, labelled=True)
    exact = cloud.estimate(asked).astype(np.float64)
    with_head, without = [], []
    for repeat in range(150):
        proposed = activation.propose(asked.features_BCHW, derive_seed("test", repeat))

        def told(sign: int, seed: int = proposed.seeds[0], scale_C: np.ndarray = proposed.scale_C) -> Any:
            at = perturb(asked.features_BCHW, scale_C, seed, sign=sign)
            logits = head.linearise(cloud.parameters, at).logits_BKhw
            return judge(logits, asked.label_Bhw, asked.cells_yx).map_Byx

        maps_BMyx = np.stack([told(1), told(1) - told(-1)], axis=1)
        answered = Answered(
            features_BCHW=asked.features_BCHW,
            label_Bhw=asked.label_Bhw,
            perturbations=proposed,
            maps_BMyx=maps_BMyx,
        )
        with_head.append(surrogate.estimate(answered).astype(np.float64))
        without.append(activation.estimate(maps_BMyx).astype(np.float64))
    error = np.mean(with_head, axis=0) - exact
    standard_error = np.std(with_head, axis=0) / np.sqrt(len(with_head))
    assert np.abs(error / standard_error).max() < 5
    assert np.var(with_head, axis=0).sum() < 0.5 * np.var(without, axis=0).sum()


def test_fit_brings_the_head_to_the_clouds_gradient(module: tuple[HeadModule, LocalHead]) -> None:
    """From the answers alone, about features that it has not been told of."""
    _, head = module
    plan = SurrogatePlan(correction=0.0, fit_rate=5e-3, replay_frames=2 * FRAMES, seeds=2, block=2)
    activation = estimator_of(plan)
    cloud, surrogate = Surrogate(head, plan, activation), Surrogate(head, plan, activation)
    cloud.parameters = head.initial * (1 + 0.5 * features(head.initial.shape))

    def answered(seed: int) -> Answered:
        asked = answer(head, plan, labelled=True)
        clean = judge(
            head.linearise(cloud.parameters, asked.features_BCHW).logits_BKhw,
            asked.label_Bhw,
            asked.cells_yx,
        ).map_Byx
        differences = [cloud._difference(asked, number, clean) for number in range(plan.seeds)]
        maps_BMyx = np.stack([clean, *differences], axis=1)
        return Answered(
            features_BCHW=asked.features_BCHW,
            label_Bhw=asked.label_Bhw,
            perturbations=asked.perturbations,
            maps_BMyx=maps_BMyx,
        )

    def cosine(to: Answered) -> float:
        own, other = surrogate.estimate(to).ravel(), cloud.estimate(to).ravel()
        return float(own @ other / np.sqrt((own @ own) * (other @ other)))

    unseen = answered(99)
    before = cosine(unseen)
    for number in range(40):
        surrogate.fit(answered(number), number)
    assert cosine(unseen) > max(before + 0.1, 0.8)


def test_blocks_share_the_mean_gradient_of_their_features() -> None:
    """Of a loss that is linear in the features: exactly, square by square, also where they are cut."""
    shape = (2, 1, 5, 7)
    slope = features(shape)
    plan = SurrogatePlan(block=3, box_width=15, seeds=64, scale=1.0)
    activation = estimator_of(plan)
    z = features(shape)
    drawn = []
    for repeat in range(40):
        proposed = activation.propose(z, repeat)
        maps = [(slope * z).sum(1)]
        maps += [
            (slope * (perturb(z, proposed.scale_C, seed, block=3) - z)).sum(1) for seed in proposed.seeds
        ]
        drawn.append(activation.estimate(np.stack(maps, axis=1).astype(np.float32)))
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0) / np.sqrt(len(drawn))
    expected = np.empty(shape)
    for rows in (slice(0, 3), slice(3, 5)):
        for columns in (slice(0, 3), slice(3, 6), slice(6, 7)):
            square = slope[:, :, rows, columns].mean(axis=(2, 3), keepdims=True)
            expected[:, :, rows, columns] = square / (2 * 5 * 7)
    assert np.abs((mean - expected) / error).max() < 5


def test_state_goes_on_to_the_bit_and_another_heads_is_refused(module: tuple[HeadModule, LocalHead]) -> None:
    _, head = module
    plan = SurrogatePlan(replay_frames=0)
    answers = [answer(head, plan, labelled=False) for _ in range(3)]
    through, first, second = (Surrogate(head, plan, estimator_of(plan)) for _ in range(3))
    for number, answered in enumerate(answers):
        through.fit(answered, number)
    first.fit(answers[0], 0)
    second.load_state_arrays(first.state_arrays())
    for number, answered in enumerate(answers[1:], start=1):
        second.fit(answered, number)
    assert np.array_equal(second.parameters, through.parameters)
    with pytest.raises(StateError, match="of another head"):
        second.load_state_arrays({"parameters": np.zeros(3, np.float32)})


def test_memory_of_answers_is_bounded_in_frames(module: tuple[HeadModule, LocalHead]) -> None:
    _, head = module
    plan = SurrogatePlan(fit_steps=0, replay_frames=2 * FRAMES + 1)
    surrogate = Surrogate(head, plan, estimator_of(plan))
    for number in range(4):
        surrogate.fit(answer(head, plan, labelled=False), number)
    assert len(surrogate._kept) == 2


def test_written_head_is_that_of_torch_in_evaluation_mode(
    module: tuple[HeadModule, LocalHead], tmp_path: Path
) -> None:
    torch_head, head = module
    z = 2 + features((2, *head.spec.feature_shape))
    expected = torch_head(torch.from_numpy(z)).detach().numpy()
    close(head.linearise(head.initial, z).logits_BKhw, expected, 1e-5)
    close(head.linearise(head.initial, z[:1]).logits_BKhw, expected[:1], 1e-5)
    assert head.spec.normalisation == "fixed"
