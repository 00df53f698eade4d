"""What the vehicles of a run must have in common, and how it is settled where the settings don't say it.

Nobody's word counts more for having come first: what most of those have who joined is the run's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cloud_server.desk.declaration import Declaration
from cloud_server.errors import RequestError
from protocol.codec.bits import check_frame_bytes
from protocol.errors import SettingError
from protocol.messages import PROTOCOL_VERSION, Hello
from protocol.messages.up import LOCAL_HEAD, WHOLE_NETWORK

_Value = TypeVar("_Value")

MOST_FRAMES = 1_000_000
"""That one vehicle may declare: what is made for each of its frames stays within the memory."""
_MOST_ELEMENTS = 2**24
"""Of a frame, and of its features: as of a label."""

_MISSING = {
    LOCAL_HEAD: "this vehicle has no local head (--local-head, or local_head in its settings)",
    WHOLE_NETWORK: "this vehicle has no local model (--local-model, or local_model in its settings)",
}


@dataclass(kw_only=True)
class Agreement:
    """What every hello is held against."""

    label_space: str
    feature_shapes: tuple[tuple[int, int, int], ...] | None
    """C, H, W that vehicles may declare; None: not settled yet."""
    image_size: tuple[int, int] | None
    """Width, height in pixels; None: not settled yet."""
    frame_bytes: int | None
    equipment: tuple[str, ...]

    def check(self, hello: Hello) -> None:
        """Look whether a vehicle fits the run.

        Raises:
            RequestError: it doesn't; the reason is for its operator.
        """
        if hello.protocol != PROTOCOL_VERSION:
            raise RequestError(f"protocol version {hello.protocol}, this cloud speaks {PROTOCOL_VERSION}")
        if hello.label_space != self.label_space:
            raise RequestError(f"labels of {hello.label_space!r}, this run is about {self.label_space!r}")
        for sizes in (hello.feature_shape, hello.image_size):
            if min(sizes) < 1 or math.prod(sizes) > _MOST_ELEMENTS:
                raise RequestError(f"impossible feature shape {hello.feature_shape} of {hello.image_size}")
        for name in self.equipment:
            if name not in hello.equipment:
                raise RequestError(f"{_MISSING[name]}, which this run's algorithm needs of every vehicle")
        if reason := self.difference(hello):
            raise RequestError(reason)
        if self.frame_bytes is not None:
            try:
                check_frame_bytes(self.frame_bytes, hello.feature_shape)
            except SettingError as error:
                raise RequestError(str(error)) from error
        if (count := sum(hello.frames.values())) > MOST_FRAMES:
            raise RequestError(f"{count} frames are declared; a vehicle may have {MOST_FRAMES} at most")
        for split in ("train", "val", "test"):
            if hello.frames.get(split, 0) < 1:
                raise RequestError(f"no {split} frames; every vehicle needs train, val and test frames")
        for split, makers in hello.labels.items():
            if sum(makers.values()) != hello.frames.get(split, 0):
                raise RequestError(
                    f"labels of {sum(makers.values())} {split} frames are told, it has "
                    f"{hello.frames.get(split, 0)}"
                )

    def difference(self, declared: Hello | Declaration) -> str:
        """What of a vehicle's sizes is not the run's; empty where nothing is, or it is not settled yet."""
        shapes = self.feature_shapes
        if shapes is not None and declared.feature_shape not in shapes:
            return (
                f"encoder {declared.encoder!r} gives features of shape {shape_text(declared.feature_shape)}, "
                f"the cloud's network takes {' or '.join(map(shape_text, shapes))}; export the bundle for "
                f"this run"
            )
        if self.image_size is not None and declared.image_size != self.image_size:
            return (
                f"images of {shape_text(declared.image_size)} pixels, this run uses "
                f"{shape_text(self.image_size)}"
            )
        return ""

    def settle(self, declared: Mapping[str, Declaration]) -> dict[str, str]:
        """Fix what is not fixed as most of these vehicles have it, of as many as the first of them has it;
        returns why the others don't fit, by vehicle."""
        if not declared:
            return {}
        if self.feature_shapes is None:
            self.feature_shapes = (_most([each.feature_shape for each in declared.values()]),)
        if self.image_size is None:
            self.image_size = _most([each.image_size for each in declared.values()])
        reasons = {vehicle: self.difference(each) for vehicle, each in declared.items()}
        return {vehicle: reason for vehicle, reason in reasons.items() if reason}


def _most(values: Sequence[_Value]) -> _Value:
    """The most frequent one; of several the first."""
    return Counter(values).most_common(1)[0][0]


def shape_text(sizes: Sequence[int]) -> str:
    """Sizes as people write them: `64x48`."""
    return "x".join(map(str, sizes))
