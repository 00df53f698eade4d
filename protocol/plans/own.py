"""Somebody else's way of learning: `package.module:name` on the vehicle, and what is said for it.

A cloud must never make a vehicle import code of the cloud's choice: the plan only names it, and a vehicle
takes it if its own operator has allowed that very name.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.base import Answer, Request
from protocol.doors import MOST_CHARACTERS
from protocol.plans.checks import Plan, Way

Setting = str | int | float | bool | None
Target = Annotated[str, Meta(max_length=MOST_CHARACTERS)]


class OwnSettings(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of what is not ours; each brings a struct of its own that checks them."""

    section = "own"

    algorithm: dict[str, Setting] = msgspec.field(default_factory=dict)
    """Of an `algorithm` that is `package.module:name`."""
    estimator: dict[str, Setting] = msgspec.field(default_factory=dict)
    """Of a `zeroth_order.estimator` that is."""


class OwnPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="own"):
    """Learn as somebody else's estimator or learner says, which the vehicle's operator has allowed."""

    target: Target
    """`package.module:name`, as the vehicle imports it."""
    settings: dict[str, Setting] = msgspec.field(default_factory=dict)
    """What its own struct checks, on the vehicle."""


class Ask(Request, frozen=True, array_like=True, kw_only=True, tag="ask"):
    """A question of somebody else's learner to somebody else's algorithm; answered by `Told`."""

    answered_by = "Told"

    kind: Annotated[str, Meta(max_length=MOST_CHARACTERS)]
    """Name of the question's struct."""
    content: bytes
    """That struct in MessagePack."""


class Told(Answer, frozen=True, array_like=True, kw_only=True, tag="told"):
    """The answer to a question of somebody else's learner."""

    content: bytes
    """A struct in MessagePack."""
