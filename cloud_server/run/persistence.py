"""The run on disk: which stages are committed, and everything the next one builds on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from cloud_server.config import CloudConfig
from cloud_server.desk.ledger import UploadCounts
from cloud_server.desk.registry import Registry
from cloud_server.desk.served import ServedCounts
from cloud_server.desk.versions import UsedVersion
from cloud_server.desk.work import WorkCounts
from cloud_server.errors import CloudError
from cloud_server.schedule import Stage
from cloud_server.storage.checkpoint import CheckpointError, has_checkpoint, load_checkpoint, save_checkpoint
from protocol.errors import BlackfleetError
from protocol.session.clock import REAL_CLOCK, Clock

_FREE_TO_CHANGE = (
    "patience",
    "parallel_turns",
    "commit_every",
    "payload_limit_bytes",
    "public_events",
    "store_capacity",
    "device",
    "serving",
)
"""Settings that a run may go on with others of: they change no result, the device but for rounding."""
_LOOKED_AT = ("rounds",)
"""Settings that a run may go on with others of, where `more_rounds` finds that well defined."""


def config_digest(config: CloudConfig) -> str:
    """Identifies the run that these settings describe."""
    free = (*_FREE_TO_CHANGE, *_LOOKED_AT)
    content = {k: v for k, v in msgspec.to_builtins(config).items() if k not in free}
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


class Lasting(Protocol):
    """What a checkpoint is taken from and put back into: an algorithm."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and moments."""

    def meta(self) -> dict[str, Any]:
        """The rest, as JSON types."""

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Become what `tensors` and `meta` were taken from."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What the latest checkpoint holds."""

    next_stage: int
    rounds: int
    """How many the run was to have when this was committed."""
    last_trained: Mapping[str, int]
    tensors: Mapping[str, torch.Tensor]
    algorithm: Mapping[str, Any]
    vehicles: Mapping[str, Mapping[str, Any]]
    strangers: int
    round: int | None = None
    """Of the last stage that was committed."""
    members: tuple[str, ...] | None = None
    """The vehicles that the stages were numbered for; None, as the round: of an earlier version."""
    simulated: Mapping[str, Any] | None = None
    """What a simulation has kept; None: there is none."""

    def restore(self, algorithm: Lasting, registry: Registry) -> None:
        """Put algorithm and counters back to where they were.

        Raises:
            CloudError: the checkpoint doesn't fit this run's network.
        """
        self.restore_learning(algorithm)
        self._restore_counters(registry)

    def restore_learning(self, algorithm: Lasting) -> None:
        """Put the algorithm back to where it was.

        Raises:
            CloudError: the checkpoint doesn't fit this run's network.
        """
        try:
            algorithm.restore(self.tensors, self.algorithm)
        except (BlackfleetError, msgspec.DecodeError, KeyError, ValueError) as error:
            raise CloudError(f"the checkpoint doesn't fit this run: {error}") from error

    def _restore_counters(self, registry: Registry) -> None:
        registry.strangers += self.strangers
        for vehicle, counters in self.vehicles.items():
            record = registry.vehicles[vehicle]
            record.uplink.update(counters["uplink"])
            record.downlink.update(counters["downlink"])
            record.queries += counters["queries"]
            record.answers_per_frame = counters["answers_per_frame"]
            record.told.answers += counters.get("answers", 0)
            record.repeated_bytes += counters.get("repeated_bytes", 0)
            record.rejects += counters["rejects"]
            record.fleet_bytes.update(counters.get("fleet_bytes", {}))
            record.uploads = msgspec.convert(counters["uploads"], UploadCounts)
            record.versions = msgspec.convert(counters.get("versions", []), tuple[UsedVersion, ...])
            record.update_notes.update(counters.get("update_notes", {}))
            record.work = msgspec.convert(counters.get("work", {"forward_equivalents": None}), WorkCounts)
            record.served = msgspec.convert(counters.get("served", {}), ServedCounts)


class RunState:
    """The checkpoints of one run in `<run folder>/cloud/checkpoints`."""

    def __init__(self, folder: Path, config: CloudConfig, *, resume: bool, clock: Clock = REAL_CLOCK) -> None:
        """Look at what is there.

        Raises:
            CloudError: a run is there and `resume` is false.
            OSError: the folder can't be made.
        """
        self._folder = folder / "checkpoints"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._digest = config_digest(config)
        self._rounds = config.rounds
        self._clock = clock
        self._began = clock.now()
        self._earlier_s = 0.0
        if has_checkpoint(self._folder) and not resume:
            raise CloudError(f"{folder} holds a run already; resume it, or choose another run folder")

    @property
    def has_begun(self) -> bool:
        """Whether anything is committed."""
        return has_checkpoint(self._folder)

    def wall_s(self) -> float:
        """Seconds that this run has taken, in all its processes."""
        return self._earlier_s + self._clock.now() - self._began

    def load(self, *, goes_on: bool = True) -> Committed | None:
        """The latest commit, or None before the first.

        Args:
            goes_on: whether the run is to go on from there, so that its settings must be these; else they
                may be those of an earlier version, with fewer of them.

        Raises:
            CloudError: the checkpoint is damaged, or of a run with other settings.
        """
        if not has_checkpoint(self._folder):
            return None
        try:
            tensors, meta = load_checkpoint(self._folder)
        except (CheckpointError, OSError) as error:
            raise CloudError(str(error)) from error
        if goes_on and meta.get("config") != self._digest:
            raise CloudError(
                f"{self._folder} belongs to a run with other settings; resume with the settings it began with"
            )
        self._earlier_s = meta["wall_s"]
        return Committed(
            next_stage=meta["next_stage"],
            rounds=meta["rounds"],
            last_trained=meta["last_trained"],
            tensors=tensors,
            algorithm=meta["algorithm"],
            vehicles=meta["vehicles"],
            strangers=meta["strangers"],
            round=meta.get("round"),
            members=None if meta.get("members") is None else tuple(meta["members"]),
            simulated=meta.get("simulated"),
        )

    def commit(
        self,
        stage: Stage,
        algorithm: Lasting,
        registry: Registry,
        last_trained: Mapping[str, int],
        members: Sequence[str],
        simulated: Mapping[str, Any] | None = None,
    ) -> None:
        """Make everything up to the end of `stage` permanent; the run's stages are numbered for `members`,
        and `simulated` is what a simulation keeps.

        Raises:
            OSError: the folder is unwritable or the disk is full; the commit before this one stands.
        """
        meta = {
            "config": self._digest,
            "wall_s": self.wall_s(),
            "next_stage": stage.number + 1,
            "round": stage.round,
            "members": list(members),
            "simulated": simulated,
            "rounds": self._rounds,
            "last_trained": dict(last_trained),
            "algorithm": algorithm.meta(),
            "strangers": registry.strangers,
            "vehicles": {
                vehicle: {
                    "uplink": _plain(record.uplink),
                    "downlink": _plain(record.downlink),
                    "queries": record.queries,
                    "answers_per_frame": record.answers_per_frame,
                    "answers": record.told.answers,
                    "repeated_bytes": record.repeated_bytes,
                    "rejects": record.rejects,
                    "fleet_bytes": _plain(record.fleet_bytes),
                    "uploads": msgspec.to_builtins(record.uploads),
                    "work": msgspec.to_builtins(record.work),
                    "versions": msgspec.to_builtins(record.versions),
                    "update_notes": dict(record.update_notes),
                    "served": msgspec.to_builtins(record.served),
                }
                for vehicle, record in registry.vehicles.items()
            },
        }
        save_checkpoint(self._folder, algorithm.tensors(), meta)


def _plain(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))
