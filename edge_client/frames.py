"""A vehicle's own frames: which they are, and their pixels as the encoder wants them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.class_weights import balanced_weights, count_classes, table_weights
from datasets.conditions import Condition, apply_condition
from datasets.frame import FrameRef, FrameSource, resize_frame
from datasets.label_files import count_origins, origin
from datasets.labels import LabelSpace
from edge_client.coarse_labels import coarsen_label
from edge_client.errors import VehicleError
from edge_client.naming import KEYS, number_name
from protocol.messages import SPLITS
from protocol.plans.class_weights import NONE, ClassWeights, check_class_weights

DEFAULT_CAPACITY_BYTES = 512 * 1024 * 1024
_FULL_SIZE_SPLITS = frozenset({"test", "ood", "source", "fleet"})
_RARE_SPLITS = ("source", "fleet")
"""Those that only some fleets have, seen clearly."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a vehicle sees its frames through."""

    condition: Condition
    seed: int
    """The vehicle's own: decides where the dirt lies on its lens."""

    def apply(self, image_HWC: NDArray[np.uint8], key: str) -> NDArray[np.uint8]:
        """The picture of frame `key` as this vehicle sees it; uint8 RGB like the one given."""
        return apply_condition(image_HWC, self.condition.name, self.condition.severity, self.seed, key)


