"""What the fleet says to the cloud and the cloud to the fleet: typed, versioned structs in MessagePack.

Legend: B frames of a batch, C channels, H W feature rows and columns.

A vehicle drives the conversation inside its turn: each request carries (vehicle, grant, turn_id, step)
and has exactly one answer with the same four. A request that stays unanswered is sent again unchanged;
the cloud answers it with the very answer it gave before. A `grant` is one attempt at a turn: when either
side has died and the turn starts over, it starts over under a new grant, and whatever the old one left in
flight is refused as stale.
"""

from __future__ import annotations

from typing import Annotated, TypedDict

import msgspec
from msgspec import Meta

from protocol.codec.tensor import EncodedTensor
from protocol.codec.weights import WeightTensor

PROTOCOL_VERSION = 1
EPOCHS_LIMIT = 10_000
"""Of one turn."""

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Token = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,32}$")]
Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Step = Annotated[int, Meta(ge=0, le=2**53)]
Side = Annotated[int, Meta(ge=1, le=2**16)]
Seed = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=1024)]
Split = Annotated[str, Meta(pattern=r"^(train|val|test|ood|source)$")]
Subspace = Annotated[str, Meta(pattern=r"^(all|film)$")]
"""Which part of θ learns: all of it, or a scale and a bias of each output channel."""
Objective = Annotated[str, Meta(pattern=r"^(labels|entropy)$")]
"""What is learnt to lower: the loss against the train frames' labels, or the entropy of the cloud's
predictions, for which no train label is sent."""

SPLITS = ("train", "val", "test", "ood", "source")
MOST_SEEDS = 1024
"""Of one query."""


class _Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """Encoded as a MessagePack array `[tag, fields…]`: no field names on the wire."""


