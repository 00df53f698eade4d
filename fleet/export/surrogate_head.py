"""Heads that stand for the cloud's network on vehicles: how they begin.

Legend: n frames, B frames of a batch, C channels, H W feature rows and columns, K classes, h w logit rows and
columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cloud_server.training.losses import cross_entropy, downsample_labels
from fleet.export.heads import HeadModule
from protocol.batches import batch_bounds
from protocol.noise import derive_seed, permutation

EPOCHS = 12
"""Passes over the features that the pretraining keeps."""
_BATCH_FRAMES = 8
_RATE = 5e-3


def teach_head(head: HeadModule, features_nCHW: Tensor, label_nHW: Tensor, *, seed: int) -> float:
    """Train a fixed head on labelled features, then settle it on them; returns its last epoch's loss.

    While it trains, normalisation takes the statistics of each batch.

    Args:
        head: freshly initialised.
        features_nCHW: float32, as they arrive in the cloud.
        label_nHW: uint8, 255 where void.
        seed: decides the order.
    """
    size = features_nCHW.shape[-2] * head.enlargement, features_nCHW.shape[-1] * head.enlargement
    label_nhw = downsample_labels(label_nHW, size)
    optimizer = torch.optim.Adam(head.parameters(), lr=_RATE)
    bounds = batch_bounds(len(features_nCHW), _BATCH_FRAMES)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(bounds))
    head.train()
    mean = 0.0
    for epoch in range(EPOCHS):
        order = torch.from_numpy(permutation(derive_seed(seed, "head", epoch), len(features_nCHW)))
        total = 0.0
        for start, stop in bounds:
            batch = order[start:stop]
            loss = cross_entropy(head(features_nCHW[batch]), label_nhw[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        mean = total / len(features_nCHW)
    head.settle(features_nCHW)
    return mean
