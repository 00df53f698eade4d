"""The decoder that a vehicle learns against (`edge_client.learners.opponent`)."""

from __future__ import annotations

from dataclasses import dataclass

from edge_client.local.head import LocalHead

PICTURES = "pictures"
"""What stands in a decoder's folder for the labels of a head's."""


@dataclass(frozen=True, kw_only=True)
class AgainstDecoder:
    """What a vehicle learns against."""

    decoder: LocalHead
    """From features to RGB pictures (3, h, w) around 0, a quarter of the frame each way."""
    weight: float
    """λ, of −log of its squared error beside the loss of labels."""
