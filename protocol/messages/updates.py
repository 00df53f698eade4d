"""Updates of what a vehicle runs: offered by the cloud, fetched by the vehicle, and what became of them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from protocol.base import Id, Message, Step, Text
from protocol.update_file import Kind, Sha256

PART_BYTES = 96 * 1024
"""Of an update in one message: it goes in one publish."""

State = Literal["refused", "trial", "used", "rolled-back"]


class Version(Message, frozen=True, array_like=True, kw_only=True):
    """An update, as people know it, and as it is known for certain."""

    kind: Kind
    name: Id
    version: Step
    digest: Sha256
    """Of the whole container."""


class UpdateOffer(Message, frozen=True, array_like=True, kw_only=True, tag="update-offer"):
    """Cloud → vehicle: there is an update for it."""

    vehicle: Id
    update: Version
    size_bytes: Step


class FetchUpdate(Message, frozen=True, array_like=True, kw_only=True, tag="fetch-update"):
    """Vehicle → cloud: it wants the bytes of an update from `offset` on; answered by `UpdatePart`."""

    vehicle: Id
    digest: Sha256
    offset: Step


class UpdatePart(Message, frozen=True, array_like=True, kw_only=True, tag="update-part"):
    """Cloud → vehicle: some bytes of an update."""

    vehicle: Id
    digest: Sha256
    offset: Step
    data: Annotated[bytes, Meta(max_length=PART_BYTES)]


class UpdateNote(Message, frozen=True, array_like=True, kw_only=True):
    """What has become of an update on a vehicle."""

    update: Version
    state: State
    """`trial`: in use from the next turn on, if that can be finished; `used`: it was."""
    reason: Text = ""


class UpdateNews(Message, frozen=True, array_like=True, kw_only=True, tag="update-news"):
    """Vehicle → cloud: which updates it runs, and what has become of the latest ones; said after each welcome
    where there is any, and when something changes."""

    vehicle: Id
    versions: Annotated[tuple[Version, ...], Meta(max_length=8)]
    notes: Annotated[tuple[UpdateNote, ...], Meta(max_length=32)]
