"""Learning against a decoder on the vehicle: its gradient, and what its turns leave to each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fleet_fixtures import IMAGE_SIZE, World
from numpy.typing import NDArray
from torch.nn import functional

from datasets.labels import CAMVID
from edge_client.encoder.bundle import EncoderBundle
from edge_client.errors import VehicleError
from edge_client.learners.opponent import LEAST_ERROR, STEPS, Opponent, shrunk
from edge_client.local.against_decoder import AgainstDecoder
from edge_client.local.head import LocalHead
from edge_client.shared_models import SharedModels
from fleet.export.head_export import export_decoder
from fleet.export.heads import build_head
from protocol.noise import derive_seed

WEIGHT = 0.3


@pytest.fixture(scope="module")
def against(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> AgainstDecoder:
    spec = EncoderBundle.load(tiny_world.bundle).spec
    folder = export_decoder(spec, tmp_path_factory.mktemp("decoder"), width=8, depth=1, seed=3)
    return AgainstDecoder(decoder=LocalHead(folder), weight=WEIGHT)


def batch(against: AgainstDecoder, number: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    random = np.random.default_rng(number)
    features_BCHW = random.standard_normal((2, *against.decoder.spec.feature_shape)).astype(np.float32)
    return features_BCHW, random.integers(0, 256, (2, IMAGE_SIZE[1], IMAGE_SIZE[0], 3), np.uint8)


def test_push_is_the_gradient_of_the_decoder_s_error_after_its_own_steps(against: AgainstDecoder) -> None:
    features_BCHW, image_BHWC = batch(against, 0)
    module = build_head(4, 3, stride=8, width=8, depth=1, seed=derive_seed(3, "decoder"))
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    pixels = torch.from_numpy(image_BHWC).permute(0, 3, 1, 2).float() / 255 - 0.5
    picture = functional.avg_pool2d(pixels, 4)
    assert np.allclose(shrunk(image_BHWC, tuple(picture.shape[2:])), picture, atol=1e-6)
    features = torch.from_numpy(features_BCHW).requires_grad_()
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(functional.mse_loss(module(features), picture))
        optimizer.step()
    error = functional.mse_loss(module(features), picture)
    [expected] = torch.autograd.grad(-WEIGHT * torch.log(error + LEAST_ERROR), [features])
    found = Opponent(against, {}).push(features_BCHW, image_BHWC)
    assert np.abs(found - expected.numpy()).max() < 1e-3 * expected.abs().max().item()


def test_decoder_goes_on_from_turn_to_turn_and_another_one_starts_anew(against: AgainstDecoder) -> None:
    through, first = Opponent(against, {}), Opponent(against, {})
    for each in (through, first):
        each.push(*batch(against, 1))
    second = Opponent(against, first.state())
    assert np.array_equal(through.push(*batch(against, 2)), second.push(*batch(against, 2)))
    foreign = Opponent(against, {"parameters": np.zeros(3, np.float32), "steps": np.ones(1)})
    assert np.array_equal(foreign.push(*batch(against, 1)), Opponent(against, {}).push(*batch(against, 1)))


def test_head_for_labels_is_no_decoder(tiny_world: World) -> None:
    models = SharedModels(CAMVID, provider="cpu", mode="rebuild", threads=1)
    bundle = EncoderBundle.load(tiny_world.bundle)
    assert models.against_decoder(str(tiny_world.local_head), bundle, 0.0) is None
    with pytest.raises(VehicleError, match=r"for camvid and features .* needs one for pictures"):
        models.against_decoder(str(tiny_world.local_head), bundle, 0.1)
