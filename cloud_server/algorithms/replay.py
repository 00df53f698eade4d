"""Replay: further first-order steps on features that were uploaded earlier.

What every algorithm with a network in the cloud shares: when a step on uploaded features has been taken,
`first_order.replay_steps` more follow, each on a batch of cached ones with their labels.
Legend: B frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cloud_server.algorithms.base import Context
from cloud_server.desk.turns import Features
from cloud_server.storage.checkpoint import flatten_state, unflatten_state
from cloud_server.training.feature_cache import Content, FeatureCache
from datasets.augment import seen_labels
from protocol.noise import derive_seed

_NAME = "replay"
EVERYONE = ""
"""Names the cache that vehicles share; no vehicle's id."""


class Replay:
    """The caches of one run, and the steps that are taken on them. Without replay steps it does nothing."""

    def __init__(self, context: Context, *, shared: bool = True) -> None:
        """`shared`: one cache for all vehicles; else each has its own, of the same bound."""
        self._context = context
        self._first = context.config.first_order
        self._seed = context.config.seed
        self._shared = shared
        self._caches: dict[str, FeatureCache] = {}
        self._kept: dict[str, Content] = {}

    def keep(self, vehicle: str, train: Features) -> None:
        """Take in what a vehicle has uploaded of its train frames."""
        if self._first.replay_steps:
            self._cache(vehicle).add(vehicle, train.indices, train.features_BCHW, train.views)

    def follow_up(self, vehicle: str, frames: int, *moment: int | str) -> int:
        """Take the steps that follow one on `frames` frames; return how many frames they were on.

        Each is on as many frames, of all vehicles or, where each has its own cache, of this one. `moment`
        tells this call apart from all others of the run.

        Raises:
            DivergedError: a loss is not finite.
        """
        used = 0
        for repetition in range(self._first.replay_steps):
            self._context.check_stop()
            seed = derive_seed(self._seed, "replay", *moment, repetition)
            cache = self._cache(vehicle)
            drawn, features_BCHW = cache.sample(frames, seed)
            labels = self._context.labels
            label_BHW = np.stack([labels.full(owner, index)[1] for owner, index in drawn])
            label_BHW = seen_labels(label_BHW, [cache.view(frame) for frame in drawn])
            self._context.trainer.train_step(features_BCHW, label_BHW)
            used += len(drawn)
        return used

    def forget(self, vehicle: str) -> None:
        """Replay nothing that this vehicle has uploaded so far."""
        for cache in self._caches.values():
            cache.remove(vehicle)

    def begin(self, vehicle: str) -> None:
        """A turn starts, perhaps over again: back to what was kept of the stages before."""
        name = self._name(vehicle)
        if name in self._caches:
            self._caches[name].restore(self._kept.get(name, {}))

    def stage_kept(self) -> None:
        """See `MayWaitForCommit`."""
        self._kept = {name: cache.content() for name, cache in self._caches.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold, besides `meta`; all names begin with /replay."""
        return self._flat()[0]

    def meta(self) -> Any:
        """What a checkpoint must hold, as JSON types."""
        return self._flat()[1]

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Any) -> None:
        """Become what `tensors` and `meta` were taken from."""
        self._caches.clear()
        for name, state in unflatten_state(tensors, meta)[_NAME].items():
            self._caches[name] = self._new_cache()
            self._caches[name].load_state_dict(state)
        self.stage_kept()

    def _flat(self) -> tuple[dict[str, torch.Tensor], Any]:
        return flatten_state(
            {_NAME: {name: self._caches[name].state_dict() for name in sorted(self._caches)}}
        )

    def _cache(self, vehicle: str) -> FeatureCache:
        return self._caches.setdefault(self._name(vehicle), self._new_cache())

    def _name(self, vehicle: str) -> str:
        return EVERYONE if self._shared else vehicle

    def _new_cache(self) -> FeatureCache:
        return FeatureCache(self._first.cache_frames, seed=derive_seed(self._seed, "cache"))
