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

from protocol.base import DEFAULT_LIMIT_BYTES, EPOCHS_LIMIT, PROTOCOL_VERSION, SPLITS, RequestIdentity
from protocol.codec.tensor import EncodedTensor
from protocol.codec.weights import WeightTensor
from protocol.messages.down import Ack, Finish, LabelWant, Reject, Resend, Welcome
from protocol.messages.status import Status
from protocol.messages.turn import Turn
from protocol.messages.up import Hello, LabelOffer, Labels, OfferedLabel, Recall, TurnDone, TurnFailed, Upload
from protocol.plans import Learner, follows_labels
from protocol.plans.activation import MOST_SEEDS, ActivationPlan, LossMaps, SeededQuery
from protocol.plans.federated import FedAvgPlan, FetchWeights, SplitScores, Update, Weights
from protocol.plans.local_loss import FetchLossMaps, LocalLossPlan, LossWeighting
from protocol.plans.spsa import Feedback, Query, SpsaPlan
from protocol.plans.white_box import Gradient, TrainStep, WhiteBoxPlan

Up = (
    Hello
    | LabelOffer
    | Labels
    | Query
    | SeededQuery
    | TrainStep
    | Upload
    | FetchWeights
    | FetchLossMaps
    | Update
    | SplitScores
    | Recall
    | TurnDone
    | TurnFailed
)
Down = Welcome | Turn | LabelWant | Feedback | LossMaps | Gradient | Weights | Ack | Resend | Reject | Finish
Request = (
    LabelOffer
    | Labels
    | Query
    | SeededQuery
    | TrainStep
    | Upload
    | FetchWeights
    | FetchLossMaps
    | Update
    | SplitScores
    | TurnDone
    | TurnFailed
)
Answer = LabelWant | Feedback | LossMaps | Gradient | Weights | Ack

__all__ = [
    "DEFAULT_LIMIT_BYTES",
    "EPOCHS_LIMIT",
    "MOST_SEEDS",
    "PROTOCOL_VERSION",
    "SPLITS",
    "Ack",
    "ActivationPlan",
    "Answer",
    "Down",
    "EncodedTensor",
    "FedAvgPlan",
    "Feedback",
    "FetchLossMaps",
    "FetchWeights",
    "Finish",
    "Gradient",
    "Hello",
    "LabelOffer",
    "LabelWant",
    "Labels",
    "Learner",
    "LocalLossPlan",
    "LossMaps",
    "LossWeighting",
    "OfferedLabel",
    "Query",
    "Recall",
    "Reject",
    "Request",
    "RequestIdentity",
    "Resend",
    "SeededQuery",
    "SplitScores",
    "SpsaPlan",
    "Status",
    "TrainStep",
    "Turn",
    "TurnDone",
    "TurnFailed",
    "Up",
    "Update",
    "Upload",
    "WeightTensor",
    "Weights",
    "Welcome",
    "WhiteBoxPlan",
    "follows_labels",
]
