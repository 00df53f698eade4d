"""Attacks that end in pictures.

Legend: B frames, C feature channels, h w feature rows and columns, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets.labels import VOID
from fleet.audit.decoder import train_decoder
from fleet.audit.gradients import gradient_of, invert_gradient
from fleet.audit.inversion import invert
from fleet.audit.material import UNROUNDED, Frames, Material, Progress
from fleet.audit.scores import psnr, ssim
from fleet.report.audited import Scores
from protocol.codec.labels import encode_label
from protocol.plans.coding import Coding

Pixels = NDArray[np.uint8]

SMOOTHNESS = (1.0, 3.0, 10.0)
"""Weights of the total variation; the attacker takes the best on frames of its own."""
GRADIENT_SMOOTHNESS = 0.1
_PROBED = 2
_PLANTED_STRIDE = 4
_PLANTED_WIDTH, _PLANTED_HEIGHT = 16, 12
_GRADIENT_FRAMES = 2


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an attack has come to."""

    scores: Scores
    nothing: Scores
    frames: int
    bits_a_frame: float | None = None
    recovered_BHWC: Pixels | None = None
    """Of the first frames attacked, at their size."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What an attack may spend."""

    steps: int
    seed: int
    progress: Progress


def alike(recovered_BHWC: Sequence[Pixels] | Pixels, image_BHWC: Sequence[Pixels] | Pixels) -> Scores:
    """Means over frames of PSNR and SSIM."""
    pairs = list(zip(recovered_BHWC, image_BHWC, strict=True))
    return Scores(
        psnr_db=float(np.mean([psnr(one, other) for one, other in pairs])),
        ssim=float(np.mean([ssim(one, other) for one, other in pairs])),
    )


def _recovered(
    material: Material, recovered_BHWC: Pixels, *, bits: float | None, target: Frames | None = None
) -> Outcome:
    image_BHWC = (target or material.target).image_BHWC
    mean_BHWC = [material.shadow.mean_HWC] * len(image_BHWC)
    return Outcome(
        scores=alike(recovered_BHWC, image_BHWC),
        nothing=alike(mean_BHWC, image_BHWC),
        frames=len(image_BHWC),
        bits_a_frame=bits,
        recovered_BHWC=recovered_BHWC,
    )


def paint_labels(material: Material, effort: Effort) -> Outcome:
    """Labels alone, as those of train frames cross: each pixel in the mean colour of its class, of the mean
    frame where the class is void or new to the attacker."""
    shadow, told_BHW = material.shadow, material.told_labels(material.target)
    painted_BHWC = np.stack([shadow.mean_HWC] * len(told_BHW))
    for train_id in np.unique(told_BHW):
        theirs_BHW = shadow.label_BHW == train_id
        if train_id != VOID and theirs_BHW.any():
            colour = shadow.image_BHWC[theirs_BHW].mean(axis=0).round().astype(np.uint8)
            painted_BHWC[told_BHW == train_id] = colour
    bits = 8 * float(np.mean([len(encode_label(label_HW)) for label_HW in told_BHW]))
    return _recovered(material, painted_BHWC, bits=bits)


def by_decoder(
    material: Material, effort: Effort, *, knows: Callable[[Material], nn.Module], coding: Coding
) -> Outcome:
    """A decoder trained on others' frames, and these mirrored, through an encoder that the attacker has."""
    mirrored_BHWC = np.ascontiguousarray(material.shadow.image_BHWC[:, :, ::-1])
    own = knows(material)
    decoder = train_decoder(
        np.concatenate([material.shadow.image_BHWC, mirrored_BHWC]),
        np.concatenate(
            [material.features(own, images, coding) for images in (material.shadow.image_BHWC, mirrored_BHWC)]
        ),
        steps=effort.steps,
        seed=effort.seed,
        progress=effort.progress,
    )
    crossed = material.features(material.trained_encoder, material.target.image_BHWC, coding)
    bits = material.bits_a_frame(material.trained_encoder, material.target.image_BHWC, coding)
    return _recovered(material, decoder.decode(crossed), bits=bits)


