"""One encoder for the fleet: what vehicles share of theirs, and what is said for it.

Legend: φ what of an encoder learns, float32 (m,).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.base import Answer, Index, Request
from protocol.codec.weights import WeightTensor
from protocol.plans.checks import Way
from protocol.plans.spsa import SpsaPlan

SHARINGS = ("none", "seeds", "weights")
"""What `sharing.encoder` may name."""
PHI, HEAD = "encoder", "head"
"""Names of what is shared: the way of φ from its start, and all parameters of the local head."""

STEPS_AT_ONCE = 4096

Digest = Annotated[bytes, Meta(max_length=32)]


class Sharing(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether vehicles with the same bundle have one encoder, and how they come to it."""

    section = "sharing"

    encoder: str = "none"
    """`none`: each vehicle's is its own. `weights`: what learns of it crosses the network, up and down; the
    cloud averages it (`blackfleet`), or hands it from turn to turn. `seeds` (BlackFed with `spsa-gc`): every
    vehicle takes every vehicle's steps, told as seeds and losses; no weight crosses."""
    head: bool = False
    """With `weights` and `blackfleet`: the local heads are averaged as well, and cross, too."""
    most_move: float = 10.0
    """What a vehicle sends is left out where it has moved more than so many times as far in its turn as the
    median of the others; with `seeds`, where its losses lie so many times as far apart."""
    deadline_s: float | None = None
    """With `weights` and `blackfleet`: longest that a vehicle may take for a turn, restarts included, before
    the stage goes on without it; it catches up in its next turn. None = the stage waits for everyone."""

    def __post_init__(self) -> None:
        self._one_of(SHARINGS, "encoder")
        self._at_least(1, "most_move")
        self._above(0, "deadline_s")

    @property
    def is_on(self) -> bool:
        """Whether anything is shared."""
        return self.encoder != "none"


class Shared(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """In a turn that begins at the fleet's encoder, which the vehicle fetches."""

    sends: bool
    """Whether it sends, after learning, what it has made of it."""
    head: bool
    """Whether the local head is the fleet's, too."""
    steps: SpsaPlan | None = None
    """How the fleet's steps are taken, where it is these that are fetched; None = φ itself is."""


class FetchEncoder(Request, frozen=True, array_like=True, kw_only=True, tag="fetch-encoder"):
    """What is the fleet's encoder? Answered by `SharedEncoder`."""

    answered_by = "SharedEncoder"

    known: Digest
    """`digest_of` the one that was fetched last; empty = none."""


class SharedEncoder(Answer, frozen=True, array_like=True, kw_only=True, tag="shared-encoder"):
    """What all vehicles with this bundle share."""

    tensors: tuple[WeightTensor, ...] | None
    """`PHI` and, where heads are shared, `HEAD`; empty = nothing is shared yet, every vehicle stands where it
    is; None = the one that is known."""


class SendEncoder(Request, frozen=True, array_like=True, kw_only=True, tag="send-encoder"):
    """What a vehicle has made of the fleet's encoder in this turn, once; answered by `Judged`."""

    answered_by = "Judged"

    tensors: tuple[WeightTensor, ...]
    """Empty where steps are shared: the cloud knows them by the losses that it answered."""


class FetchSteps(Request, frozen=True, array_like=True, kw_only=True, tag="fetch-steps"):
    """Which steps has the fleet taken besides those known? Answered by `Steps`."""

    answered_by = "Steps"

    since: Index
    """How many this vehicle has taken."""


class Steps(Answer, frozen=True, array_like=True, kw_only=True, tag="steps"):
    """Steps of the fleet in their order; at most `STEPS_AT_ONCE`, the others when they are asked for."""

    total: Index
    """How many there are."""
    seeds: bytes
    """uint64 (n,), little endian: what each step's directions were drawn from."""
    losses: bytes
    """float64 (n, 2q), little endian: the answers that each was made of."""


class Judged(Answer, frozen=True, array_like=True, kw_only=True, tag="judged"):
    """Whether what was sent can be the fleet's."""

    taken: bool
    """False: it is left out, and the vehicle goes back to what it fetched."""


def digest_of(tensors: Iterable[WeightTensor]) -> bytes:
    """Identifies what is shared: BLAKE2b with 8 bytes over names and data; empty where there is nothing."""
    digest, is_empty = hashlib.blake2b(digest_size=8), True
    for tensor in tensors:
        digest.update(tensor.name.encode() + b"\0" + tensor.data)
        is_empty = False
    return b"" if is_empty else digest.digest()
