"""Losses and predictions of a network that stays as it is, so that the same calls give the same bits.

Legend: n frames in all, B frames of a batch, C channels, H W feature or label rows and columns, K classes,
M copies of a batch's features, y x cells of a loss map.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cloud_server.errors import CloudError
from cloud_server.training.batch_statistics import collect_statistics
from cloud_server.training.compute import FORMAT, ON_CPU, Array, Compute, as_tensor, within_memory
from cloud_server.training.losses import (
    downsample_labels,
    entropy,
    entropy_map,
    find_loss,
    loss_map,
    per_frame,
)
from protocol.batches import batch_bounds
from protocol.charging import Computing, charge
from protocol.noise import permutation

_MAP_FRAMES = 8
"""Frames that go through the network together for loss maps, always as many. How a convolution rounds
depends on how many it is given; like this a frame's map has the same bits whatever it is evaluated with."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the body with `count` torch intra-op threads on this Python thread, then restore.

    The number of threads decides how sums are split, so it is part of what makes a result reproducible.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Inference:
    """Owns a network in evaluation mode.

    Every public method may be called from any thread, one at a time is served, each with `threads` intra-op
    threads, so the caller's thread makes no difference. Features are float32[B, C, H, W], labels
    uint8[B, H, W] of any size (compared at the logits' size, nearest pixel), both NumPy arrays or tensors.
    Where a loss is wanted without labels, it is the entropy of the predictions.
    """

    def __init__(self, network: nn.Module, *, loss: str, threads: int, compute: Compute = ON_CPU) -> None:
        """Move the network to where it is computed.

        Args:
            loss: a name in `cloud_server.training.losses.LOSSES`.

        Raises:
            OutOfMemory: there is no room for it.
        """
        self._loss = find_loss(loss)
        self.compute = self._compute = compute
        with within_memory(compute.device):
            self._network = network.eval().to(compute.device)
        for parameter in self._network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=FORMAT)
        self._inference_threads = threads
        self._class_weights: Callable[[], NDArray[np.float32]] | None = None
        self._lock = threading.RLock()

    def weigh_classes(self, weights: Callable[[], NDArray[np.float32]]) -> None:
        """From now on a pixel counts by its class in losses against labels, and in their maps.

        `weights` is asked at each of them: float32 (K,).
        """
        self._class_weights = weights

    def evaluate_loss(self, features_BCHW: Array, label_BHW: Array | None) -> float:
        """Return the loss of the batch."""
        with self._inference():
            return self._evaluate_loss(self._compute.features(features_BCHW), label_BHW).item()

    def evaluate_losses(self, features_BCHW: Array, label_BHW: Array) -> NDArray[np.float32]:
        """Return the loss of each frame, float32[B]."""
        with self._inference():
            losses_B = per_frame(self._weighted_loss, *self._evaluate(features_BCHW, label_BHW))
            return np.asarray(losses_B.cpu(), np.float32)

    def loss_map(
        self, features_BCHW: Array, label_BHW: Array | None, cells_yx: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Return `losses.loss_map`, or without labels `losses.entropy_map`, float32[B, y, x].

        Raises:
            SettingError: the grid doesn't fit the logits.
        """
        return self.loss_maps([features_BCHW], label_BHW, cells_yx)

    def loss_maps(
        self, copies: Iterable[Array], label_BHW: Array | None, cells_yx: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Return the `loss_map` of M copies of a batch, features_BCHW each, to the bit: float32[M·B, y, x].

        All copies make one batch, copy after copy, of which a slice is in memory at a time.

        Raises:
            SettingError: the grid doesn't fit the logits.
        """
        frames = (frame for features_BCHW in copies for frame in enumerate(as_tensor(features_BCHW)))
        slices = iter(lambda: tuple(islice(frames, _MAP_FRAMES)), ())
        with self._inference():
            return np.concatenate([self._map_slice(chosen, label_BHW, cells_yx) for chosen in slices])

    def predict(
        self, features_nCHW: Array, size_hw: tuple[int, int], *, chunk_frames: int = 16
    ) -> NDArray[np.uint8]:
        """Return the likeliest trainId of each pixel, uint8[n, *size_hw], logits enlarged bilinearly.

        At most `chunk_frames` frames' logits are held at once, as the network gives them; enlarged, those of
        one class alone: about 9 bytes a pixel and frame, however large labels are.
        """
        label_nhw = np.empty((len(features_nCHW), *size_hw), np.uint8)
        with self._inference():
            for start in range(0, len(label_nhw), chunk_frames):
                chosen = slice(start, start + chunk_frames)
                logits_BKhw = self._logits(self._compute.features(features_nCHW[chosen]))
                label_nhw[chosen] = _likeliest(logits_BKhw, size_hw).cpu().numpy()
        return label_nhw

    def class_map(self, features_1CHW: Array, size_hw: tuple[int, int]) -> tuple[NDArray[np.uint8], float]:
        """Return what `predict` does of one frame, uint8[*size_hw], and how unsure the network is of it: the
        mean entropy of its classes as a share of the greatest there is, from 0 to 1."""
        with self._inference():
            logits_1Khw = self._logits(self._compute.features(features_1CHW))
            greatest = math.log(max(2, logits_1Khw.shape[1]))
            unsure = min(1.0, max(0.0, entropy(logits_1Khw).item() / greatest))
            return _likeliest(logits_1Khw, size_hw)[0].cpu().numpy(), unsure

    def probabilities(self, features_nCHW: Array, *, chunk_frames: int = 16) -> NDArray[np.float32]:
        """Return the softmax over classes, float32[n, K, h, w] at the size of the logits."""
        with self._inference():
            return np.concatenate(
                [
                    self._logits(self._compute.features(features_nCHW[start : start + chunk_frames]))
                    .softmax(dim=1)
                    .cpu()
                    .numpy()
                    for start in range(0, len(features_nCHW), chunk_frames)
                ]
            )

    def logit_size(self, feature_shape: tuple[int, int, int]) -> tuple[int, int]:
        """Rows and columns of the logits of features of C, H, W."""
        with self._inference():
            height, width = self._logits(self._compute.features(torch.zeros(1, *feature_shape))).shape[-2:]
            return height, width

    def estimate_statistics(self, features_nCHW: Array, *, batch_size: int, seed: int) -> dict[str, Tensor]:
        """Return `collect_statistics` of these features, a part of `weights()`.

        Batches are alike, because their order is drawn from `seed`.
        """
        order_n = torch.from_numpy(permutation(seed, len(features_nCHW)))
        features_nCHW = as_tensor(features_nCHW)
        with self._working(self._inference_threads), self._compute.autocast():
            statistics = collect_statistics(
                self._network,
                (
                    self._compute.features(features_nCHW[order_n[start:stop]])
                    for start, stop in batch_bounds(len(order_n), batch_size)
                ),
            )
        return {name: value.cpu() for name, value in statistics.items()}

    def _map_slice(
        self, frames: tuple[tuple[int, Tensor], ...], label_BHW: Array | None, cells_yx: tuple[int, int]
    ) -> NDArray[np.float32]:
        """The maps of at most `_MAP_FRAMES` frames: of each the number of its label, and features_CHW."""
        numbers, features = zip(*frames, strict=True)
        filling = [torch.zeros_like(features[0])] * (_MAP_FRAMES - len(features))
        batch_BCHW = self._compute.features(torch.stack([*features, *filling]))
        logits_BKhw = self._logits(batch_BCHW)[: len(features)]
        if label_BHW is None:
            map_Byx = entropy_map(logits_BKhw, cells_yx)
        else:
            label_BHW = self._compute.tensor(as_tensor(label_BHW)[list(numbers)])
            label_Bhw = downsample_labels(label_BHW, logits_BKhw.shape[-2:])
            map_Byx = loss_map(logits_BKhw, label_Bhw, cells_yx, self._weight_K(logits_BKhw))
        return np.asarray(map_Byx.cpu(), np.float32)

    def _evaluate_loss(self, features_BCHW: Tensor, label_BHW: Array | None) -> Tensor:
        if label_BHW is None:
            return entropy(self._logits(features_BCHW))
        return self._weighted_loss(*self._evaluate(features_BCHW, label_BHW))

    def _weighted_loss(self, logits_BKhw: Tensor, label_Bhw: Tensor) -> Tensor:
        return self._loss(logits_BKhw, label_Bhw, self._weight_K(logits_BKhw))

    def _weight_K(self, logits_BKhw: Tensor) -> Tensor | None:
        """Where the logits are; None: all classes count alike."""
        if self._class_weights is None:
            return None
        return torch.from_numpy(self._class_weights()).to(logits_BKhw.device)

    def _evaluate(self, features_BCHW: Array, label_BHW: Array) -> tuple[Tensor, Tensor]:
        logits_BKhw = self._logits(self._compute.features(features_BCHW))
        return logits_BKhw, downsample_labels(self._compute.tensor(label_BHW), logits_BKhw.shape[-2:])

    def _logits(self, features_BCHW: Tensor) -> Tensor:
        """Of features on the device, float32."""
        charge(Computing.NETWORK, len(features_BCHW), features_BCHW.shape[-2] * features_BCHW.shape[-1])
        with self._compute.autocast():
            logits_BKhw: Tensor = self._network(features_BCHW)
        return logits_BKhw.float()

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the network's parameters and buffers."""
        with self._lock:
            return {name: on_host(value) for name, value in self._network.state_dict().items()}

    def network(self) -> nn.Module:
        """Return a copy of the network, in evaluation mode, on the CPU."""
        with self._lock:
            return copy.deepcopy(self._network).cpu().eval()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy `weights`, as from `weights()`, into the network; the optimiser is left as it is.

        Raises:
            CloudError: names or shapes are not those of this network.
        """
        with self._lock:
            own = self._network.state_dict()
            check_same(weights, own, "weights")
            for name, value in own.items():
                value.copy_(weights[name])

    @contextmanager
    def borrowed_weights(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Run the body's inference with other weights; none means the network's own."""
        if weights is None:
            yield
            return
        with self._lock:
            own = self.weights()
            self.load_weights(weights)
            try:
                yield
            finally:
                self.load_weights(own)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with self._working(self._inference_threads), torch.inference_mode():
            yield

    @contextmanager
    def _working(self, count: int) -> Iterator[None]:
        with self._lock, threads(count), within_memory(self._compute.device):
            yield


def on_host(tensor: Tensor) -> Tensor:
    """A copy of it in the host's memory."""
    return tensor.detach().cpu() if tensor.is_cuda else tensor.clone()


def check_same(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Same names and shapes.

    Raises:
        CloudError: they are not; `what` says of what.
    """
    shapes: Sequence[dict[str, tuple[int, ...]]] = [
        {name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (given, expected)
    ]
    if shapes[0] != shapes[1]:
        differing = sorted(
            name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        name = differing[0]
        raise CloudError(
            f"{what} of another network: {name} is {shapes[0].get(name, 'missing')}, "
            f"expected {shapes[1].get(name, 'nothing of that name')}"
        )


def _likeliest(logits_BKhw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The first of the likeliest classes of each pixel, uint8 (B, *size_hw), logits enlarged bilinearly.

    As `evaluation.likeliest` finds them where there is no torch; the two enlarge with other roundings.
    """
    best_B1hw, label_B1hw = None, None
    for train_id in range(logits_BKhw.shape[1]):
        enlarged_B1hw = functional.interpolate(
            logits_BKhw[:, train_id : train_id + 1], size=size_hw, mode="bilinear", align_corners=False
        )
        if best_B1hw is None or label_B1hw is None:
            best_B1hw, label_B1hw = enlarged_B1hw, torch.zeros_like(enlarged_B1hw, dtype=torch.uint8)
            continue
        label_B1hw[enlarged_B1hw > best_B1hw] = train_id
        torch.maximum(best_B1hw, enlarged_B1hw, out=best_B1hw)
    assert label_B1hw is not None, "a network has at least one class"
    return label_B1hw[:, 0]
