"""A turn: what a vehicle is to do, and with which plan."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.base import EPOCHS_LIMIT, Index, Seed, Side, Split, Turned
from protocol.plans import Learner
from protocol.plans.adaptation import Adaptation
from protocol.plans.augmentation import Augmentation
from protocol.plans.class_weights import ClassWeights
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.sharing import Shared

RateShare = Annotated[float, Meta(ge=0, le=1)]


class Turn(Turned, frozen=True, array_like=True, kw_only=True, tag="turn"):
    """Cloud → vehicle: it is yours. Learn as told, then upload the named splits once."""

    after_turn: Index | None
    """The vehicle's latest turn that the cloud has committed: start from the state after it; None = from
    the bundle."""
    seed: Seed
    learner: Learner | None
    """How the encoder learns; None leaves it as it is."""
    adaptation: Adaptation = Adaptation()
    """What of it learns, to lower what, and how far from its start."""
    epochs: Annotated[int, Meta(ge=0, le=EPOCHS_LIMIT)]
    """Passes over the train frames while learning."""
    batches: Annotated[int, Meta(ge=0)]
    """At most so many batches an epoch; 0 = all of them."""
    batch_size: Annotated[int, Meta(ge=1, le=4096)]
    rate_shares: Annotated[tuple[RateShare, ...], Meta(max_length=EPOCHS_LIMIT)] = ()
    """Share of the plan's highest rates in each of the epochs, where the plan's rates follow a schedule that
    the vehicle can't know."""
    first_order: FirstOrder | None = None
    """With `federated`: how the whole network is trained."""
    loss_map_frames: tuple[Index, ...] | None = None
    """With `local_loss`: train frames whose loss maps are to be fetched and to weight the loss, as they were
    uploaded, the pixels of others weighing 1; empty = all; None = no loss is weighted, nobody is asked."""
    scores: tuple[Split, ...] = ()
    """With `federated`: splits on which the fetched weights are scored, before training."""
    save_predictions: bool = False
    """With `federated`: whether the vehicle writes what it predicts on its own test frames and on the test
    split of the whole fleet."""
    uploads: tuple[Split, ...]
    """Splits whose features the vehicle uploads once, in this order, after learning."""
    coding: Coding = Coding()
    """Of the features."""
    upload_frames: dict[Split, tuple[Index, ...]] = msgspec.field(default_factory=dict)
    """The frames that are wanted of a split of `uploads`; all of one that isn't named."""
    train_label_size: tuple[Side, Side] | None = None
    """Rows and columns that labels of train frames are to be reduced to, by the pixel nearest to each cell's
    centre; None = they are of the size of the encoder's input."""
    augmentation: Augmentation | None = None
    """How train frames are varied while learning and for their upload; None = they are seen as they are. A
    request names its draw: the pass over the frames, and for uploads `epochs`."""
    class_weights: ClassWeights | None = None
    """What a pixel counts by its class in the loss that a vehicle computes from its own labels; None = all
    alike."""
    sharing: Shared | None = None
    """Whether the turn begins at the fleet's encoder, and gives back what it makes of it; None = the encoder
    is the vehicle's own."""

    @property
    def follows_labels(self) -> bool:
        """Whether the loss of train frames is one against their labels."""
        return self.adaptation.objective == "labels"
