"""What attacks are made from: frames of a run, what crossed of them, and what attackers may have besides.

What crossed is made again from the run's folder: the encoder as the vehicle last had it, the frames as it saw
them, the run's coding, as many frames a message. It is what the cloud predicted the test frames from.
Legend: B frames, C feature channels, h w feature rows and columns, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloud_server.algorithms.row import AlgorithmRow, one_model
from cloud_server.algorithms.table import algorithm_row
from datasets.catalog import open_dataset
from datasets.frame import FrameSource
from edge_client.coarse_labels import coarsen_label
from edge_client.encoder.bundle import EncoderBundle
from edge_client.frames import FrameCache, Sight
from fleet.errors import OperatorError
from fleet.export.local_model import WholeNetwork
from fleet.frames.allocation import Share, data_folder, evenly_spaced, vehicle_encoder
from fleet.frames.partition_record import settle_shares
from fleet.model.check import coded
from fleet.model.export import read_ended
from fleet.model.served import Served, read_served
from fleet.scenario import Scenario
from fleet.start import ENCODER_NAME
from fleet.start import FOLDER_NAME as START_FOLDER
from protocol.codec.bits import encode_within
from protocol.codec.tensor import encode
from protocol.plans.coding import Coding
from protocol.plans.sharing import Sharing

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]

UNROUNDED = Coding(bits=32)
_FRAMES_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames at the encoder's input size."""

    keys: tuple[str, ...]
    image_BHWC: Pixels
    label_BHW: Pixels

    @property
    def mean_HWC(self) -> Pixels:
        """The mean picture."""
        return np.asarray(self.image_BHWC.mean(axis=0).round(), np.uint8)


