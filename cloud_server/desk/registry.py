"""Who is in the fleet: sessions, presence, declarations and byte counts of every vehicle."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloud_server.desk.ledger import UploadCounts
from cloud_server.errors import CloudError, RequestError
from protocol.codec.bits import check_frame_bytes
from protocol.messages import PROTOCOL_VERSION, SPLITS, Hello, Status


@dataclass(kw_only=True)
class VehicleRecord:
    """What the cloud knows of one vehicle."""

    hello: Hello | None = None
    online: bool = False
    session: str = ""
    """Of the latest status or hello."""
    last_seen: float = 0.0
    """time.monotonic() of its latest sign of life."""
    uplink: Counter[str] = field(default_factory=Counter)
    """PUBLISH bytes from this vehicle by message type."""
    downlink: Counter[str] = field(default_factory=Counter)
    """PUBLISH bytes to this vehicle by message type."""
    queries: int = 0
    answers_per_frame: int = 0
    """Most answers that queries have brought about any one frame in one turn."""
    rejects: int = 0
    uploads: UploadCounts = field(default_factory=UploadCounts)


class Registry:
    """The expected vehicles, and what they have to agree on."""

    def __init__(
        self,
        vehicles: Sequence[str],
        *,
        label_space: str,
        feature_shapes: Sequence[tuple[int, int, int]] | None,
        frame_bytes: int | None = None,
    ) -> None:
        """`feature_shapes` are those that vehicles may declare; None = that of the first one for all.
        `frame_bytes`: see `CloudConfig`."""
        self.vehicles = {vehicle: VehicleRecord() for vehicle in vehicles}
        self.label_space = label_space
        self.feature_shapes = None if feature_shapes is None else tuple(feature_shapes)
        self._frame_bytes = frame_bytes
        self.image_size: tuple[int, int] | None = None
        self.strangers = 0
        """Rejected messages of ids that are not in the fleet, or of none."""

    def record(self, vehicle: str) -> VehicleRecord:
        """The record of a vehicle.

        Raises:
            RequestError: the fleet has no such vehicle.
        """
        try:
            return self.vehicles[vehicle]
        except KeyError:
            some = ", ".join(list(self.vehicles)[:5]) + (", …" if len(self.vehicles) > 5 else "")
            raise RequestError(
                f"vehicle {vehicle!r} is not in this fleet ({len(self.vehicles)} vehicles: {some}); "
                f"add it to the cloud's vehicle list"
            ) from None

    def admit(self, hello: Hello) -> bool:
        """Take a vehicle in; True if this is a process that was not known before.

        Raises:
            RequestError: it doesn't fit the run; the reason is for its operator.
        """
        record = self.record(hello.vehicle)
        if hello.protocol != PROTOCOL_VERSION:
            raise RequestError(f"protocol version {hello.protocol}, this cloud speaks {PROTOCOL_VERSION}")
        if hello.label_space != self.label_space:
            raise RequestError(f"labels of {hello.label_space!r}, this run is about {self.label_space!r}")
        if min(hello.feature_shape) < 1 or min(hello.image_size) < 1:
            raise RequestError(f"impossible feature shape {hello.feature_shape} of {hello.image_size}")
        if self.feature_shapes is not None and hello.feature_shape not in self.feature_shapes:
            raise RequestError(
                f"encoder {hello.encoder!r} gives features of shape {shape_text(hello.feature_shape)}, the "
                f"cloud's network takes {' or '.join(map(shape_text, self.feature_shapes))}; export the "
                f"bundle for this run"
            )
        if self._frame_bytes is not None:
            try:
                check_frame_bytes(self._frame_bytes, hello.feature_shape)
            except ValueError as error:
                raise RequestError(str(error)) from error
        if self.image_size is not None and hello.image_size != self.image_size:
            raise RequestError(
                f"images of {shape_text(hello.image_size)} pixels, this run uses "
                f"{shape_text(self.image_size)}"
            )
        for split in ("train", "val", "test"):
            if hello.frames.get(split, 0) < 1:
                raise RequestError(f"no {split} frames; every vehicle needs train, val and test frames")
        earlier = record.hello
        if earlier is not None and (earlier.bundle_digest, earlier.frames) != (
            hello.bundle_digest,
            hello.frames,
        ):
            raise RequestError("came back with another bundle or other frames than it joined with")
        if self.feature_shapes is None:
            self.feature_shapes = (hello.feature_shape,)
        self.image_size = hello.image_size
        is_new = earlier is None or earlier.session != hello.session
        record.hello = hello
        record.session = hello.session
        record.online = True
        return is_new

    def note_status(self, status: Status) -> None:
        """Follow a vehicle's presence; a late will of an earlier session is ignored."""
        record = self.record(status.vehicle)
        if status.online or status.session == record.session:
            record.online = status.online
            record.session = status.session
            record.last_seen = time.monotonic()

    def count_reject(self, vehicle: str) -> int:
        """Count a rejected message; returns how many there were of this vehicle, or of all strangers."""
        record = self.vehicles.get(vehicle)
        if record is None:
            self.strangers += 1
            return self.strangers
        record.rejects += 1
        return record.rejects

    def missing(self) -> list[str]:
        """Vehicles that have not introduced themselves."""
        return [vehicle for vehicle, record in self.vehicles.items() if record.hello is None]

    def feature_shape(self, vehicle: str) -> tuple[int, int, int]:
        """C, H, W of one frame's features on a vehicle that has introduced itself."""
        return self._hello(vehicle).feature_shape

    def frames(self, vehicle: str, split: str) -> range:
        """Indices of a split on a vehicle: frames are numbered through the splits in order."""
        hello = self._hello(vehicle)
        first = sum(hello.frames.get(earlier, 0) for earlier in SPLITS[: SPLITS.index(split)])
        return range(first, first + hello.frames.get(split, 0))

    def _hello(self, vehicle: str) -> Hello:
        hello = self.vehicles[vehicle].hello
        if hello is None:
            raise CloudError(f"vehicle {vehicle!r} has not introduced itself")
        return hello


def shape_text(sizes: Sequence[int]) -> str:
    """Sizes as people write them: `64x48`."""
    return "x".join(map(str, sizes))
