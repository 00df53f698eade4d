"""Which versions of what it runs a vehicle has finished turns with, and from which turn on."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from protocol.messages import Version


class UsedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One of them; a row of `versions` in `result.json`."""

    kind: str
    name: str
    version: int
    """0: what the vehicle was started with."""
    digest: str
    """Of the update; of what the vehicle was started with, its bundle's, else empty."""
    from_turn: int
    """Number of the first turn that was finished with it."""


def with_turn(
    versions: tuple[UsedVersion, ...],
    turn: int,
    using: Mapping[str, Version],
    *,
    encoder: str,
    bundle_digest: str,
) -> tuple[UsedVersion, ...]:
    """The list after a turn that was finished with the updates `using`, by kind.

    `encoder` and `bundle_digest` are what the vehicle joined with.
    """
    latest = {each.kind: each for each in versions}
    started = {kind: ("", "") for kind in (*latest, *using)} | {"bundle": (encoder, bundle_digest)}
    more = []
    for kind, (name, digest) in started.items():
        now = using.get(kind)
        used = UsedVersion(
            kind=kind,
            name=name if now is None else now.name,
            version=0 if now is None else now.version,
            digest=digest if now is None else now.digest,
            from_turn=turn,
        )
        before = latest.get(kind)
        if before is None or (before.version, before.digest) != (used.version, used.digest):
            more.append(used)
    return (*versions, *more)
