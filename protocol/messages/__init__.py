"""What the fleet says to the cloud and the cloud to the fleet: typed, versioned structs in MessagePack.

Legend: B frames of a batch, C channels, H W feature rows and columns.

A vehicle drives the conversation inside its turn: each request carries (vehicle, grant, turn_id, step)
and has exactly one answer with the same four. A request that stays unanswered is recalled: the cloud gives
the very answer that it gave before, or says that it has no such request, which then is sent again unchanged.
A `grant` is one attempt at a turn: when either
side has died and the turn starts over, it starts over under a new grant, and whatever the old one left in
flight is refused as stale. What is said for one way of learning alone is with its plan in `protocol.plans`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, Union

from protocol.base import (
    DEFAULT_LIMIT_BYTES,
    EPOCHS_LIMIT,
    PROTOCOL_VERSION,
    SPLITS,
    Answer,
    Request,
    RequestIdentity,
    Turned,
)
from protocol.codec.tensor import EncodedTensor
from protocol.codec.weights import WeightTensor
from protocol.messages.down import Ack, Finish, LabelWant, Reject, Resend, Welcome
from protocol.messages.events import Happened, Past
from protocol.messages.serving import ClassMap, Seen, Serving, WantServing
from protocol.messages.status import Health, Status
from protocol.messages.turn import Turn
from protocol.messages.up import (
    Hello,
    LabelOffer,
    Labels,
    OfferedLabel,
    Recall,
    TurnDone,
    TurnFailed,
    Upload,
    Work,
)
from protocol.messages.updates import FetchUpdate, UpdateNews, UpdateNote, UpdateOffer, UpdatePart, Version
from protocol.plans import Learner
from protocol.plans.activation import ActivationPlan, LossMaps, SeededQuery
from protocol.plans.adaptation import Adaptation
from protocol.plans.augmentation import Augmentation
from protocol.plans.checks import MOST_SEEDS, LossMapPlan
from protocol.plans.coding import Coding
from protocol.plans.cse_fsl import CseFslPlan, Smashed
from protocol.plans.federated import FederatedPlan, FetchWeights, SplitScores, Update, Weights
from protocol.plans.first_order import FirstOrder
from protocol.plans.fsl_sage import AskGradient, FslSagePlan
from protocol.plans.local_loss import FetchLossMaps, LocalLossPlan
from protocol.plans.own import Ask, OwnPlan, Told
from protocol.plans.region_spsa import MovedQuery, RegionSpsaPlan
from protocol.plans.sharing import FetchEncoder, FetchSteps, Judged, SendEncoder, Shared, SharedEncoder, Steps
from protocol.plans.spsa import Feedback, Query, SpsaPlan
from protocol.plans.surrogate import SurrogatePlan
from protocol.plans.white_box import Gradient, TrainStep, WhiteBoxPlan

_Kind = TypeVar("_Kind", bound=Turned)


def _kinds(base: type[_Kind]) -> tuple[type[_Kind], ...]:
    """All requests, or all answers: first those of every turn, then those of one way of learning."""
    return tuple(
        sorted(base.__subclasses__(), key=lambda kind: kind.__module__.startswith("protocol.plans."))
    )


if TYPE_CHECKING:
    Up = Hello | Recall | Request | FetchUpdate | UpdateNews
    Down = Welcome | Turn | Answer | Resend | Reject | Finish | UpdateOffer | UpdatePart
else:
    Up = Union[(Hello, Recall, *_kinds(Request), FetchUpdate, UpdateNews)]
    Down = Union[(Welcome, Turn, *_kinds(Answer), Resend, Reject, Finish, UpdateOffer, UpdatePart)]
Events = Happened | Past
Sight = WantServing | Seen
Classes = Serving | ClassMap | Reject

__all__ = [
    "DEFAULT_LIMIT_BYTES",
    "EPOCHS_LIMIT",
    "MOST_SEEDS",
    "PROTOCOL_VERSION",
    "SPLITS",
    "Ack",
    "ActivationPlan",
    "Adaptation",
    "Answer",
    "Ask",
    "AskGradient",
    "Augmentation",
    "ClassMap",
    "Classes",
    "Coding",
    "CseFslPlan",
    "Down",
    "EncodedTensor",
    "Events",
    "FederatedPlan",
    "Feedback",
    "FetchEncoder",
    "FetchLossMaps",
    "FetchSteps",
    "FetchUpdate",
    "FetchWeights",
    "Finish",
    "FirstOrder",
    "FslSagePlan",
    "Gradient",
    "Happened",
    "Health",
    "Hello",
    "Judged",
    "LabelOffer",
    "LabelWant",
    "Labels",
    "Learner",
    "LocalLossPlan",
    "LossMapPlan",
    "LossMaps",
    "MovedQuery",
    "OfferedLabel",
    "OwnPlan",
    "Past",
    "Query",
    "Recall",
    "RegionSpsaPlan",
    "Reject",
    "Request",
    "RequestIdentity",
    "Resend",
    "SeededQuery",
    "Seen",
    "SendEncoder",
    "Serving",
    "Shared",
    "SharedEncoder",
    "Sight",
    "Smashed",
    "SplitScores",
    "SpsaPlan",
    "Status",
    "Steps",
    "SurrogatePlan",
    "Told",
    "TrainStep",
    "Turn",
    "TurnDone",
    "TurnFailed",
    "Up",
    "Update",
    "UpdateNews",
    "UpdateNote",
    "UpdateOffer",
    "UpdatePart",
    "Upload",
    "Version",
    "WantServing",
    "WeightTensor",
    "Weights",
    "Welcome",
    "WhiteBoxPlan",
    "Work",
]
