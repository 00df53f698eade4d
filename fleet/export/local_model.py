"""Writes the whole segmentation network as programs that a vehicle trains without knowing its architecture.

Traced, not scripted: a trace holds any network, SegFormer's too, and needs nothing but torch to run, of any
version from 2.4 on. Legend: B frames, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cloud_server.networks.build import build_network
from cloud_server.training.losses import downsample_labels, find_loss
from datasets.catalog import label_space
from fleet.export.encoders import ImageEncoder, build_encoder
from protocol.atomic import write_bytes_atomic
from protocol.codec.weights import pack
from protocol.local_model import (
    FORMAT_VERSION,
    SPEC_NAME,
    WEIGHTS_NAME,
    EntrySpec,
    LocalModel,
    LocalModelSpec,
    program_file,
)

_TRACED_FRAMES = 2
_STATISTICS = ("running_mean", "running_var")


class WholeNetwork(nn.Module):
    """Encoder and cloud network as one: image_BHWC uint8 RGB → logits_BKhw."""

    def __init__(self, encoder: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = network

    def forward(self, image_BHWC: Tensor) -> Tensor:
        logits_BKhw: Tensor = self.network(self.encoder(image_BHWC))
        return logits_BKhw


class SegmentationLoss(nn.Module):
    """A row of `training.losses.LOSSES` at the logits' size: (logits_BKhw, label_BHW uint8) → scalar.

    With weights of classes, float32 (K,), as a third argument they count.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._loss = find_loss(name)

    def forward(self, logits_BKhw: Tensor, label_BHW: Tensor, weight_K: Tensor | None = None) -> Tensor:
        label_Bhw = downsample_labels(label_BHW, (logits_BKhw.shape[-2], logits_BKhw.shape[-1]))
        return self._loss(logits_BKhw, label_Bhw, weight_K)


def build_whole_network(
    encoder: str,
    network: str,
    *,
    image_size: tuple[int, int],
    num_classes: int,
    encoder_seed: int,
    network_seed: int,
    encoder_weights: Path | None = None,
    network_weights: Path | None = None,
    begin: Callable[[ImageEncoder, nn.Module], None] | None = None,
) -> WholeNetwork:
    """The network that split learning cuts in two, with the very weights that both halves start from.

    `begin` puts other weights than the seeds' into encoder and network.

    Raises:
        SettingError: an unknown name, or sizes that do not fit.
        OSError: weights can't be read.
    """
    plain = build_encoder(encoder, encoder_seed, encoder_weights).folded()
    width, height = image_size
    half = build_network(
        network,
        feature_shape=(plain.channels, height // plain.stride, width // plain.stride),
        feature_stride=plain.stride,
        num_classes=num_classes,
        seed=network_seed,
        weights=network_weights,
    )
    if begin is not None:
        begin(plain, half)
    return WholeNetwork(plain, half)


def export_local_model(
    folder: Path,
    *,
    encoder: str,
    network: str,
    loss: str,
    label_space_name: str,
    image_size: tuple[int, int],
    encoder_seed: int,
    network_seed: int,
    encoder_weights: Path | None = None,
    network_weights: Path | None = None,
    begin: Callable[[ImageEncoder, nn.Module], None] | None = None,
) -> LocalModel:
    """Write the folder that cloud and vehicles of a fedavg run need; the same arguments give the same model.

    Args:
        image_size: width and height in pixels.
        begin: see `build_whole_network`.

    Raises:
        SettingError: an unknown name, or sizes that do not fit.
        OSError: the folder can't be written.
    """
    width, height = image_size
    known = label_space(label_space_name)
    num_classes = known.num_classes
    module = build_whole_network(
        encoder,
        network,
        image_size=image_size,
        num_classes=num_classes,
        encoder_seed=encoder_seed,
        network_seed=network_seed,
        encoder_weights=encoder_weights,
        network_weights=network_weights,
        begin=begin,
    )
    # Taken before tracing, which runs the network and so moves its statistics.
    weights = {
        name: tensor.detach().clone().contiguous().numpy()
        for name, tensor in module.state_dict().items()
        if tensor.dtype == torch.float32  # the others only count batches
    }
    image_BHWC = torch.zeros(_TRACED_FRAMES, height, width, 3, dtype=torch.uint8)
    label_BHW = torch.zeros(_TRACED_FRAMES, height, width, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        with FlopCounterMode(display=False) as operations:
            logits_BKhw = module.eval()(image_BHWC).detach()
        programs = {
            "train": _trace(module.train(), image_BHWC),
            "predict": _trace(module.eval(), image_BHWC),
            "loss": _trace(SegmentationLoss(loss), logits_BKhw, label_BHW),
            "weighted_loss": _trace(SegmentationLoss(loss), logits_BKhw, label_BHW, torch.ones(num_classes)),
        }
    files = {program_file(name): program for name, program in programs.items()}
    files[WEIGHTS_NAME] = msgspec.msgpack.encode(pack(weights))
    spec = LocalModelSpec(
        format_version=FORMAT_VERSION,
        encoder=encoder,
        network=network,
        loss=loss,
        label_space=known.name,
        image_size=image_size,
        entries=tuple(
            EntrySpec(name=name, shape=array.shape, statistic=name.rpartition(".")[2] in _STATISTICS)
            for name, array in weights.items()
        ),
        sha256={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        multiply_adds=operations.get_total_flops() // (2 * _TRACED_FRAMES),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_bytes_atomic(folder / name, data)
    write_bytes_atomic(folder / SPEC_NAME, msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
    return LocalModel.load(folder)


def _trace(module: nn.Module, *examples: Tensor) -> bytes:
    with _quiet_tracing():
        traced = torch.jit.trace(module, examples, check_trace=False)  # type: ignore[no-untyped-call]
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Torch warns that a trace keeps sizes: they are fixed by the image size, only B varies, so it may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
