"""Features that were uploaded for training, kept for further first-order steps: a bounded sample of them.

Legend: n frames in all, B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from datasets.augment import WHOLE, View
from protocol.noise import derive_seed, permutation

Frame = tuple[str, int]
"""Vehicle, and the frame's number on it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    rank: int
    """Drawn from the seed, one for each frame: the lowest stay."""
    features_CHW: NDArray[np.float32]
    view: View
    """What the vehicle saw of the frame."""


Content = Mapping[Frame, _Entry]
"""What a cache held at one moment; never changed."""


class FeatureCache:
    """The newest features of each frame, of at most `capacity` frames.

    A frame that comes again replaces what it had here, which is of an older encoder. Where there have been
    more frames than there is room, a uniform sample without replacement of all frames so far is kept: those
    with the lowest ranks (bottom-k sampling, Cohen and Kaplan, PODC 2007). So the content does not depend on
    the order of arrival, and vehicles have shares by their numbers of frames.
    """

    def __init__(self, capacity: int, *, seed: int) -> None:
        """Start empty.

        Args:
            seed: decides which frames are kept where there are too many.

        Raises:
            ValueError: the capacity is below one.
        """
        if capacity < 1:
            raise ValueError(f"capacity of the feature cache must be 1 frame or more, got {capacity}")
        self._capacity = capacity
        self._seed = seed
        self._entries: dict[Frame, _Entry] = {}
        self._order: list[Frame] | None = None
        """Frames by rank; None where it must be found anew."""

    def __len__(self) -> int:
        """How many frames are here."""
        return len(self._entries)

    def add(
        self,
        vehicle: str,
        indices: Sequence[int],
        features_BCHW: NDArray[np.float32],
        views: Sequence[View] = (),
    ) -> None:
        """Keep copies of the features of these frames, as far as there is room for them.

        Args:
            indices: B frame numbers on the vehicle.
            features_BCHW: float32, of any C, H, W.
            views: what was seen of each frame; none: all of it.
        """
        seen = views or (WHOLE,) * len(indices)
        for index, features_CHW, view in zip(indices, features_BCHW, seen, strict=True):
            known = self._entries.get((vehicle, index))
            rank = known.rank if known else derive_seed(self._seed, "rank", vehicle, index)
            self._entries[vehicle, index] = _Entry(rank, features_CHW.copy(), view)
        excess = len(self._entries) - self._capacity
        if excess > 0:
            for frame in heapq.nlargest(excess, self._entries, key=self._place):
                del self._entries[frame]
        self._order = None

    def remove(self, vehicle: str) -> None:
        """Keep no frame of this vehicle."""
        self._entries = {frame: entry for frame, entry in self._entries.items() if frame[0] != vehicle}
        self._order = None

    def sample(self, count: int, seed: int) -> tuple[tuple[Frame, ...], NDArray[np.float32]]:
        """Draw a batch without replacement: its frames and their features, float32[B, C, H, W].

        All are of one shape, that of a frame drawn from all; B is `count`, or all frames of that shape where
        they are fewer. The draw depends on the seed and on what is here, not on how it came here.

        Raises:
            ValueError: the cache is empty, or the count is below one.
        """
        if not self._entries or count < 1:
            raise ValueError(f"can't draw {count} frames of a cache of {len(self)}")
        if self._order is None:
            self._order = sorted(self._entries, key=self._place)
        drawn = [self._order[position] for position in permutation(seed, len(self._order))]
        shape = self._entries[drawn[0]].features_CHW.shape
        frames = tuple(frame for frame in drawn if self._entries[frame].features_CHW.shape == shape)[:count]
        return frames, np.stack([self._entries[frame].features_CHW for frame in frames])

    def view(self, frame: Frame) -> View:
        """What was seen of a frame that is here."""
        return self._entries[frame].view

    def content(self) -> Content:
        """Return what is here now, for `restore`; no features are copied."""
        return dict(self._entries)

    def restore(self, content: Content) -> None:
        """Go back to what `content` returned."""
        self._entries = dict(content)
        self._order = None

    def state_dict(self) -> list[dict[str, Any]]:
        """Return all that later draws depend on, for `checkpoint.flatten_state`: an entry for each shape of
        features, with n `frames` by rank, their `views` and their `features`, float32[n, C, H, W]."""
        groups: dict[tuple[int, ...], list[Frame]] = {}
        for frame in sorted(self._entries, key=self._place):
            groups.setdefault(self._entries[frame].features_CHW.shape, []).append(frame)
        return [
            {
                "frames": [list(frame) for frame in frames],
                "views": [
                    None if (view := self._entries[frame].view) == WHOLE else msgspec.to_builtins(view)
                    for frame in frames
                ],
                "features": torch.from_numpy(np.stack([self._entries[f].features_CHW for f in frames])),
            }
            for frames in groups.values()
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Become what `state_dict` was taken from, a cache of the same seed and capacity."""
        self._entries.clear()
        self._order = None
        for group in state:
            for (vehicle, index), view, features_CHW in zip(
                group["frames"], group["views"], group["features"].numpy(), strict=True
            ):
                views = [WHOLE if view is None else msgspec.convert(view, View)]
                self.add(vehicle, [index], features_CHW[np.newaxis], views)

    def _place(self, frame: Frame) -> tuple[int, Frame]:
        return self._entries[frame].rank, frame
