"""A subspace of an encoder in torch: the same φ that vehicles learn, for training in one place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_client.encoder.subspaces import How, check_subspace, learning
from fleet.export.encoders import ImageEncoder


class Coordinates(nn.Module):
    """φ, and the encoder's parameters at φ; see `edge_client.encoder.subspaces.Part`.

    Args:
        encoder: folded, as it starts; its parameters no longer learn by themselves from now on.
        subspace: any but `all`.
        name: the encoder's, for errors.

    Raises:
        SettingError: the encoder has no such subspace.
    """

    phi: Tensor

    def __init__(self, encoder: ImageEncoder, subspace: str, *, name: str) -> None:
        super().__init__()
        check_subspace(subspace, encoder.projection(), encoder=name)
        encoder.requires_grad_(False)
        specs = encoder.parameter_specs()
        names = dict(zip((spec.name for spec in specs), encoder.named_parameters(), strict=True))
        self._parts: list[tuple[str, Tensor, How, bool]] = []
        """Of each parameter that learns: name, start, how, and whether it is a weight. In a list: the starts
        are no state of this module."""
        counts = []
        for spec, how in learning(subspace, specs, encoder.projection()):
            own_name, parameter = names[spec.name]
            self._parts.append((own_name, parameter.detach().clone(), how, spec.kind == "weight"))
            counts.append(parameter.numel() if how == "free" else len(parameter))
        self._counts = counts
        self.phi = nn.Parameter(torch.zeros(sum(counts)))

    def moved(self) -> dict[str, Tensor]:
        """By the encoder's names: what learns, at φ."""
        found = {}
        pieces = torch.split(self.phi, self._counts)
        for (name, start, how, is_weight), piece in zip(self._parts, pieces, strict=True):
            start = start.to(self.phi.device)
            if how == "free":
                found[name] = start + piece.view_as(start)
            else:
                by_channel = piece.view(-1, *[1] * (start.dim() - 1))
                found[name] = start * (1 + by_channel) if is_weight else start + by_channel
        return found
