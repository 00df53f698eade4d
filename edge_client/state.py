"""A vehicle's learnt state on disk: one atomic write after each turn, the last three kept.

A turn counts only when the cloud has committed it. If either side dies before that, the cloud grants the
same turn again and names the turn it builds on; the vehicle then starts from the file of that turn. Hence
two states: the one after the latest turn, and the one before it; a third serves a cloud that goes back to
the checkpoint before a damaged one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_client.errors import StateError
from edge_client.state_files import FolderFiles, StateFiles

_VERSION = 1
_DIGEST_BYTES = 32
_KEPT = 3


@dataclass(frozen=True, kw_only=True)
class VehicleState:
    """What a turn starts from and ends with."""

    theta: NDArray[np.float32]
    """All encoder parameters in one flat vector."""
    optimizer: Mapping[str, NDArray[np.generic]]
    """What the way of learning keeps between turns, by name; empty before the first update."""


def part_of(arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.generic]]:
    """The arrays whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class PackedArray(msgspec.Struct, frozen=True, array_like=True):
    """An array in a file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def pack_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, PackedArray]:
    """Arrays by name, as files hold them; the same for the same arrays."""
    return {
        name: PackedArray(array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())
        for name, array in sorted(arrays.items())
    }


def unpack_arrays(packed: Mapping[str, PackedArray]) -> dict[str, NDArray[np.generic]]:
    """What `pack_arrays` was given.

    Raises:
        ValueError, TypeError: they are none.
    """
    return {
        name: np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)
        for name, array in packed.items()
    }


def state_bytes(state: VehicleState) -> bytes:
    """Everything in a state, the same for the same state."""
    return msgspec.msgpack.encode(pack_arrays({"theta": state.theta, **state.optimizer}))


class _StateFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    version: int
    vehicle: str
    bundle_digest: str
    turn_id: int
    arrays: dict[str, PackedArray]
    head: str = ""
    """Digest of the update that brought the local head; empty: none did."""


TakeOver = Callable[[VehicleState, str, str], "VehicleState | None"]
"""What to go on with after a state of the bundle and the head of these digests; None: they are unknown."""


class StateStore:
    """The states of one vehicle."""

    def __init__(
        self,
        folder: Path,
        *,
        vehicle: str,
        bundle_digest: str,
        head: str = "",
        take_over: TakeOver = lambda state, bundle, head: None,
        files: StateFiles | None = None,
    ) -> None:
        """States in `files`; None: in `folder`, which is made if it is missing.

        `head` is the digest of the update that brought the local head; `take_over` is asked about states of
        another bundle or head.

        Raises:
            OSError: it can't be made or read.
        """
        self._files: StateFiles = FolderFiles(folder) if files is None else files
        self._folder = folder
        self._vehicle = vehicle
        self._bundle_digest = bundle_digest
        self._head = head
        self._take_over = take_over

    @property
    def folder(self) -> Path:
        """The vehicle's own, for what else it keeps; it need not be there."""
        return self._folder

    @property
    def model(self) -> str:
        """Names the bundle and the head that states are of now."""
        return f"{self._bundle_digest} {self._head}"

    def load(self, turn_id: int) -> VehicleState:
        """The state after turn `turn_id`.

        Raises:
            StateError: there is none, it is corrupt, or it belongs to another vehicle or bundle.
        """
        raw, path = self._files.read(turn_id), self._files.name(turn_id)
        if raw is None:
            there = self._files.turns() or "none"
            raise StateError(
                f"{self._folder} holds no state after turn {turn_id} (it has {there}); "
                f"give the vehicle its old state folder back, or start a new run"
            )
        digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise StateError(f"corrupt state file {path}: its checksum is wrong; start a new run")
        try:
            content = msgspec.msgpack.decode(body, type=_StateFile)
            arrays = unpack_arrays(content.arrays)
            theta = arrays.pop("theta")
        except (msgspec.DecodeError, ValueError, TypeError, KeyError) as error:
            raise StateError(f"unreadable state file {path}: {error}; start a new run") from error
        if (content.version, content.turn_id) != (_VERSION, turn_id):
            raise StateError(f"{path} is of format {content.version} and turn {content.turn_id}")
        state: VehicleState | None = VehicleState(theta=theta.astype(np.float32), optimizer=arrays)
        if (content.bundle_digest, content.head) != (self._bundle_digest, self._head):
            assert state is not None
            state = self._take_over(state, content.bundle_digest, content.head)
        if content.vehicle != self._vehicle or state is None:
            raise StateError(
                f"{path} belongs to vehicle {content.vehicle!r} with bundle {content.bundle_digest[:12]}, "
                f"not to {self._vehicle!r} with {self._bundle_digest[:12]}; use a state folder of its own"
            )
        return state

    def newest(self) -> VehicleState | None:
        """The state after the latest turn that can be read; None: there is none."""
        for turn_id in reversed(self._files.turns()):
            try:
                return self.load(turn_id)
            except (StateError, OSError):  # whoever needs that very state is told
                continue
        return None

    def commit(self, turn_id: int, state: VehicleState, *, after_turn: int | None = None) -> None:
        """Save the state after `turn_id` durably, and forget older ones but the last two and all later ones.

        `after_turn` is the turn that this one builds on: the cloud never committed any in between.

        Raises:
            OSError: the folder is full or unwritable; what was saved before stays.
        """
        arrays: dict[str, NDArray[np.generic]] = {"theta": state.theta, **state.optimizer}
        body = msgspec.msgpack.encode(
            _StateFile(
                version=_VERSION,
                vehicle=self._vehicle,
                bundle_digest=self._bundle_digest,
                turn_id=turn_id,
                arrays=pack_arrays(arrays),
                head=self._head,
            )
        )
        self._files.write(turn_id, hashlib.sha256(body).digest() + body)
        turns = self._files.turns()
        base = turn_id if after_turn is None else after_turn
        committed = [turn for turn in turns if turn <= base or turn == turn_id]
        self._files.forget([turn for turn in turns if turn not in committed[-_KEPT:]])