class _Turned(_Message, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """What belongs to one attempt at one turn."""

    vehicle: Id
    grant: Token
    """Names the attempt; drawn by the cloud each time it (re)starts the turn."""
    turn_id: Index
    step: Step
    """Counts the vehicle's requests within the turn from 0; an answer repeats the request's."""


class RequestIdentity(TypedDict):
    """The four fields of `_Turned`, as a request hands them on to its answer."""

    vehicle: str
    grant: str
    turn_id: int
    step: int


# What a turn consists of ------------------------------------------------------------------------------


class SpsaPlan(_Message, frozen=True, array_like=True, kw_only=True, tag="spsa-gc"):
    """Zeroth-order settings of BlackFed's SPSA-GC (arXiv 2410.24181, section 3.2)."""

    perturbation: float
    """c: how far θ is moved for a query."""
    queries: Annotated[int, Meta(ge=1, le=1024)]
    """q: two-sided queries averaged for one update."""
    rate: float
    """Step size of the update."""
    momentum: float
    """β of the Nesterov momentum, kept across epochs and turns."""
    subspace: Subspace
    objective: Objective


class ActivationPlan(_Message, frozen=True, array_like=True, kw_only=True, tag="activation"):
    """Zeroth-order settings of learning from loss maps at perturbed features."""

    scale: Annotated[float, Meta(gt=0)]
    """s: how far features are moved for a query, in standard deviations of their channel."""
    seeds: Annotated[int, Meta(ge=1, le=MOST_SEEDS)]
    """K: perturbations averaged for one update."""
    two_sided: bool
    """Differences between +ξ and −ξ, rather than between +ξ and the clean features."""
    map_stride: Annotated[int, Meta(ge=1, le=1024)]
    """Feature cells that a cell of the loss map covers along each side."""
    map_bits: int
    """Quantisation of the loss maps: 32, 8, 6, 4, 3 or 2 bits a cell."""
    box_width: Annotated[int, Meta(ge=1, le=2047)]
    """Side, in cells of the map and odd, of the window whose loss counts for the features in its middle."""
    rate: Annotated[float, Meta(gt=0)]
    """Step size of Adam."""
    subspace: Subspace
    objective: Objective


class WhiteBoxPlan(_Message, frozen=True, array_like=True, kw_only=True, tag="white-box"):
    """First-order settings of white-box split learning: the cloud answers with gradients of the features."""

    rate: Annotated[float, Meta(gt=0)]
    """Highest step size of Adam on the encoder; each gradient says which share of it counts."""
    gradient_bits: int
    """Quantisation of the gradients: 32, 8, 6, 4, 3 or 2 bits an element."""
    subspace: Subspace
    objective: Objective


class FedAvgPlan(_Message, frozen=True, array_like=True, kw_only=True, tag="fedavg"):
    """Federated averaging: fetch the global weights, score them, train them, send them back.

    A turn of no epochs is for the scores alone."""

    optimizer: Annotated[str, Meta(pattern="^(sgd|adamw)$")]
    """Made anew in each turn."""
    rates: Annotated[tuple[float, ...], Meta(max_length=EPOCHS_LIMIT)]
    """Step size in each of the turn's epochs."""
    momentum: float
    """Of `sgd`."""
    weight_decay: float
    proximal: float
    """μ of FedProx (Li et al., MLSys 2020): μ/2 ‖w − w_global‖² is added to the loss."""
    statistics: Annotated[str, Meta(pattern="^(average|local|frozen)$")]
    """BatchNorm statistics: averaged like weights, kept on the vehicle (SiloBN), or never changed."""
    scores: tuple[Split, ...]
    """Splits on which the fetched weights are scored, before training."""
    save_predictions: bool
    """Whether the vehicle writes what it predicts on its own test frames."""


class LossWeighting(_Message, frozen=True, array_like=True, kw_only=True):
    """How a vehicle weights the pixels of its local loss by the cloud's loss maps."""

    map_stride: Annotated[int, Meta(ge=1, le=1024)]
    """Feature cells that a cell of the loss maps covers along each side."""
    power: Annotated[float, Meta(gt=0)]
    """p of the weight min(ℓ / mean ℓ, cap)^p."""
    cap: Annotated[float, Meta(ge=1)]
    """Share of the mean loss above which a loss counts no more."""
    frames: tuple[Index, ...] = ()
    """Train frames that have loss maps, as they were uploaded; the pixels of others weigh 1. Empty = all."""


class LocalLossPlan(_Message, frozen=True, array_like=True, kw_only=True, tag="local-loss"):
    """Settings of learning from the vehicle's own labels with its local head."""

    rate: Annotated[float, Meta(gt=0)]
    """Highest step size of Adam on the encoder."""
    head_rate: Annotated[float, Meta(gt=0)]
    """Highest step size of Adam on the head."""
    rate_shares: Annotated[tuple[Annotated[float, Meta(gt=0, le=1)], ...], Meta(max_length=EPOCHS_LIMIT)]
    """Share of the highest rates in each of the turn's epochs."""
    weighting: LossWeighting | None
    """With it, the vehicle first fetches the loss maps of its train frames; None: nobody is asked."""
    subspace: Subspace


Learner = SpsaPlan | ActivationPlan | WhiteBoxPlan | FedAvgPlan | LocalLossPlan
"""What `Turn.learner` may be; grows by one line with each way to learn."""


def follows_labels(learner: Learner | None) -> bool:
    """Whether the loss of train frames in a turn is one against their labels; without a learner it is."""
    return getattr(learner, "objective", "labels") == "labels"


class Turn(_Turned, frozen=True, array_like=True, kw_only=True, tag="turn"):
    """Cloud → vehicle: it is yours. Learn as told, then upload the named splits once."""

    after_turn: Index | None
    """The vehicle's latest turn that the cloud has committed: start from the state after it; None = from
    the bundle."""
    seed: Seed
    learner: Learner | None
    """How the encoder learns; None leaves it as it is."""
    epochs: Annotated[int, Meta(ge=0, le=EPOCHS_LIMIT)]
    """Passes over the train frames while learning."""
    batches: Annotated[int, Meta(ge=0)]
    """At most so many batches an epoch; 0 = all of them."""
    batch_size: Annotated[int, Meta(ge=1, le=4096)]
    uploads: tuple[Split, ...]
    """Splits whose features the vehicle uploads once, in this order, after learning."""
    bits: int
    """Quantisation of the features: 32, 8, 6, 4, 3 or 2 bits an element."""
    frame_bytes: Annotated[int, Meta(ge=1)] | None = None
    """Most bytes of a frame's features: each channel gets as many bits as fit, `bits` at most; None = all get
    `bits`."""
    upload_frames: dict[Split, tuple[Index, ...]] = {}
    """The frames that are wanted of a split of `uploads`; all of one that isn't named."""
    train_label_size: tuple[Side, Side] | None = None
    """Rows and columns that labels of train frames are to be reduced to, by the pixel nearest to each cell's
    centre; None = they are of the size of the encoder's input."""
    anchor: Annotated[float, Meta(ge=0)] = 0.0
    """λ: λ/2·‖φ − φ_start‖² is added to what the encoder learns from, φ_start being the bundle's."""


# Vehicle → cloud --------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, array_like=True, kw_only=True, tag="hello"):
    """A vehicle process says that it is there and at no turn; answered by `Welcome` or `Reject`.

    A turn of this vehicle that is under way starts over."""

    vehicle: Id
    session: Token
    """Drawn anew by every vehicle process: a new session means the old process is gone."""
    protocol: int
    encoder: Annotated[str, Meta(max_length=128)]
    bundle_digest: Annotated[str, Meta(max_length=128)]
    feature_shape: tuple[int, int, int]
    """C, H, W of one frame's features."""
    image_size: tuple[int, int]
    """Width, height in pixels of the frames that the encoder sees."""
    label_space: Annotated[str, Meta(max_length=64)]
    frames: dict[Split, Index]
    """Number of frames of each split."""


class OfferedLabel(_Message, frozen=True, array_like=True, kw_only=True):
    """A label that the vehicle can send, by what identifies it."""

    index: Index
    """The frame's number on this vehicle, used by queries and uploads from now on."""
    key: Annotated[str, Meta(max_length=256)]
    """The frame's name in its data set."""
    digest: Annotated[bytes, Meta(max_length=32)]
    height: Annotated[int, Meta(ge=1, le=16384)]
    width: Annotated[int, Meta(ge=1, le=16384)]


class LabelOffer(_Turned, frozen=True, array_like=True, kw_only=True, tag="offer"):
    """Which labels the coming requests refer to; answered by `LabelWant`."""

    labels: tuple[OfferedLabel, ...]


class Labels(_Turned, frozen=True, array_like=True, kw_only=True, tag="labels"):
    """Labels that the cloud asked for, losslessly coded, once; answered by `Ack`."""

    labels: tuple[tuple[OfferedLabel, bytes], ...]


class Query(_Turned, frozen=True, array_like=True, kw_only=True, tag="query"):
    """What is the loss at these features? Answered by `Feedback`; changes nothing in the cloud."""

    frames: tuple[Index, ...]
    features: EncodedTensor


class SeededQuery(_Turned, frozen=True, array_like=True, kw_only=True, tag="seeded"):
    """What are the loss maps at these features and at perturbed ones? Answered by `LossMaps`.

    The features cross the network once, however many seeds there are; changes nothing in the cloud."""

    frames: tuple[Index, ...]
    features: EncodedTensor
    seeds: Annotated[tuple[Seed, ...], Meta(max_length=MOST_SEEDS)]
    """Of the perturbations ξ (`protocol.perturbation`)."""
    scale: bytes
    """float32[C], little endian: how far each channel is moved."""
    two_sided: bool
    """Ask for ℓ(z + scale·ξ) − ℓ(z − scale·ξ), else for ℓ(z + scale·ξ) − ℓ(z)."""
    map_size: tuple[int, int]
    """Rows and columns of the maps."""


class TrainStep(_Turned, frozen=True, array_like=True, kw_only=True, tag="train"):
    """Features of a batch to learn from at once, in the cloud and here; answered by `Gradient`."""

    frames: tuple[Index, ...]
    features: EncodedTensor


class Upload(_Turned, frozen=True, array_like=True, kw_only=True, tag="upload"):
    """Features of some frames of a split, sent once and kept for the turn; answered by `Ack`."""

    split: Split
    frames: tuple[Index, ...]
    features: EncodedTensor


class FetchWeights(_Turned, frozen=True, array_like=True, kw_only=True, tag="fetch"):
    """Which weights does this turn start from? Answered by `Weights`."""


class FetchLossMaps(_Turned, frozen=True, array_like=True, kw_only=True, tag="fetch-maps"):
    """Where did the loss lie in some train frames after the latest learning? Answered by `LossMaps`."""

    frames: tuple[Index, ...]
    """A batch as it was uploaded."""


class Update(_Turned, frozen=True, array_like=True, kw_only=True, tag="update"):
    """The weights after the turn's epochs, once a turn; answered by `Ack`."""

    samples: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    """Train frames that they were trained on: their weight in the average."""
    loss: float
    """Mean training loss of the last epoch."""
    tensors: tuple[WeightTensor, ...]


class SplitScores(_Turned, frozen=True, array_like=True, kw_only=True, tag="scores"):
    """How good the fetched weights are on the vehicle's own frames; answered by `Ack`."""

    split: Split
    frames: Index
    """How many were scored."""
    counts: tuple[tuple[Step, ...], ...]
    """Pixels by true class (rows) and predicted class (columns, the last: none); void is not counted."""


class TurnDone(_Turned, frozen=True, array_like=True, kw_only=True, tag="done"):
    """The vehicle has saved its new state; answered by `Ack`, then the cloud learns and commits."""

    loss: float | None
    """Mean loss while learning; None where nothing was learnt."""


class TurnFailed(_Turned, frozen=True, array_like=True, kw_only=True, tag="failed"):
    """The vehicle can't do this turn and says why in one line; answered by `Ack`, then the run stops."""

    reason: Text


# Cloud → vehicle --------------------------------------------------------------------------------------


class Welcome(_Message, frozen=True, array_like=True, kw_only=True, tag="welcome"):
    """The cloud knows this vehicle session from now on."""

    vehicle: Id
    session: Token


class LabelWant(_Turned, frozen=True, array_like=True, kw_only=True, tag="want"):
    """The offered labels that the cloud does not hold yet."""

    indices: tuple[Index, ...]


class Feedback(_Turned, frozen=True, array_like=True, kw_only=True, tag="feedback"):
    """The answer to a query: losses, never gradients."""

    losses: tuple[float, ...]


class LossMaps(_Turned, frozen=True, array_like=True, kw_only=True, tag="maps"):
    """The answer to a seeded query or a fetch of loss maps: losses by place, never gradients."""

    maps: EncodedTensor
    """(B, 1 + K, rows, columns): the map at the clean features, then each seed's difference; fetched: K = 0.

    The mean over the cells of a clean map is the cross-entropy of its frame. Coded as features are, each map
    with a scale of its own over the batch."""


class Gradient(_Turned, frozen=True, array_like=True, kw_only=True, tag="gradient"):
    """The answer to a training step of white-box learning, and of no other way to learn."""

    loss: float
    """Of the batch, before the cloud's step."""
    rate_share: Annotated[float, Meta(ge=0, le=1)]
    """Where the rate schedule stands: the share of the highest rate that this step is to be taken with."""
    gradient: EncodedTensor
    """∂loss/∂features (B, C, H, W) at the features as they arrived, before the cloud's step."""


class Weights(_Turned, frozen=True, array_like=True, kw_only=True, tag="weights"):
    """The global weights that the turn starts from."""

    tensors: tuple[WeightTensor, ...]


class Ack(_Turned, frozen=True, array_like=True, kw_only=True, tag="ack"):
    """The request is safe with the cloud."""


class Reject(_Message, frozen=True, array_like=True, kw_only=True, tag="reject"):
    """What was sent does not fit and has changed nothing."""

    vehicle: Id
    grant: str
    """Of the rejected request, or the session of a rejected hello; empty where it could not be read."""
    step: Step
    reason: Text
    final: bool
    """True: the same message would be rejected again, the vehicle should stop and show the reason. False: the
    message is lost, or, where a grant is named, the whole attempt: the vehicle says hello again."""


class Finish(_Message, frozen=True, array_like=True, kw_only=True, tag="finish"):
    """The run is over; the vehicle may leave."""

    vehicle: Id
    reason: Text


# Everyone ---------------------------------------------------------------------------------------------


class Status(_Message, frozen=True, array_like=True, kw_only=True, tag="status"):
    """Presence: retained birth (online), last will (offline), heartbeats (online, rising `beat`)."""

    vehicle: Id
    session: Token
    """A late will of an old session can't be mistaken for the end of the new one."""
    online: bool
    beat: Index


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
    | TurnDone
    | TurnFailed
)
Down = Welcome | Turn | LabelWant | Feedback | LossMaps | Gradient | Weights | Ack | Reject | Finish
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
