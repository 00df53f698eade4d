"""An encoder in torch of which only a scale and a shift of each output channel learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


class FilmEncoder(nn.Module):
    """φ holds, layer by layer, each channel's scale less one, then each channel's shift."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        # In a tuple: its weights are no parameters of this module.
        self._encoder = (encoder.requires_grad_(False),)
        self._initial = dict(encoder.named_parameters())
        self.phi = nn.Parameter(torch.zeros(sum(len(value) for value in self._initial.values())))

    def forward(self, image_BHWC: Tensor) -> Tensor:
        features_BCHW: Tensor = functional_call(self._encoder[0], self.moved(), (image_BHWC,))
        return features_BCHW

    def moved(self) -> dict[str, Tensor]:
        """The encoder's parameters at φ, by name."""
        pieces = self.phi.split([len(value) for value in self._initial.values()])
        return {
            name: value * (1 + piece.view(-1, 1, 1, 1)) if value.dim() == 4 else value + piece
            for (name, value), piece in zip(self._initial.items(), pieces, strict=True)
        }
