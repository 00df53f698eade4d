"""What of an encoder never learns, computed once a picture: for training in one place by its projection.

Legend: B frames, H W rows and columns, K channels before the projection, h w feature rows and columns.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor, nn

from fleet.export.encoders import ImageEncoder
from fleet.export.modules import PROJECTION, ModuleEncoder

_MOST_BYTES = 1 << 30
_PROBE_SIDE = 64


class FrozenLayers:
    """All layers before an encoder's projection, with what they made of the latest pictures.

    A picture goes through them by itself: what it becomes does not depend on the batch it came in, so that a
    run that was interrupted goes on with the same bits.
    """

    def __init__(self, encoder: ModuleEncoder, most_bytes: int = _MOST_BYTES) -> None:
        """`most_bytes`: of what is kept; the picture that was wanted longest ago goes first."""
        self._encoder = encoder
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def projection(self) -> nn.Module:
        """The layer behind them, which makes the encoder's features of what they give."""
        return self._encoder.module.get_submodule(PROJECTION)

    def __call__(self, image_BHWC: Tensor) -> Tensor:
        """What the projection takes, float32 (B, K, h, w), without a gradient."""
        return torch.cat([self._remembered(image_1HWC) for image_1HWC in torch.split(image_BHWC, 1)])

    def _remembered(self, image_1HWC: Tensor) -> Tensor:
        pixels = image_1HWC.cpu().contiguous().numpy()
        key = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = before_projection(self._encoder, image_1HWC)[0]
            self._held_bytes += found.nbytes
            while self._held_bytes > self._most_bytes and len(self._known) > 1:
                self._held_bytes -= self._known.popitem(last=False)[1].nbytes
        else:
            self._known.move_to_end(key)
        return found


def frozen_layers(encoder: ImageEncoder, subspace: str) -> FrozenLayers | None:
    """Those of an encoder of which the projection alone learns; None where more of it does, or where more
    than the projection stands between them and the features."""
    if subspace != "projection" or not isinstance(encoder, ModuleEncoder):
        return None
    side = _PROBE_SIDE * encoder.stride
    image_1HWC = torch.arange(side * side * 3).remainder(256).view(1, side, side, 3).float()
    projected, features = before_projection(encoder, image_1HWC)
    with torch.no_grad():
        ends_there = torch.equal(encoder.module.get_submodule(PROJECTION)(projected), features)
    return FrozenLayers(encoder) if ends_there else None


def before_projection(encoder: ModuleEncoder, image_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    """What the projection is given for some pictures, and the encoder's features; without a gradient."""
    given: list[Tensor] = []

    def note(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        given.append(inputs[0])

    handle = encoder.module.get_submodule(PROJECTION).register_forward_pre_hook(note)
    try:
        with torch.no_grad():
            features_BCHW: Tensor = encoder(image_BHWC)
    finally:
        handle.remove()
    return given[0], features_BCHW
