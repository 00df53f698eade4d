"""What the project knows of an algorithm besides its code: a row of `cloud_server.algorithms.table`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from cloud_server.algorithms.base import Algorithm, Context
from cloud_server.config import RunSettings
from cloud_server.desk.handlers.visit import Handlers
from protocol.errors import SettingError
from protocol.messages.up import LOCAL_HEAD, WHOLE_NETWORK

A = TypeVar("A", bound=Algorithm)
A_co = TypeVar("A_co", bound=Algorithm, covariant=True)


class BuildsAlgorithm(Protocol[A_co]):
    """Makes an algorithm, in the cloud."""

    def __call__(self, context: Context) -> A_co:
        """`context` is what the server lends to it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an operator brings before the run starts; everyone needs frames."""

    local_head: bool = False
    """Each vehicle has a head by which it learns from its own labels."""
    whole_network: bool = False
    """Each vehicle has the whole network as programs, trains and judges it by itself, and so needs torch; all
    have one encoder."""

    @property
    def equipment(self) -> tuple[str, ...]:
        """What every vehicle must say that it has."""
        wanted = ((LOCAL_HEAD, self.local_head), (WHOLE_NETWORK, self.whole_network))
        return tuple(name for name, is_needed in wanted if is_needed)


def no_handlers(algorithm: Any) -> Handlers:
    """Its turns ask for nothing but what every turn does."""
    return {}


def no_passes(_settings: RunSettings) -> int:
    """Of an algorithm whose vehicles wait for answers, or that doesn't tell."""
    return 0


def several_models(settings: RunSettings) -> bool:
    """Each vehicle may end with a model of its own."""
    return False


def one_model(settings: RunSettings) -> bool:
    """All vehicles of one encoder end with the same model."""
    return True


def any_settings(settings: RunSettings) -> None:
    """There are none that contradict it."""


def nothing_to_say(_settings: RunSettings) -> None:
    """Of an algorithm that heeds all that it is given."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmRow(Generic[A]):
    """One algorithm: how it is built, and its traits, which the cloud and the operator read."""

    name: str
    """What `algorithm` in the settings says."""
    title: str
    """What a person chooses by, in a few words."""
    build: BuildsAlgorithm[A] | None
    """Makes it; None: it needs no fleet, the operator has all frames in one place."""
    handlers: Callable[[A], Handlers]
    """What answers the requests of its turns besides those of every turn, by type: `feedback_handlers`,
    `gradient_handlers`, … of `cloud_server.desk.handlers`, or `no_handlers`."""
    colour: str
    """In charts: `#rrggbb`."""
    needs: Needs = Needs()
    follows_estimator: bool = False
    """Its vehicles learn by `zeroth_order.estimator`, and need what that needs."""
    weights_losses: bool = False
    """Its vehicles weight their own loss by the cloud's loss maps, as `local_loss.weight_power` says."""
    control: str = ""
    """The row that is the same without loss feedback; a comparison runs it, too."""
    moves_encoders: bool = True
    """Vehicles' encoders learn."""
    in_one_piece: bool = False
    """It trains encoder and network as one, on labels alone: neither can stay as it is."""
    may_go_on: bool = False
    """Where rates are constant, a run begins with the very steps of one of fewer rounds: a run that is done
    can get more of them."""
    heeds_views: bool = False
    """Labels of uploaded train frames are looked up by `Context.labels_of`, which knows how augmentation has
    shown them; or none are looked up."""
    shares: tuple[str, ...] = ()
    """What `sharing.encoder` may say besides `none`: ways in which its vehicles can have one encoder."""
    knows_present_frames: bool = False
    """What `present` says is done for its vehicles: statistics of their own, pseudo-labels, the guard."""
    side_by_side: bool = False
    """Vehicles of a round learn side by side, and a round may end without some of them."""
    rounds_overlap: bool = False
    """A vehicle's turn may begin in one round and count in a later one."""
    own_passes: Callable[[RunSettings], int] = no_passes
    """How often a vehicle goes through its train frames by itself in its first round, at least."""
    looks_at_agreement: bool = False
    """What `trust` says is done: a turn that contradicts all others' can be told, and left out."""
    cloud_rests: bool = False
    """The cloud's network does next to nothing during a turn: every core may be a vehicle's."""
    trains_in_turns: bool = False
    """The cloud takes its steps while vehicles are at work, and leaves them cores; otherwise between turns,
    when every core may be its own."""

    ends_with_one_model: Callable[[RunSettings], bool] = several_models
    """Whether vehicles of one encoder all end with the same bits of encoder and network, so that one of them
    speaks for all on a test split."""

    check: Callable[[RunSettings], None] = any_settings
    """Refuses, by a `SettingError`, settings that contradict it."""
    remark: Callable[[RunSettings], str | None] = nothing_to_say
    """What a launch says of settings that it does not heed but another algorithm of a comparison may."""
    settings: type[msgspec.Struct] | None = None
    """What `own.algorithm` in the settings is checked by; None: it takes nothing there."""
    learners: tuple[str, ...] = ()
    """`package.module:name` of learners and estimators that its turns name (`OwnPlan.target`): vehicles of a
    launched fleet are allowed these, besides the estimator that the run names."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.colour):
            raise SettingError(f"an algorithm's colour must be #rrggbb, got {self.colour!r}")