class FrameCache:
    """Resized frames of one data set, least recently used out first; shared by the vehicles of a host."""

    def __init__(
        self, source: FrameSource, image_size: tuple[int, int], capacity_bytes: int = DEFAULT_CAPACITY_BYTES
    ) -> None:
        """`image_size` is (width, height) in pixels."""
        self.source = source
        self.image_size = image_size
        self._refs = {ref.key: ref for ref in source.refs}
        self._capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._frames: OrderedDict[tuple[str, Sight | None], tuple[NDArray[np.uint8], NDArray[np.uint8]]] = (
            OrderedDict()
        )
        self._origins: dict[str, str] = {}
        self._lock = threading.Lock()

    def ref(self, key: str) -> FrameRef:
        """Where the frame lies.

        Raises:
            VehicleError: the data set has no such frame.
        """
        try:
            return self._refs[key]
        except KeyError:
            raise VehicleError(f"the data set has no frame {key!r}; check the vehicle's frame list") from None

    def resized(self, key: str, sight: Sight | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """(image_HWC, label_HW) at the encoder's input size; the image as it is seen, the label as it is.

        Raises:
            DatasetError: the files can't be read.
        """
        with self._lock:
            if (key, sight) in self._frames:
                self._frames.move_to_end((key, sight))
                return self._frames[key, sight]
        frame = resize_frame(self.source.load(self.ref(key)), *self.image_size)
        image_HWC = sight.apply(frame.image_HWC, key) if sight else frame.image_HWC
        pair = (np.ascontiguousarray(image_HWC), np.ascontiguousarray(frame.label_HW))
        with self._lock:
            if (key, sight) not in self._frames:
                self._frames[key, sight] = pair
                self._held_bytes += pair[0].nbytes + pair[1].nbytes
            while self._held_bytes > self._capacity_bytes and len(self._frames) > 1:
                _, (image_HWC, label_HW) = self._frames.popitem(last=False)
                self._held_bytes -= image_HWC.nbytes + label_HW.nbytes
        return pair

    def label_origin(self, key: str) -> str:
        """Who has made a frame's label, as its file says when it is first asked for."""
        path = self.ref(key).label_path
        with self._lock:
            if key not in self._origins:
                self._origins[key] = origin(path)
            return self._origins[key]

    def full_label(self, key: str) -> NDArray[np.uint8]:
        """label_HW as it is on disk: what predictions are compared with."""
        return self.source.load(self.ref(key)).label_HW


class VehicleFrames:
    """The frames of one vehicle, numbered from 0 through its splits train, val, test, ood, source, fleet.

    `ood` are other vehicles' test frames, `source` frames of the domain that encoder and network were
    pretrained on, `fleet` the test split that the whole fleet is scored on: known to a simulated vehicle,
    empty on a real one. Frames of `source` and `fleet` are seen clearly.
    """

    def __init__(
        self,
        cache: FrameCache,
        splits: Mapping[str, Sequence[str]],
        sights: Mapping[str, Sight] = MappingProxyType({}),
        names: str = KEYS,
        label_square: int = 1,
    ) -> None:
        """`splits` maps split names to frame keys, `sights` the keys of frames not seen clearly to theirs;
        `names` is one of `NAMINGS`, `label_square` the side of `coarsen_label`.

        Raises:
            VehicleError: an unknown split or frame, or nothing to train on.
        """
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown:
            raise VehicleError(f"unknown split {unknown[0]!r}; expected one of {', '.join(SPLITS)}")
        if not splits.get("train"):
            raise VehicleError("the vehicle has no train frames; give it at least one")
        self._cache = cache
        self._sights = sights
        self._names = names
        self._label_square = label_square
        self.keys: list[str] = []
        self.splits: dict[str, tuple[int, ...]] = {}
        for split in SPLITS:
            keys = splits.get(split, ())
            first = len(self.keys)
            self.splits[split] = tuple(range(first, first + len(keys)))
            self.keys.extend(keys)
        for key in self.keys:
            cache.ref(key)
        self.are_labelled = all(cache.ref(self.keys[index]).label_path for index in self.splits["train"])
        """Whether each train frame has a label."""
        self._class_counts: NDArray[np.int64] | None = None
        """Pixels of the train labels by class, once somebody has asked."""
        self._full_size = {index for split in _FULL_SIZE_SPLITS for index in self.splits[split]}

    @property
    def label_space(self) -> LabelSpace:
        """The classes of the labels."""
        return self._cache.source.label_space

    def class_weights(self, weights: ClassWeights) -> NDArray[np.float32] | None:
        """What a pixel counts by its class in losses against this vehicle's train labels, float32 (K,); None:
        all alike. Balanced weights are of these labels at the encoder's input size.

        Raises:
            SettingError: they are none of the three kinds, or name an unknown class.
            DatasetError: a label can't be read.
        """
        check_class_weights(weights)
        if weights == NONE:
            return None
        if not isinstance(weights, str):
            return table_weights(weights, self.label_space)
        if self._class_counts is None:
            classes = self.label_space.num_classes
            self._class_counts = np.sum(
                [count_classes(self.label(index), classes) for index in self.splits["train"]], axis=0
            )
        return balanced_weights(self._class_counts)

    def told_name(self, index: int) -> str:
        """What the cloud is told a frame is called."""
        return self.keys[index] if self._names == KEYS else number_name(index)

    def told_label(self, index: int) -> NDArray[np.uint8]:
        """label_HW as the cloud is told it: coarse where it is one to train on."""
        is_train = index in self.splits["train"]
        return coarsen_label(self.label(index), self._label_square if is_train else 1)

    def counts(self) -> dict[str, int]:
        """Frames per split; those of `source` and `fleet` only where there are some."""
        return {split: len(part) for split, part in self.splits.items() if part or split not in _RARE_SPLITS}

    def label_origins(self) -> dict[str, dict[str, int]]:
        """By split of `counts`: how many frames have a label of whom (`datasets.label_files`)."""
        return {
            split: count_origins(self._cache.label_origin(self.keys[index]) for index in self.splits[split])
            for split in self.counts()
        }

    def digest(self, label_space: str) -> str:
        """Identifies these frames, by their keys in their splits, under the classes of `label_space`."""
        content = [
            label_space,
            [
                (split, [self.keys[i] for i in part])
                for split, part in self.splits.items()
                if part or split != "fleet"
            ],
        ]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """image_BHWC uint8 RGB at the encoder's input size."""
        return np.stack([self._resized(index)[0] for index in indices])

    def label(self, index: int) -> NDArray[np.uint8]:
        """label_HW: at the input size to train and validate on, at its own size to test against."""
        if index in self._full_size:
            return self._cache.full_label(self.keys[index])
        return self._resized(index)[1]

    def _resized(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        # The same frame may be one of the vehicle's own, which it sees through its condition.
        clear = any(index in self.splits[split] for split in _RARE_SPLITS)
        sight = None if clear else self._sights.get(self.keys[index])
        return self._cache.resized(self.keys[index], sight)


def limit_opencv_threads(threads: int) -> None:
    """Keep OpenCV's own pool from competing with the encoder's threads."""
    cv2.setNumThreads(threads)
