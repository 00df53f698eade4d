"""Layers that never learn: one pass a picture, the features and gradients of the whole encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fleet.export.coordinates import Coordinates
from fleet.export.modules import ModuleEncoder
from fleet.run.frozen_layers import FrozenLayers, frozen_layers
from fleet.run.joint_network import JointNetwork

SIDE = 16


class Small(nn.Module):
    """Two convolutions, counted, and a projection; with `tail`, something stands behind it."""

    def __init__(self, *, tail: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1)
        )
        self.projection = nn.Conv2d(5, 4, 1)
        self.tail = nn.ReLU() if tail else nn.Identity()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.tail(self.projection(self.body(image_BCHW)))
        return features_BCHW


def an_encoder(*, tail: bool = False) -> ModuleEncoder:
    encoder = ModuleEncoder(lambda: Small(tail=tail))
    encoder.initialise(0)
    return encoder.folded()


def pictures(count: int, *, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=draw).float()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures of each pass through an encoder."""
    seen: list[int] = []
    forward = ModuleEncoder.forward

    def counted(self: ModuleEncoder, image_BHWC: Tensor) -> Tensor:
        seen.append(len(image_BHWC))
        return forward(self, image_BHWC)

    monkeypatch.setattr(ModuleEncoder, "forward", counted)
    return seen


def loss_and_gradient(joint: JointNetwork, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    assert joint.coordinates is not None
    loss = joint(image_BCHW).square().mean()
    [gradient] = torch.autograd.grad(loss, [joint.coordinates.phi])
    return loss.detach(), gradient


def test_features_and_gradients_are_the_whole_encoder_s() -> None:
    network = nn.Conv2d(4, 3, 1)
    joints = []
    for remembers in (False, True):
        encoder = an_encoder()
        frozen = frozen_layers(encoder, "projection") if remembers else None
        assert (frozen is not None) == remembers
        joints.append(JointNetwork(encoder, network, Coordinates(encoder, "projection", name="x"), frozen))
        with torch.no_grad():
            joints[-1].coordinates.phi += 0.1  # type: ignore[union-attr]
    for image_BCHW in (pictures(3), pictures(3), pictures(2, seed=5)):
        for expected, found in zip(*(loss_and_gradient(joint, image_BCHW) for joint in joints), strict=True):
            torch.testing.assert_close(found, expected)


def test_each_picture_goes_through_once_and_by_itself(passes: list[int]) -> None:
    frozen = FrozenLayers(an_encoder())
    image_BHWC = pictures(4).permute(0, 2, 3, 1)
    alone = torch.cat([frozen(image_1HWC) for image_1HWC in image_BHWC.split(1)])
    passes.clear()
    assert torch.equal(frozen(image_BHWC.flip(0)), alone.flip(0))
    assert passes == []
    frozen(pictures(2, seed=9).permute(0, 2, 3, 1))
    assert passes == [1, 1]


def test_memory_is_bounded_and_the_one_wanted_longest_ago_goes_first(passes: list[int]) -> None:
    one = 5 * (SIDE // 2) ** 2 * 4  # bytes of float32 (5, 8, 8)
    frozen = FrozenLayers(an_encoder(), most_bytes=2 * one)
    a, b, c = pictures(3).permute(0, 2, 3, 1).split(1)
    for image_1HWC, missed in ((a, 1), (b, 1), (a, 0), (c, 1), (a, 0), (b, 1)):
        passes.clear()
        frozen(image_1HWC)
        assert sum(passes) == missed


@pytest.mark.parametrize(("tail", "subspace"), [(True, "projection"), (False, "projection+film")])
def test_nothing_is_remembered_where_more_than_the_projection_is_between(tail: bool, subspace: str) -> None:
    assert frozen_layers(an_encoder(tail=tail), subspace) is None
