"""The tools of one turn of a vehicle: what is sent to the cloud, and how.

Legend: B frames of a batch, C channels, H W rows and columns; θ all encoder parameters, float32 (n,).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from datasets.labels import LabelSpace
from edge_client.conversation import Conversation
from edge_client.encoder.bundle import BundleError
from edge_client.encoder.runtime import Encoder, Linearisation
from edge_client.encoder.subspaces import Subspace
from edge_client.errors import TurnRefused, VehicleError
from edge_client.frames import VehicleFrames
from edge_client.local.against_decoder import AgainstDecoder
from edge_client.local.cross_entropy import downsample_label
from edge_client.local.head import LocalHead
from edge_client.local.noised_update import UpdateNoise
from edge_client.spool import Spool, digest
from edge_client.train_views import TrainViews
from edge_client.work import metered
from protocol.charging import Computing, charge
from protocol.codec import labels as label_codec
from protocol.codec.quantiser import UncodableError
from protocol.codec.tensor import EncodedTensor, encode
from protocol.errors import SettingError
from protocol.local_model import LocalModel
from protocol.messages import (
    Answer,
    LabelOffer,
    Labels,
    LabelWant,
    OfferedLabel,
    Request,
    RequestIdentity,
    Smashed,
    Turn,
    Upload,
)
from protocol.noise import derive_seed, permutation
from protocol.plans.class_weights import NONE

_LABELS_PER_MESSAGE = 64


class LabelMemory:
    """Which labels the cloud has confirmed to hold, for as long as this process lives."""

    def __init__(self) -> None:
        self._confirmed: set[int] = set()

    def missing(self, indices: Sequence[int]) -> list[int]:
        """The frames among `indices` that are not confirmed."""
        return [index for index in indices if index not in self._confirmed]

    def confirm(self, indices: Sequence[int]) -> None:
        self._confirmed.update(indices)

    def forget(self) -> None:
        """A new cloud process may hold less than the old one did."""
        self._confirmed.clear()


@dataclass(frozen=True, kw_only=True)
class LocalModelTools:
    """What a vehicle needs to train and judge the whole network by itself."""

    model: LocalModel
    label_space: LabelSpace
    predictions: Mapping[str, Path]
    """By split: folder for what it predicts there; of other splits nothing is written."""
    latest: Path | None
    """Folder for the latest predictions of a few frames, for whoever looks on; None: none are kept."""
    threads: int
    """Of torch."""
    update_noise: UpdateNoise | None = None
    """How what it sends is clipped and noised; None = not at all."""
    device: str = "cpu"
    """Of torch."""


class TurnTools:
    """What a learner and the turn's uploads share: frames in, requests out, answers back."""

    def __init__(
        self,
        turn: Turn,
        *,
        encoder: Encoder,
        frames: VehicleFrames,
        labels: LabelMemory,
        conversation: Conversation,
        local_model: LocalModelTools | None = None,
        local_head: LocalHead | None = None,
        against_decoder: AgainstDecoder | None = None,
        allowed_learners: Collection[str] = (),
        spool: Spool,
    ) -> None:
        """`allowed_learners`: `package.module:name` of those of others that the vehicle's operator trusts;
        `spool` keeps what is made for the turn while there is no network."""
        self.turn = turn
        self.allowed_learners = allowed_learners
        self.encoder = encoder
        self.frames = frames
        self.local_model = local_model
        self.local_head = local_head
        self.against_decoder = against_decoder
        self.views = TrainViews(frames, turn, encoder.spec.image_size)
        """Train frames as the turn's augmentation shows them."""
        self.displacement: NDArray[np.float32] | None = None
        """Of the fleet's φ from its start, float32 (m,), where the turn begins there."""
        self.steps_taken = 0
        """Of the fleet's, where the turn begins after them."""
        self._labels = labels
        self._conversation = conversation
        self._steps = itertools.count()
        self.spool = spool
        self._ahead: deque[Iterator[None]] = deque()
        """What can be made while there is no network, a piece at a time."""
        self._deferred: list[bytes] = []
        """In the spool: requests of this attempt that are still to go out."""

    def header(self) -> RequestIdentity:
        """What the turn's next request begins with."""
        return {
            "vehicle": self.turn.vehicle,
            "grant": self.turn.grant,
            "turn_id": self.turn.turn_id,
            "step": next(self._steps),
        }

    def ask(self, requests: Iterable[Request]) -> list[Answer]:
        """Send requests, several at a time, and return their answers in the same order.

        What was deferred goes first. While there is no network, what else the turn wants is made ahead.
        """
        earlier, self._deferred = self._deferred, []
        answers = self._conversation.ask(
            self.turn, itertools.chain(self._taken_from_spool(earlier), requests), self._make_ahead
        )
        return answers[len(earlier) :]

    def send(self, request: Smashed) -> None:
        """Send a request whose answer says nothing: while there is no network it waits in the spool."""
        if self.is_away:
            name = request.step.to_bytes(8, "big")
            if self.spool.put(name, msgspec.msgpack.encode(request), of_attempt=True):
                self._deferred.append(name)
                return
        self.ask([request])

    def _taken_from_spool(self, names: Sequence[bytes]) -> Iterator[Request]:
        for name in names:
            content = self.spool.get(name, of_attempt=True)
            if content is None:
                raise VehicleError("what waited in the spool is gone or damaged; start this vehicle again")
            yield msgspec.msgpack.decode(content, type=Smashed)

    @property
    def is_away(self) -> bool:
        """Whether there is no network now."""
        return self._conversation.is_away

    def now(self) -> float:
        """By the clock of the link."""
        return self._conversation.now()

    def make_ahead(self, pieces: Iterator[None]) -> None:
        """What is to be made, a piece at a time, whenever the turn waits and there is no network."""
        self._ahead.append(pieces)

    def _make_ahead(self) -> bool:
        while self._ahead:
            try:
                next(self._ahead[0])
            except StopIteration:
                self._ahead.popleft()
            else:
                return True
        return False

    def attend(self) -> None:
        """Heed, in the midst of long work, that the turn is void or the process is to stop."""
        self._conversation.attend(self.turn)

    def batches(self, epoch: int) -> Iterator[tuple[int, ...]]:
        """The train frames in the epoch's own order, a batch at a time, as many as the turn allows."""
        shuffled = self.shuffled(epoch)
        size = self.turn.batch_size
        batches = (tuple(shuffled[first : first + size]) for first in range(0, len(shuffled), size))
        return itertools.islice(batches, self.turn.batches or None)

    def shuffled(self, epoch: int) -> list[int]:
        """All train frames in the epoch's own order."""
        train = self.frames.splits["train"]
        order = permutation(derive_seed(self.turn.seed, "batches", epoch), len(train))
        return [train[position] for position in order]

    def encode(self, theta: NDArray[np.float32], image_BHWC: NDArray[np.uint8]) -> EncodedTensor:
        """Features of some frames under θ, ready to be sent.

        Raises:
            TurnRefused: they are not finite, or the turn asks for a coding that is unknown or too small.
        """
        return self.code(self.encoder.forward(theta, image_BHWC))

    def class_weights(self) -> NDArray[np.float32] | None:
        """What a pixel counts by its class in the vehicle's own loss, float32 (K,); None: all alike.

        Raises:
            TurnRefused: the turn's weights don't fit the labels.
        """
        try:
            return self.frames.class_weights(self.turn.class_weights or NONE)
        except SettingError as error:
            raise TurnRefused(f"the turn's class weights don't fit: {error}") from error

    def linearise(
        self,
        theta: NDArray[np.float32],
        batch: Sequence[int],
        subspace: Subspace | None = None,
        draw: int | None = None,
    ) -> Linearisation:
        """Features of frames of the vehicle, as `draw` shows them, under θ, with the way back to θ or into
        a subspace.

        Raises:
            TurnRefused: the bundle has none.
        """
        try:
            return self.encoder.linearise(theta, self.views.images(batch, draw), subspace)
        except BundleError as error:
            raise TurnRefused(
                f"this way of learning needs the way back through an encoder: {error}"
            ) from error

    def code(self, features_BCHW: NDArray[np.float32], *, bits: int | None = None) -> EncodedTensor:
        """Features ready to be sent, as the turn says or with so many bits an element.

        Raises:
            TurnRefused: they are not finite, or the turn asks for a coding that is unknown or too small.
        """
        charge(Computing.CODEC, len(features_BCHW), features_BCHW[0].size)
        try:
            return self.turn.coding.encode(features_BCHW) if bits is None else encode(features_BCHW, bits)
        except (SettingError, UncodableError) as error:
            raise TurnRefused(f"features can't be sent: {error}") from error

    def upload(self, split: str, theta: NDArray[np.float32]) -> None:
        """Send the features of the frames that the turn wants of a split, a batch a message, once.

        Train frames are seen by a draw of their own, after those of the turn's epochs.

        Raises:
            TurnRefused: see `own_frames` and `encode`.
        """
        indices, draw = self._wanted(split)

        def uploads() -> Iterator[Request]:
            for batch in self._upload_batches(indices):
                features = self._made_ahead(theta, split, batch)
                if features is None:
                    features = self.encode(theta, self.views.images(batch, draw))
                yield Upload(**self.header(), split=split, frames=batch, features=features, draw=draw)

        if split != "train" or self.turn.follows_labels:
            self.send_labels(indices)
        self.ask(uploads())

    def uploads_ahead(self, theta: NDArray[np.float32]) -> Iterator[None]:
        """Put the features of everything that the turn wants uploaded into the spool, while there is room.

        Raises:
            TurnRefused: see `upload`.
        """
        for split in self.turn.uploads:
            indices, draw = self._wanted(split)
            for batch in self._upload_batches(indices):
                name = self._name(theta, split, batch)
                if self.spool.get(name) is None:
                    with metered():  # counted when they are sent
                        features = self.encode(theta, self.views.images(batch, draw))
                    if not self.spool.put(name, msgspec.msgpack.encode(features)):
                        return
                yield

    def _made_ahead(
        self, theta: NDArray[np.float32], split: str, batch: tuple[int, ...]
    ) -> EncodedTensor | None:
        if not self.spool.pieces:
            return None
        content = self.spool.get(self._name(theta, split, batch))
        if content is None:
            return None
        self.encoder.count_forward(len(batch))
        return msgspec.msgpack.decode(content, type=EncodedTensor)

    def _name(self, theta: NDArray[np.float32], split: str, batch: tuple[int, ...]) -> bytes:
        """Of features in the spool: all else that they follow from is the turn's."""
        return digest(b"features", theta.tobytes(), split.encode(), repr(batch).encode())

    def _wanted(self, split: str) -> tuple[tuple[int, ...], int | None]:
        """The frames of a split that are to go up, and by which draw they are seen."""
        indices = self.own_frames(split, self.turn.upload_frames.get(split))
        return indices, self.views.draw(self.turn.epochs) if split == "train" else None

    def _upload_batches(self, indices: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        size = self.turn.batch_size
        return (indices[first : first + size] for first in range(0, len(indices), size))

    def own_frames(self, split: str, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """The frames of a split that the turn names; all of them where it names none.

        Raises:
            TurnRefused: one of them is not of the split.
        """
        own = self.frames.splits[split]
        strangers = set(wanted or ()).difference(own)
        if strangers:
            raise TurnRefused(f"the turn asks for {split} frame {min(strangers)}, which this vehicle lacks")
        return wanted or own

    def send_train_labels(self) -> None:
        """Send the labels that the cloud's loss of a train frame takes: none where it is an entropy."""
        if self.turn.follows_labels:
            self.send_labels(self.frames.splits["train"])

    def send_labels(self, indices: Sequence[int]) -> None:
        """Offer the labels that are not known to be in the cloud; send those that it wants."""
        missing = self._labels.missing(indices)
        for first in range(0, len(missing), _LABELS_PER_MESSAGE):
            chunk = missing[first : first + _LABELS_PER_MESSAGE]
            label_HWs = {index: self._label(index) for index in chunk}
            offered = {
                index: OfferedLabel(
                    index=index,
                    key=self.frames.told_name(index),
                    digest=label_codec.content_hash(label_HW),
                    height=label_HW.shape[0],
                    width=label_HW.shape[1],
                )
                for index, label_HW in label_HWs.items()
            }
            [want] = self.ask([LabelOffer(**self.header(), labels=tuple(offered.values()))])
            assert isinstance(want, LabelWant)
            wanted = [index for index in want.indices if index in offered]
            if wanted:
                coded = tuple(
                    (offered[index], label_codec.encode_label(label_HWs[index])) for index in wanted
                )
                self.ask([Labels(**self.header(), labels=coded)])
            self._labels.confirm(chunk)

    def _label(self, index: int) -> NDArray[np.uint8]:
        """As it is to be sent: label_HW, or reduced to what the cloud compares."""
        label_HW = self.frames.told_label(index)
        size_hw = self.turn.train_label_size
        if size_hw is None or index not in self.frames.splits["train"]:
            return label_HW
        return downsample_label(label_HW, size_hw)
