"""Ways of allotting frames to vehicles: by place, evenly, or skewed by what the frames show.

Each takes an `Allotment` and returns one list of frames per vehicle, every frame once, with at least
`MIN_FRAMES` for each vehicle. Shapes: N frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from datasets.draws import StableDraws
from datasets.frame import FrameRef
from protocol.errors import SettingError

MIN_FRAMES = 3
"""A vehicle's least number of frames: one each to train, to validate and to test."""

SMALL_SHARE = (10, 45)
"""Least and most frames of a vehicle in FedDrive's setting."""

Frames: TypeAlias = list[FrameRef]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """What is to be allotted, at least `MIN_FRAMES` frames a vehicle, and what methods may use for it."""

    refs: Frames
    """In key order."""
    vehicles: int
    draws: StableDraws
    alpha: float
    """Concentration of the Dirichlet distribution."""
    count_classes: Callable[[], NDArray[np.int64]]
    """Reads the labels and returns the pixels of each class per frame, int64 [N, K]."""


def allot_cities(request: Allotment) -> list[Frames]:
    """Give each vehicle cities of its own; see `_allot_groups`."""
    return _allot_groups(request, lambda ref: ref.city)


def allot_sequences(request: Allotment) -> list[Frames]:
    """Give each vehicle sequences of its own; see `_allot_groups`."""
    return _allot_groups(request, lambda ref: (ref.city, ref.sequence))


def allot_uniform(request: Allotment) -> list[Frames]:
    """Deal the frames one by one in random order: every vehicle sees the same mix of places and classes."""
    refs, vehicles = request.refs, request.vehicles
    shuffled = request.draws.permutation(len(refs))
    return [[refs[i] for i in sorted(shuffled[vehicle::vehicles])] for vehicle in range(vehicles)]


def allot_dirichlet(request: Allotment) -> list[Frames]:
    """Divide the frames of each class among the vehicles by shares drawn from Dirichlet(alpha).

    Hsu, Qi, Brown 2019 (arXiv 1909.06335) and its successors do so with images of one class; here a frame
    counts for its `distinctive_classes`. Small alpha: a class belongs to few vehicles; large alpha: even
    shares. Frames of a class stay in key order, so that neighbours in time tend to stay together.
    """
    class_N = distinctive_classes(request.count_classes())
    owners: list[list[int]] = [[] for _ in range(request.vehicles)]
    for k in np.unique(class_N):
        members = np.flatnonzero(class_N == k)
        bounds = np.cumsum(request.draws.dirichlet(request.alpha, request.vehicles))[:-1]
        cuts = np.rint(bounds * len(members)).astype(np.intp)
        for frames, part in zip(owners, np.split(members, cuts), strict=True):
            frames += part.tolist()
    for poor in owners:
        while len(poor) < MIN_FRAMES:
            poor.append(max(owners, key=len).pop())
    return [[request.refs[i] for i in sorted(frames)] for frames in owners]


def allot_class_imbalance(request: Allotment) -> list[Frames]:
    """Cut the frames, sorted by `distinctive_classes`, into equal runs: few classes stand out in each.

    The label-skewed split of McMahan et al. 2017 (arXiv 1602.05629, "pathological non-IID") with one shard a
    vehicle, rare classes first. FedDrive v2 (arXiv 2309.13336) studies such fleets under this name, with
    lists of frames of its own.
    """
    histogram_NK = request.count_classes()
    class_N = distinctive_classes(histogram_NK)
    rank_K = np.argsort(np.argsort(histogram_NK.sum(axis=0), kind="stable"), kind="stable")
    by_class = [request.refs[i] for i in np.argsort(rank_K[class_N], kind="stable")]
    shares = _cut_evenly(by_class, request.vehicles)
    return [sorted(shares[i]) for i in request.draws.permutation(request.vehicles)]


