"""How far a vehicle's own learning has come in a turn, kept while there is no network.

Whoever does the turn again goes on there, with the bits of one who was never interrupted: what is kept goes
by the digest of all that the learning follows from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from edge_client.spool import digest
from edge_client.state import PackedArray, VehicleState, pack_arrays, unpack_arrays
from edge_client.turn import TurnTools
from edge_client.work import Meter, add, so_far

_NOTED_EVERY_S = 30.0


class _Note(msgspec.Struct, frozen=True, array_like=True):
    losses: list[float]
    arrays: dict[str, PackedArray]
    forwards: int
    ways_back: int
    multiply_adds: int
    is_complete: bool


class Progress:
    """Of one turn's learning, an epoch at a time."""

    def __init__(self, tools: TurnTools, *follows_from: bytes) -> None:
        """`follows_from`: what decides the learning's bits besides the turn."""
        self._tools = tools
        self._name = digest(b"progress", *follows_from)
        self._before = so_far()
        self._noted_at: float | None = None

    def take_up(self) -> tuple[list[float], VehicleState] | None:
        """The mean loss of each epoch that is done, and the state after the last; None: nothing is kept."""
        content = self._tools.spool.get(self._name) if self._tools.spool.pieces else None
        if content is None:
            return None
        note = msgspec.msgpack.decode(content, type=_Note)
        add(
            Meter(
                forwards=note.forwards,
                ways_back=note.ways_back,
                multiply_adds=note.multiply_adds,
                is_complete=note.is_complete,
            )
        )
        arrays = unpack_arrays(note.arrays)
        return note.losses, VehicleState(theta=arrays.pop("theta").astype("float32"), optimizer=arrays)

    def note(self, losses: Sequence[float], state: Callable[[], VehicleState], *, is_end: bool) -> None:
        """So many epochs are done. While there is network nothing is written; what is there at the end is,
        as soon as there is none."""
        done = so_far().minus(self._before)
        if is_end:
            self._tools.make_ahead(self._writing(losses, state(), done))
        elif self._tools.is_away and self._is_due():
            self._write(losses, state(), done)

    def _is_due(self) -> bool:
        now = self._tools.now()
        if self._noted_at is not None and now - self._noted_at < _NOTED_EVERY_S:
            return False
        self._noted_at = now
        return True

    def _writing(self, losses: Sequence[float], state: VehicleState, done: Meter) -> Iterator[None]:
        self._write(losses, state, done)
        yield

    def _write(self, losses: Sequence[float], state: VehicleState, done: Meter) -> None:
        note = _Note(
            losses=list(losses),
            arrays=pack_arrays({"theta": state.theta, **state.optimizer}),
            forwards=done.forwards,
            ways_back=done.ways_back,
            multiply_adds=done.multiply_adds,
            is_complete=done.is_complete,
        )
        self._tools.spool.put(self._name, msgspec.msgpack.encode(note))
