"""What encoders and networks begin with: a pretrained start, or what some of the fleet's pictures suggest."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge_client.frames import FrameCache
from fleet.export.encoders import ImageEncoder
from fleet.frames.allocation import evenly_spaced, sights
from fleet.run.job import Job

_PICTURES = 32


@runtime_checkable
class BeginsAtPictures(Protocol):
    """An encoder whose first weights come from pictures, without labels."""

    def begin_at(self, image_BHWC: NDArray[np.uint8]) -> None:
        """Take them from these, uint8 RGB."""


def begin(job: Job, encoder: ImageEncoder, network: nn.Module | None = None) -> None:
    """Put the weights that a run begins with into a folded encoder, and into the cloud's network.

    Raises:
        OperatorError: the run's start is of other architectures.
        DatasetError: a picture can't be read.
    """
    if job.start is not None:
        if network is not None:
            job.start.begin(encoder, network)
    elif isinstance(encoder, BeginsAtPictures):
        encoder.begin_at(some_pictures(job))


def some_pictures(job: Job) -> NDArray[np.uint8]:
    """image_BHWC of some train frames, evenly spaced over all vehicles', as those see them."""
    keys = [key for share in job.shares.values() for key in share.train]
    seen_through = sights(job.shares)
    cache = FrameCache(job.source, job.scenario.frame_size)
    chosen = evenly_spaced(keys, _PICTURES)
    pictures = [
        cache.resized(key, sight.sight() if (sight := seen_through.get(key)) else None)[0] for key in chosen
    ]
    return np.stack(pictures)