def by_inversion(
    material: Material, effort: Effort, *, knows: Callable[[Material], nn.Module], coding: Coding
) -> Outcome:
    """Search through an encoder that the attacker has, as smooth as does best on frames of its own."""
    own, mean_HWC = knows(material), material.shadow.mean_HWC
    probed_BHWC = material.shadow.image_BHWC[:_PROBED]
    probes = material.features(own, probed_BHWC, coding)
    total, done = 2 * effort.steps, 0

    def search(features: NDArray[np.float32], smoothness: float, steps: int) -> Pixels:
        nonlocal done
        before, done = done, done + steps
        return invert(
            own,
            features,
            mean_HWC,
            steps=steps,
            smoothness=smoothness,
            progress=lambda step, _: effort.progress(before + step, total),
        )

    each = max(1, effort.steps // len(SMOOTHNESS))
    reached = {
        weight: alike(search(probes, weight, each), probed_BHWC).psnr_db or 0.0 for weight in SMOOTHNESS
    }
    best = max(reached, key=reached.__getitem__)
    crossed = material.features(material.trained_encoder, material.target.image_BHWC, coding)
    bits = material.bits_a_frame(material.trained_encoder, material.target.image_BHWC, coding)
    return _recovered(material, search(crossed, best, effort.steps), bits=bits)


def by_gradient(material: Material, effort: Effort) -> Outcome:
    """The step that one frame causes by itself, its label known: the worst case, which no turn is."""
    network = material.whole_network()
    few = slice(0, _GRADIENT_FRAMES)
    target = Frames(
        keys=material.target.keys[few],
        image_BHWC=material.target.image_BHWC[few],
        label_BHW=material.target.label_BHW[few],
    )
    recovered = [
        invert_gradient(
            network,
            gradient_of(network, image_HWC, label_HW),
            label_HW,
            material.shadow.mean_HWC,
            steps=effort.steps,
            smoothness=GRADIENT_SMOOTHNESS,
            progress=lambda step, steps, n=number: effort.progress(  # type: ignore[misc]
                n * steps + step, len(target.keys) * steps
            ),
        )
        for number, (image_HWC, label_HW) in enumerate(zip(target.image_BHWC, target.label_BHW, strict=True))
    ]
    bits = 32.0 * sum(parameter.numel() for parameter in network.parameters())
    return _recovered(material, np.stack(recovered), bits=bits, target=target)


# Planted cases: what is to be found is there, so that an attack that finds nothing is a weak one -----------


class _Pixels(nn.Module):
    """An encoder that loses nothing: pixels by their place in each square, float32."""

    def forward(self, image_BHWC: Tensor) -> Tensor:
        pixels_BCHW = image_BHWC.permute(0, 3, 1, 2).float() / 255
        return nn.functional.pixel_unshuffle(pixels_BCHW, _PLANTED_STRIDE)


def planted_features(material: Material, effort: Effort, *, search: bool) -> Outcome:
    """The same decoder, or search, on frames of half the size whose features are their pixels."""
    height, width = (side // 2 // 8 * 8 or 8 for side in material.shadow.image_BHWC.shape[1:3])
    encoder = _Pixels()

    def small(image_BHWC: Pixels) -> Pixels:
        shrunk = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in image_BHWC]
        return np.stack([np.asarray(image, np.uint8) for image in shrunk])

    shadow_BHWC, target_BHWC = small(material.shadow.image_BHWC), small(material.target.image_BHWC)
    mean_HWC = np.asarray(shadow_BHWC.mean(axis=0).round(), np.uint8)
    features, crossed = (
        material.features(encoder, images, UNROUNDED) for images in (shadow_BHWC, target_BHWC)
    )
    if search:
        recovered = invert(
            encoder,
            crossed,
            mean_HWC,
            steps=effort.steps,
            smoothness=0.0,
            progress=effort.progress,
        )
    else:
        recovered = train_decoder(
            shadow_BHWC, features, steps=effort.steps, seed=effort.seed, progress=effort.progress
        ).decode(crossed)
    return Outcome(
        scores=alike(recovered, target_BHWC),
        nothing=alike([mean_HWC] * len(target_BHWC), target_BHWC),
        frames=len(target_BHWC),
        bits_a_frame=material.bits_a_frame(encoder, target_BHWC, UNROUNDED),
    )


class _TinyNetwork(nn.Module):
    """A segmentation network of two convolutions, whose gradient tells nearly all of a small frame."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 24, 5, stride=2, padding=2), nn.Sigmoid(), nn.Conv2d(24, classes, 3, padding=1)
            )

    def forward(self, image_BHWC: Tensor) -> Tensor:
        logits_BKhw: Tensor = self.layers(image_BHWC.permute(0, 3, 1, 2) / 127.5 - 1)
        return logits_BKhw


def planted_gradient(material: Material, effort: Effort) -> Outcome:
    """The same search for one small frame, from the gradient of a network of two convolutions."""
    size_WH = (_PLANTED_WIDTH, _PLANTED_HEIGHT)
    image_HWC = np.asarray(cv2.resize(material.target.image_BHWC[0], size_WH, interpolation=cv2.INTER_AREA))
    label_HW = np.asarray(
        cv2.resize(material.target.label_BHW[0], size_WH, interpolation=cv2.INTER_NEAREST_EXACT)
    )
    mean_HWC = np.asarray(
        cv2.resize(material.shadow.mean_HWC, size_WH, interpolation=cv2.INTER_AREA), np.uint8
    )
    network = _TinyNetwork(int(label_HW[label_HW != VOID].max(initial=0)) + 1, effort.seed)
    recovered_HWC = invert_gradient(
        network,
        gradient_of(network, image_HWC, label_HW),
        label_HW,
        mean_HWC,
        steps=2 * effort.steps,
        smoothness=0.0,
        progress=effort.progress,
    )
    return Outcome(
        scores=alike([recovered_HWC], [image_HWC]), nothing=alike([mean_HWC], [image_HWC]), frames=1
    )
