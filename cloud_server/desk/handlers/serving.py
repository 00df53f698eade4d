"""What a vehicle that drives is answered: a class map of what it sees, outside of every turn.

It changes nothing: neither a network nor a turn, and nothing of it is remembered.
Legend: C channels, H W feature rows and columns, h w those of the encoder's input.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.registry import Registry
from cloud_server.errors import RequestError
from protocol.codec.labels import encode_label
from protocol.codec.plausible import implausible
from protocol.codec.tensor import decode
from protocol.messages import ClassMap, Seen, WantServing
from protocol.messages import Serving as Served
from protocol.messages.serving import SERVED
from protocol.plans.coding import Coding


class Answer(NamedTuple):
    """What a network makes of a frame."""

    label_hw: NDArray[np.uint8]
    uncertainty: float
    """0 to 1."""
    stage: int
    """How many stages were committed when the network was as it is here."""


class ServesFrames(Protocol):
    """The networks that serve vehicles."""

    def class_map(
        self, vehicle: str, features_1CHW: NDArray[np.float32], size_hw: tuple[int, int]
    ) -> Answer | None:
        """What the vehicle's network makes of a frame; None: there is none for it yet."""
        ...


def welcome(request: WantServing, registry: Registry, coding: Coding) -> Served:
    """Say how features are to be coded.

    Raises:
        RequestError: the vehicle has not said hello, or has not said that it will ask.
    """
    _check(request, registry)
    return Served(vehicle=request.vehicle, session=request.session, coding=coding)


def answer(request: Seen, registry: Registry, networks: ServesFrames) -> ClassMap:
    """The class map of a frame, at the size of the encoder's input.

    Raises:
        RequestError, CodecError: the vehicle is none that is served, or its features are not of its shape, or
            nothing that an encoder gives.
    """
    _check(request, registry)
    features_1CHW = decode(request.features, expected_shape=(1, *registry.feature_shape(request.vehicle)))
    if wrong := implausible(features_1CHW):
        raise RequestError(f"features hold {wrong}")
    width, height = registry.declaration(request.vehicle).image_size
    found = networks.class_map(request.vehicle, features_1CHW, (height, width))
    if found is None:
        raise RequestError("no network serves this vehicle yet: one will when the stage under way is over")
    return ClassMap(
        vehicle=request.vehicle,
        session=request.session,
        number=request.number,
        height=height,
        width=width,
        classes=encode_label(found.label_hw),
        uncertainty=found.uncertainty,
        stage=found.stage,
    )


def _check(request: WantServing | Seen, registry: Registry) -> None:
    record = registry.record(request.vehicle)
    if record.failed:
        raise RequestError(f"it has failed in this run, which goes on without it: {record.failed}")
    hello = record.hello
    if hello is None or request.session != record.session:
        raise RequestError("this process has not been welcomed yet")
    if SERVED not in hello.equipment:
        raise RequestError("this process has not said that it will ask for class maps")
