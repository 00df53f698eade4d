"""Loss maps of uploaded frames, kept from one round to the next, coded as they will be sent.

Legend: n frames, B frames of a batch, C channels, H W feature rows and columns, y x those of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from cloud_server.desk.agreement import shape_text
from cloud_server.desk.turns import Features
from cloud_server.errors import CloudError, RequestError
from cloud_server.training.trainer import DivergedError, Trainer
from datasets.augment import View
from protocol.codec.quantiser import UncodableError
from protocol.codec.tensor import EncodedTensor, encode
from protocol.errors import SettingError

_BITS = 8
_PREFIX = "loss_maps/"
_Batches = dict[tuple[int, ...], EncodedTensor]
"""Frame numbers of a batch → its maps (B, 1, y, x)."""


class KeptLossMaps:
    """By vehicle: where the loss of its latest train uploads lay, a batch at a time, with a scale each."""

    def __init__(self, *, batch_size: int, map_stride: int) -> None:
        """Start with none.

        Args:
            batch_size: frames of an upload.
            map_stride: feature cells that a cell of a map covers along each side.
        """
        self._batch_size = batch_size
        self._map_stride = map_stride
        self._by_vehicle: dict[str, _Batches] = {}

    def clear(self) -> None:
        """Keep none."""
        self._by_vehicle.clear()

    def keep(
        self, vehicle: str, train: Features, label_nHW: NDArray[np.uint8], trainer: Trainer
    ) -> list[NDArray[np.float32]]:
        """Evaluate the network, which stays as it is, on a vehicle's uploads, in place of what was kept.

        Returns the map of each frame, float32 (y, x).

        Raises:
            CloudError: cells of this size don't fit the features.
            DivergedError: a loss is not finite.
        """
        cells_yx = self._cells(train.features_BCHW.shape[2:])
        batches: _Batches = {}
        maps: list[NDArray[np.float32]] = []
        for start in range(0, len(train.indices), self._batch_size):
            chosen = slice(start, start + self._batch_size)
            try:
                map_Byx = trainer.loss_map(train.features_BCHW[chosen], label_nHW[chosen], cells_yx)
            except SettingError as error:
                raise CloudError(f"local_loss.weight_map_stride {self._map_stride}: {error}") from error
            if train.views:
                map_Byx = _of_whole_frames(map_Byx, train.views[chosen])
            maps.extend(map_Byx)
            try:
                batches[train.indices[chosen]] = encode(map_Byx[:, None], _BITS)
            except UncodableError as error:
                raise DivergedError(f"the loss maps of vehicle {vehicle!r} can't be sent: {error}") from error
        self._by_vehicle[vehicle] = batches
        return maps

    def find(self, vehicle: str, indices: tuple[int, ...]) -> EncodedTensor:
        """The maps (B, 1, y, x) of a batch.

        Raises:
            RequestError: these frames are not one of the vehicle's batches.
        """
        try:
            return self._by_vehicle[vehicle][indices]
        except KeyError:
            raise RequestError(
                f"no loss maps are kept of {len(indices)} frames from {indices[0]} on; they come in the "
                f"batches of the vehicle's uploads, {self._batch_size} frames each"
            ) from None

    def frames(self, vehicle: str) -> tuple[int, ...]:
        """The frames of a vehicle whose maps are kept, batch after batch."""
        return tuple(index for batch in self._by_vehicle.get(vehicle, {}) for index in batch)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything, for a checkpoint: one uint8 tensor a vehicle."""
        return {
            _PREFIX + vehicle: torch.frombuffer(
                bytearray(msgspec.msgpack.encode(list(batches.items()))), dtype=torch.uint8
            )
            for vehicle, batches in self._by_vehicle.items()
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what `tensors()`, among other tensors, were taken from.

        Raises:
            msgspec.DecodeError: a tensor holds something else.
        """
        self._by_vehicle = {
            name.removeprefix(_PREFIX): dict(
                msgspec.msgpack.decode(
                    tensor.numpy().tobytes(), type=list[tuple[tuple[int, ...], EncodedTensor]]
                )
            )
            for name, tensor in tensors.items()
            if name.startswith(_PREFIX)
        }

    def _cells(self, size_HW: tuple[int, ...]) -> tuple[int, int]:
        height, width = size_HW
        if height % self._map_stride or width % self._map_stride:
            raise CloudError(
                f"local_loss.weight_map_stride must divide the feature map of {shape_text((height, width))}, "
                f"got {self._map_stride}"
            )
        return height // self._map_stride, width // self._map_stride


def _of_whole_frames(map_Byx: NDArray[np.float32], views: Sequence[View]) -> NDArray[np.float32]:
    """Maps of what was seen as maps of the frames; what was not seen gets its frame's mean loss."""
    maps = zip(map_Byx, views, strict=True)
    return np.stack([view.whole_map(map_yx, unseen=float(map_yx.mean())) for map_yx, view in maps])