def allot_small_shares(request: Allotment) -> list[Frames]:
    """Give each vehicle 10 to 45 frames of one city, sizes and frames at random.

    The heterogeneous setting of FedDrive (Fantauzzo et al., IROS 2022, arXiv 2202.13670; v2: 2309.13336),
    whose 146 clients of Cityscapes are so; with other draws than its published lists.

    Raises:
        SettingError: that many vehicles can't have such shares; the message says how many can.
    """
    cities = group_frames(request.refs, lambda ref: ref.city)
    least, most = SMALL_SHARE
    fewest, all_that_fit = ([-(-len(city) // most) for city in cities], [len(c) // least for c in cities])
    poor = next((c for c, low, high in zip(cities, fewest, all_that_fit, strict=True) if low > high), None)
    if poor is not None:
        raise SettingError(
            f"city {poor[0].city} has {len(poor)} frames, which can't be divided into shares of {least} to "
            f"{most}; leave it out (--city), or choose another partition"
        )
    if not sum(fewest) <= request.vehicles <= sum(all_that_fit):
        raise SettingError(
            f"vehicles with {least} to {most} frames of one city each must be {sum(fewest)} to "
            f"{sum(all_that_fit)} for these {len(request.refs)} frames, got {request.vehicles}"
        )
    counts = list(fewest)
    while sum(counts) < request.vehicles:
        open_cities = [i for i in range(len(cities)) if counts[i] < all_that_fit[i]]
        counts[max(open_cities, key=lambda i: len(cities[i]) / counts[i])] += 1
    shares = [
        share
        for city, count in zip(cities, counts, strict=True)
        for share in _cut_at_random(city, count, request)
    ]
    return [shares[i] for i in request.draws.permutation(request.vehicles)]


def _cut_at_random(frames: Frames, count: int, request: Allotment) -> list[Frames]:
    """Divide a city's frames, in random order, into shares of random sizes within `SMALL_SHARE`."""
    least, most = SMALL_SHARE
    sizes = [least] * count
    weights = request.draws.uniform(count)
    for _ in range(len(frames) - least * count):
        # The one that is furthest below its weight, so that sizes spread as the weights do.
        room = [i for i in range(count) if sizes[i] < most]
        sizes[max(room, key=lambda i: weights[i] / (sizes[i] - least + 1))] += 1
    order = request.draws.permutation(len(frames))
    bounds = np.cumsum([0, *sizes])
    return [sorted(frames[i] for i in order[start:stop]) for start, stop in pairwise(bounds)]


def distinctive_classes(histogram_NK: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return for each frame the class whose share is highest above its mean, in standard deviations.

    The plain majority would be road or building in nearly every driving frame.
    """
    share_NK = histogram_NK / np.maximum(histogram_NK.sum(axis=1, keepdims=True), 1)
    deviation_NK = share_NK - share_NK.mean(axis=0)
    spread_K = share_NK.std(axis=0)
    class_N: NDArray[np.intp] = np.argmax(deviation_NK / np.where(spread_K > 0, spread_K, 1.0), axis=1)
    return class_N


def group_frames(refs: Iterable[FrameRef], group_of: Callable[[FrameRef], object]) -> list[Frames]:
    """Return the frames by group, groups in the order of their first frame."""
    groups: dict[object, Frames] = {}
    for ref in refs:
        groups.setdefault(group_of(ref), []).append(ref)
    return list(groups.values())


def _allot_groups(request: Allotment, group_of: Callable[[FrameRef], object]) -> list[Frames]:
    """Give each vehicle whole groups, or a contiguous piece of one where there are more vehicles than groups.

    Whole groups are dealt so that frame counts balance. The largest groups are divided, in proportion to
    their size; a group of fewer than `MIN_FRAMES` frames is never alone. Where groups are too small for all
    that, the frames in key order are cut into equal runs, which may straddle groups. Who gets which share is
    drawn.
    """
    groups = group_frames(request.refs, group_of)
    large = [group for group in groups if len(group) >= MIN_FRAMES]
    small = [group for group in groups if len(group) < MIN_FRAMES]
    if sum(len(group) // MIN_FRAMES for group in large) >= request.vehicles:
        shares = _deal(_divide(large, request.vehicles) + small, request)
    else:
        shares = _cut_evenly(request.refs, request.vehicles)
    return [shares[i] for i in request.draws.permutation(request.vehicles)]


def _divide(groups: list[Frames], least_pieces: int) -> list[Frames]:
    """Divide the groups with the largest pieces until there are enough, none under `MIN_FRAMES` frames."""
    pieces = [1] * len(groups)
    while sum(pieces) < least_pieces:
        divisible = (i for i, group in enumerate(groups) if len(group) >= MIN_FRAMES * (pieces[i] + 1))
        pieces[max(divisible, key=lambda i: (len(groups[i]) / pieces[i], len(groups[i])))] += 1
    return [piece for group, count in zip(groups, pieces, strict=True) for piece in _cut_evenly(group, count)]


def _deal(pieces: list[Frames], request: Allotment) -> list[Frames]:
    """Deal the pieces, largest first, each to the vehicle with the fewest frames so far; ties are drawn."""
    shuffled = [pieces[i] for i in request.draws.permutation(len(pieces))]
    shares: list[Frames] = [[] for _ in range(request.vehicles)]
    for piece in sorted(shuffled, key=len, reverse=True):
        min(shares, key=len).extend(piece)
    return [sorted(share) for share in shares]


def _cut_evenly(frames: Sequence[FrameRef], count: int) -> list[Frames]:
    """Cut a sequence into contiguous runs whose lengths differ by one at most."""
    bounds = [len(frames) * i // count for i in range(count + 1)]
    return [list(frames[start:stop]) for start, stop in pairwise(bounds)]
