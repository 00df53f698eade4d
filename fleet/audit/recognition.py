"""Attacks that tell frames from one another: which drive one is of, and whether it was trained on.

Legend: B frames, C feature channels, h w feature rows and columns.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from datasets.natural import natural_key
from fleet.audit.gradients import segmentation_loss
from fleet.audit.material import Features, Frames, Material
from fleet.audit.reconstruction import Effort, Outcome
from fleet.audit.scores import auc
from fleet.report.audited import Scores
from protocol.plans.coding import Coding

GALLERY_FRAMES = 150
_MEMBERS = 40
"""Most frames of a split whose losses are compared."""


def drive_by_features(
    material: Material, effort: Effort, *, knows: Callable[[Material], nn.Module], coding: Coding
) -> Outcome:
    """The frame of a gallery, of all drives, whose features are nearest; channels count alike."""
    gallery, drives = material.gallery(GALLERY_FRAMES)
    theirs = material.features(knows(material), gallery.image_BHWC, coding)
    crossed = material.features(material.trained_encoder, material.target.image_BHWC, coding)
    mean = theirs.mean(axis=(0, 2, 3), keepdims=True)
    spread = np.maximum(theirs.std(axis=(0, 2, 3), keepdims=True), 1e-6)

    def flat(features: Features) -> Features:
        return np.asarray(((features - mean) / spread).reshape(len(features), -1), np.float32)

    known = flat(theirs)
    nearest = [int(np.argmin(((known - one) ** 2).sum(axis=1))) for one in flat(crossed)]
    bits = material.bits_a_frame(material.trained_encoder, material.target.image_BHWC, coding)
    return _told(material, [drives[place] for place in nearest], drives, bits)


def drive_by_name(material: Material, effort: Effort) -> Outcome:
    """The frame of the gallery whose name stands next to it in the order of names: of the two, the one that
    begins like it for longer."""
    gallery, drives = material.gallery(GALLERY_FRAMES)
    ordered = sorted(zip(map(natural_key, gallery.keys), gallery.keys, drives, strict=True))
    told = []
    for key in material.target.keys:
        place = bisect.bisect([order for order, _, _ in ordered], natural_key(key))
        beside = ordered[max(0, place - 1) : place + 1]
        alike = [_alike_for(name, key) for _, name, _ in beside]
        told.append(beside[alike.index(max(alike))][2])
    bits = 8 * float(np.mean([len(key.encode()) for key in material.target.keys]))
    return _told(material, told, drives, bits)


def _alike_for(name: str, other: str) -> int:
    """Characters that both begin with."""
    return next((place for place, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), len(name))


def _told(material: Material, told: Sequence[str], drives: Sequence[str], bits: float) -> Outcome:
    true = material.drives(material.target.keys)
    right = [one == other for one, other in zip(told, true, strict=True)]
    chance = [drives.count(drive) / len(drives) for drive in true]
    return Outcome(
        scores=Scores(top1=float(np.mean(right))),
        nothing=Scores(top1=float(np.mean(chance))),
        frames=len(true),
        bits_a_frame=bits,
    )


def membership(material: Material, effort: Effort) -> Outcome:
    """Whether a frame was trained on, by the loss of the network that serves the vehicle: the lower, the more
    likely (Yeom et al., 2018).

    Beside it stands the same for validation against test frames, neither of which was trained on: as far from
    chance as frames of the vehicle's splits differ by themselves.
    """
    train, val, test = (
        _losses(material, material.split(name, _MEMBERS)) for name in ("train", "val", "test")
    )
    return Outcome(
        scores=Scores(auc=auc([-loss for loss in train], [-loss for loss in test])),
        nothing=Scores(auc=auc([-loss for loss in val], [-loss for loss in test])),
        frames=len(train) + len(test),
    )


def _losses(material: Material, frames: Frames) -> list[float]:
    features = material.features(material.trained_encoder, frames.image_BHWC, material.coding)
    with torch.inference_mode():
        return [
            float(
                segmentation_loss(
                    material.served.network(torch.from_numpy(features[place : place + 1])),
                    torch.from_numpy(frames.label_BHW[place : place + 1]),
                )
            )
            for place in range(len(features))
        ]