class Material:
    """One run, one vehicle whose frames are attacked, and the others' frames, which attackers have."""

    def __init__(
        self, scenario: Scenario, run_folder: Path, vehicle: str, *, frames: int, shadow_frames: int
    ) -> None:
        """`frames` of the vehicle's test frames are attacked, with at most so many of others' frames.

        Raises:
            OperatorError: the fleet has one vehicle alone.
            Mistake, OSError: a part of the run, or a frame, is missing or damaged.
        """
        self.scenario, self.run_folder, self.vehicle = scenario, run_folder, vehicle
        self.row: AlgorithmRow[Any] = algorithm_row(scenario.algorithm)
        self._source: FrameSource = open_dataset(scenario.dataset.name, data_folder(scenario, run_folder))
        self._cache = FrameCache(self._source, scenario.frame_size)
        self.shares: dict[str, Share] = settle_shares(scenario, run_folder, self._source)
        others = [other for other in self.shares if other != vehicle]
        if not others:
            raise OperatorError(
                "the fleet of this run has one vehicle: attackers would have no frames to train on; audit a "
                "run of two or more"
            )
        self.neighbour = others[0]
        """Another vehicle, as an attacker."""
        self.served: Served = read_served(scenario, run_folder, vehicle)
        self.target = self._frames(vehicle, evenly_spaced(self.shares[vehicle].test, frames))
        theirs = [
            (other, key)
            for other in others
            for key in (*self.shares[other].train, *self.shares[other].val, *self.shares[other].test)
        ]
        self.shadow = self._seen(evenly_spaced(theirs, shadow_frames))

    def split(self, split: str, most: int) -> Frames:
        """Some of the vehicle's own frames: `train`, `val` or `test`."""
        return self._frames(self.vehicle, evenly_spaced(getattr(self.shares[self.vehicle], split), most))

    def gallery(self, most: int) -> tuple[Frames, tuple[str, ...]]:
        """Frames of all drives of the data set but those attacked, seen clearly, and the drive of each."""
        attacked = frozenset(self.target.keys)
        refs = [ref for ref in self._source.refs if ref.key not in attacked and ref.label_path is not None]
        chosen = evenly_spaced(refs, most)
        frames = self._seen([("", ref.key) for ref in chosen])
        return frames, tuple(f"{ref.city}/{ref.sequence}" for ref in chosen)

    def drives(self, keys: Sequence[str]) -> tuple[str, ...]:
        """The drive that each frame is of."""
        return tuple(f"{ref.city}/{ref.sequence}" for ref in map(self._cache.ref, keys))

    def _frames(self, vehicle: str, keys: Sequence[str]) -> Frames:
        return self._seen([(vehicle, key) for key in keys])

    def _seen(self, frames: Sequence[tuple[str, str]]) -> Frames:
        """Of pairs of vehicle and key, as that vehicle sees them."""
        pairs = [self._cache.resized(key, self._sight(vehicle)) for vehicle, key in frames]
        return Frames(
            keys=tuple(key for _, key in frames),
            image_BHWC=np.stack([image_HWC for image_HWC, _ in pairs]),
            label_BHW=np.stack([label_HW for _, label_HW in pairs]),
        )

    def _sight(self, vehicle: str) -> Sight | None:
        share = self.shares.get(vehicle)
        return share.sight.sight() if share is not None and share.sight else None

    # What crosses

    def told_labels(self, frames: Frames) -> Pixels:
        """label_BHW as the cloud would be told them, were these train frames."""
        side = self.scenario.privacy.label_square
        return np.stack([coarsen_label(label_HW, side) for label_HW in frames.label_BHW])

    @property
    def sends_features(self) -> bool:
        """Whether vehicles do."""
        return self.row.build is not None and not self.row.needs.whole_network

    @cached_property
    def answers_a_frame(self) -> int:
        """Losses or loss maps about one of its train frames that the vehicle had in a turn, at most."""
        _, result = read_ended(self.run_folder)
        return int(result["vehicles"][self.vehicle].get("answers_per_frame", 0))

    @property
    def encoders_cross(self) -> bool:
        """Whether weights of encoders do, or what gives them."""
        return self.scenario.way(Sharing).encoder != "none" or (
            self.sends_features and self.row.ends_with_one_model is one_model
        )

    @property
    def coding(self) -> Coding:
        """How features are coded; as they are where none are sent."""
        return self.served.coding or UNROUNDED

    def features(self, encoder: nn.Module, image_BHWC: Pixels, coding: Coding) -> Features:
        """What the cloud decodes of these frames."""
        return np.concatenate([coded(raw, coding) for raw in self._messages(encoder, image_BHWC)])

    def bits_a_frame(self, encoder: nn.Module, image_BHWC: Pixels, coding: Coding) -> float:
        """Of coded features, without the message around them."""
        payload = 0
        for raw_BChw in self._messages(encoder, image_BHWC):
            message = (
                encode(raw_BChw, coding.bits)
                if coding.frame_bytes is None
                else encode_within(raw_BChw, bytes_per_frame=coding.frame_bytes, most_bits=coding.bits)
            )
            payload += message.payload_bytes
        return 8 * payload / len(image_BHWC)

    def _messages(self, encoder: nn.Module, image_BHWC: Pixels) -> list[Features]:
        """Features before coding, as many frames at once as in the run."""
        size = self.served.frames_at_once if self.sends_features else _FRAMES_AT_ONCE
        with torch.inference_mode():
            return [
                encoder(torch.from_numpy(image_BHWC[first : first + size])).numpy()
                for first in range(0, len(image_BHWC), size)
            ]

    # What an attacker may know

    @cached_property
    def trained_encoder(self) -> nn.Module:
        """The vehicle's, as it is at the end: what makes the features."""
        return self._encoder(self.vehicle, self.served.theta)

    @cached_property
    def initial_encoder(self) -> nn.Module:
        """As the operator gave it to the vehicle."""
        return self._encoder(self.vehicle, self._theta0(self.vehicle))

    @cached_property
    def neighbour_encoder(self) -> nn.Module:
        """Another vehicle's, as it is at the end."""
        served = read_served(self.scenario, self.run_folder, self.neighbour)
        return self._encoder(self.neighbour, served.theta)

    @cached_property
    def unrelated_encoder(self) -> nn.Module:
        """Of the same architecture, from another seed."""
        name = vehicle_encoder(self.scenario, self.vehicle)
        built = self.scenario.architecture(name)
        built.initialise(self.scenario.seed + 1)
        return built.eval().folded().requires_grad_(False)

    def _theta0(self, vehicle: str) -> NDArray[np.float32]:
        if self.scenario.start is not None:
            return EncoderBundle.load(self.run_folder / START_FOLDER / ENCODER_NAME).theta0
        built = self.scenario.build_encoder(vehicle_encoder(self.scenario, vehicle)).folded()
        return np.asarray(nn.utils.parameters_to_vector(built.parameters()).detach().numpy())

    def _encoder(self, vehicle: str, theta: NDArray[np.float32]) -> nn.Module:
        encoder = self.scenario.build_encoder(vehicle_encoder(self.scenario, vehicle)).folded()
        nn.utils.vector_to_parameters(torch.from_numpy(theta.copy()), encoder.parameters())
        return encoder.eval().requires_grad_(False)

    def whole_network(self) -> nn.Module:
        """Encoder and network as vehicles train them: image_BHWC to logits_BKhw, a batch's own statistics."""
        encoder, network = copy.deepcopy(self.trained_encoder), copy.deepcopy(self.served.network)
        return WholeNetwork(encoder, network).train().requires_grad_(True)


Progress = Callable[[int, int], None]
"""Told how many steps are done, and of how many."""
