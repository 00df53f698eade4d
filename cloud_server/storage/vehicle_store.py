"""BlackFed v2's memory: each vehicle's best network weights, on disk, the recently used ones also in memory.

A version is a file `<vehicle>/<turn_id>.safetensors` that is never changed afterwards. Which version counts
is said by the checkpoint that holds `references()`: a cloud that is killed and goes back to its last
checkpoint goes back to the versions of then.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cloud_server.storage.checkpoint import CheckpointError, read_tensors, write_tensors
from protocol.session.topics import check_id


@dataclass(frozen=True)
class _Version:
    turn_id: int
    score: float
    weights: dict[str, Tensor]


class VehicleStore:
    """Best weights by vehicle id; not for use by several threads at once."""

    def __init__(self, folder: Path, *, capacity: int = 16) -> None:
        """Start empty, whatever `folder` (created when needed) holds: `restore` says what of it counts.

        Args:
            folder: belongs to this store alone.
            capacity: vehicles whose weights stay in memory.

        Raises:
            ValueError: the capacity is below one.
        """
        if capacity < 1:
            raise ValueError(f"capacity of the vehicle store must be 1 or more, got {capacity}")
        self._folder = folder
        self._capacity = capacity
        self._turn_ids: dict[str, int] = {}
        self._last_committed: dict[str, int] = {}
        self._recent: OrderedDict[str, _Version] = OrderedDict()

    def put(self, vehicle: str, weights: Mapping[str, Tensor], *, score: float, turn_id: int) -> None:
        """Make `weights` the vehicle's best; they are copied to the disk before this returns.

        Args:
            weights: not to be changed by the caller afterwards.
            score: how good they are, finite.
            turn_id: the turn that made them, not negative.

        Raises:
            OSError: the folder is unwritable or the disk full; the weights from before still count.
            ValueError: an invalid vehicle id, score or turn id.
        """
        check_id(vehicle, "vehicle id")
        if turn_id < 0 or not math.isfinite(score):
            raise ValueError(f"turn id must be 0 or more and score finite, got {turn_id} and {score}")
        path = self._path(vehicle, turn_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, weights, {"vehicle": vehicle, "turn_id": turn_id, "score": score})
        self._turn_ids[vehicle] = turn_id
        self._remember(vehicle, _Version(turn_id, score, dict(weights)))

    def get(self, vehicle: str) -> dict[str, Tensor] | None:
        """Return the vehicle's best weights, not to be changed, or None where it has none.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        version = self._version(vehicle)
        return None if version is None else version.weights

    def score(self, vehicle: str) -> float | None:
        """Return the score of the vehicle's best weights, or None where it has none.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        version = self._version(vehicle)
        return None if version is None else version.score

    def references(self) -> dict[str, int]:
        """Return the turn id of each vehicle's best weights: what a checkpoint must hold."""
        return dict(self._turn_ids)

    def restore(self, references: Mapping[str, int]) -> None:
        """Go back to the versions of a checkpoint; later ones count no more.

        Raises:
            CheckpointError: the file of a version is missing; nothing is changed then.
            ValueError: an invalid vehicle id.
        """
        for vehicle, turn_id in references.items():
            path = self._path(check_id(vehicle, "vehicle id"), turn_id)
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, which the checkpoint names as {vehicle}'s weights")
        self._turn_ids = dict(references)
        self._last_committed = dict(references)
        self._recent.clear()

    def prune(self) -> None:
        """Say that a checkpoint with the present `references()` is on disk; delete what none needs.

        The versions of the checkpoint before it stay, because that one is kept to fall back on.
        """
        needed = {
            self._path(vehicle, turn_id)
            for references in (self._turn_ids, self._last_committed)
            for vehicle, turn_id in references.items()
        }
        # Names that begin with a dot are what a killed process left of an unfinished file.
        for path in [*self._folder.glob("*/*.safetensors"), *self._folder.glob("*/.*.tmp")]:
            if path not in needed:
                path.unlink(missing_ok=True)
        self._last_committed = dict(self._turn_ids)

    def _version(self, vehicle: str) -> _Version | None:
        turn_id = self._turn_ids.get(vehicle)
        if turn_id is None:
            return None
        version = self._recent.get(vehicle)
        if version is None:
            version = self._read(vehicle, turn_id)
        self._remember(vehicle, version)
        return version

    def _read(self, vehicle: str, turn_id: int) -> _Version:
        path = self._path(vehicle, turn_id)
        try:
            weights, meta = read_tensors(path)
        except FileNotFoundError as exc:
            raise CheckpointError(f"{path} is missing, the best weights of vehicle {vehicle}") from exc
        if (meta.get("vehicle"), meta.get("turn_id")) != (vehicle, turn_id):
            raise CheckpointError(f"{path} holds other weights than those of {vehicle} in turn {turn_id}")
        return _Version(turn_id, float(meta["score"]), weights)

    def _remember(self, vehicle: str, version: _Version) -> None:
        self._recent[vehicle] = version
        self._recent.move_to_end(vehicle)
        while len(self._recent) > self._capacity:
            self._recent.popitem(last=False)

    def _path(self, vehicle: str, turn_id: int) -> Path:
        return self._folder / vehicle / f"{turn_id}.safetensors"
