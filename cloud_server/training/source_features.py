"""Labelled features of the source domain: the operator's own, in the coding of uploads, in one file.

They are those of the encoder that vehicles start from. While vehicles adapt, the cloud rehearses them, so
that its network does not forget the source. Legend: B frames, C channels, H W rows and columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_server.config import CloudConfig
from cloud_server.errors import CloudError
from protocol.atomic import write_bytes_atomic
from protocol.codec.labels import decode_label, encode_label
from protocol.codec.tensor import CodecError, EncodedTensor, decode, encode
from protocol.noise import derive_seed, permutation, uniform

_DIGEST_BYTES = 32

LabelledFeatures = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""features_BCHW and label_BHW."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    features: EncodedTensor
    height: int
    width: int
    label: bytes


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    frames: tuple[_Frame, ...]


@dataclass(frozen=True)
class SourceFeatures:
    """Frames of one feature shape, decoded as they are asked for."""

    frames: tuple[_Frame, ...]
    num_classes: int

    @classmethod
    def load(cls, path: Path, num_classes: int) -> SourceFeatures:
        """Read what `write_source_features` wrote.

        Raises:
            CloudError: the file is damaged, or of other labels.
            OSError: it can't be read.
        """
        raw = path.read_bytes()
        digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise CloudError(f"{path} is damaged: its checksum is wrong")
        try:
            frames = msgspec.msgpack.decode(body, type=_File).frames
        except msgspec.DecodeError as error:
            raise CloudError(f"{path} holds no source features: {error}") from error
        if not frames:
            raise CloudError(f"{path} holds no frames")
        loaded = cls(frames, num_classes)
        try:
            loaded.batch([0])
        except CodecError as error:
            raise CloudError(f"{path} holds other source features than this run's: {error}") from error
        return loaded

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """C, H, W."""
        return self.frames[0].features.shape[1:]

    def batch(self, indices: Sequence[int]) -> LabelledFeatures:
        """features_BCHW float32 and label_BHW uint8 of some frames.

        Raises:
            CodecError: what is in the file does not decode.
        """
        chosen = [self.frames[index] for index in indices]
        return (
            np.concatenate([decode(one.features, expected_shape=(1, *self.feature_shape)) for one in chosen]),
            np.stack(
                [
                    decode_label(one.label, height=one.height, width=one.width, num_classes=self.num_classes)
                    for one in chosen
                ]
            ),
        )


def write_source_features(
    path: Path, features_nCHW: NDArray[np.float32], label_nHW: NDArray[np.uint8], bits: int
) -> None:
    """Write features, quantised frame by frame, and labels, lossless; atomically.

    Raises:
        UncodableError, SettingError: not finite; unknown `bits`.
        OSError: the file can't be written.
    """
    _, height, width = label_nHW.shape
    frames = tuple(
        _Frame(encode(features_CHW[None], bits), height, width, encode_label(label_HW))
        for features_CHW, label_HW in zip(features_nCHW, label_nHW, strict=True)
    )
    body = msgspec.msgpack.encode(_File(version=1, frames=frames))
    write_bytes_atomic(path, hashlib.sha256(body).digest() + body)


@dataclass(frozen=True, kw_only=True)
class SourceReplay:
    """When the cloud rehearses the source, and on which frames: a function of the seed and the step alone."""

    features: SourceFeatures
    probability: float
    batch_size: int
    seed: int

    def after(self, step: int) -> LabelledFeatures | None:
        """The batch that follows training step `step`; None where none does."""
        seed = derive_seed(self.seed, "source-replay", step)
        if uniform(seed, 1)[0] >= self.probability:
            return None
        order = permutation(derive_seed(seed, "frames"), len(self.features))
        return self.features.batch(order[: self.batch_size].tolist())


def load_source_replay(
    config: CloudConfig,
    run_folder: Path,
    *,
    num_classes: int,
    feature_shapes: Collection[tuple[int, ...]],
) -> SourceReplay | None:
    """What the settings ask for; None where they ask for none.

    Args:
        feature_shapes: C, H, W of what the network takes.

    Raises:
        CloudError: they are of another shape, or see `SourceFeatures.load`.
        OSError: see there.
    """
    network = config.network
    if network.source_features is None or network.source_replay == 0:
        return None
    features = SourceFeatures.load(run_folder / network.source_features, num_classes)
    if features.feature_shape not in feature_shapes:
        raise CloudError(
            f"source features of shape {features.feature_shape}, the vehicles' are of "
            f"{' or '.join(map(str, feature_shapes))}; take those of the encoder that vehicles start from"
        )
    return SourceReplay(
        features=features,
        probability=network.source_replay,
        batch_size=config.first_order.batch_size,
        seed=config.seed,
    )
