"""What the operator gives to cloud and vehicles where vehicles train the whole network (fedavg): a folder.

`model.json` describes it; `train.ts`, `predict.ts`, `loss.ts`, `weighted_loss.ts` are TorchScript programs,
which only vehicles run; `weights.msgpack` holds the initial weights, which the cloud averages by name.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from protocol.base import DEFAULT_LIMIT_BYTES
from protocol.codec.weights import WeightArrays, WeightTensor, unpack
from protocol.errors import Mistake

FORMAT_VERSION = 2
SPEC_NAME = "model.json"
WEIGHTS_NAME = "weights.msgpack"
FOLDER_NAME = "local_model"
"""In a run folder."""

PROGRAM_NAMES = ("train", "predict", "loss", "weighted_loss")
"""`train` and `predict`: image_BHWC uint8 RGB → logits_BKhw float32, with the BatchNorm of training and of
evaluation; `loss`: (logits_BKhw, label_BHW uint8) → a scalar; `weighted_loss`: the same, and what a pixel
counts by its class, float32 (K,)."""

_TENSOR_HEADER_BYTES = 1024
"""More than name and shape of a `WeightTensor` take, or the rest of a message."""


class LocalModelError(Mistake):
    """The folder is missing, damaged or of another format; the message says which file."""


class EntrySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One float32 tensor of the network's state."""

    name: str
    shape: tuple[int, ...]
    statistic: bool
    """A running statistic of a BatchNorm layer: kept, not learnt by gradient."""


class LocalModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `model.json`."""

    format_version: int
    encoder: str
    network: str
    loss: str
    label_space: str
    image_size: tuple[int, int]
    """Width, height in pixels."""
    entries: tuple[EntrySpec, ...]
    sha256: dict[str, str]
    """By file name."""
    multiply_adds: int = 0
    """Of one frame's prediction, of convolutions and matrix products; 0 = not counted."""

    def shapes(self, *, statistics: bool) -> dict[str, tuple[int, ...]]:
        """Shape by name of the parameters, and of the running statistics if they are wanted too."""
        return {entry.name: entry.shape for entry in self.entries if statistics or not entry.statistic}

    @property
    def message_bytes(self) -> int:
        """More than any message takes that holds all its weights."""
        elements = sum(math.prod(entry.shape) for entry in self.entries)
        return 4 * elements + _TENSOR_HEADER_BYTES * (1 + len(self.entries))

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """Names of the running statistics."""
        return tuple(entry.name for entry in self.entries if entry.statistic)


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A folder that has been read and checked."""

    spec: LocalModelSpec
    programs: dict[str, bytes]
    """TorchScript files by name, see `PROGRAM_NAMES`."""
    weights: WeightArrays
    """Initial float32 values of every entry."""

    @classmethod
    def load(cls, folder: Path) -> LocalModel:
        """Read a folder.

        Raises:
            LocalModelError: it is missing, damaged or of another format.
        """
        spec = _read_spec(folder)
        if spec.format_version != FORMAT_VERSION:
            raise LocalModelError(
                f"{folder} is a local model of format {spec.format_version}, this version reads "
                f"{FORMAT_VERSION}; export it again"
            )
        files = {name: _read(folder / name) for name in (*map(program_file, PROGRAM_NAMES), WEIGHTS_NAME)}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != spec.sha256.get(name):
                raise LocalModelError(f"{folder / name} is damaged: its checksum is wrong; export it again")
        try:
            tensors = msgspec.msgpack.decode(files[WEIGHTS_NAME], type=tuple[WeightTensor, ...])
            weights = unpack(tensors, spec.shapes(statistics=True))
        except (ValueError, msgspec.DecodeError) as error:
            raise LocalModelError(f"{folder / WEIGHTS_NAME} does not fit the model: {error}") from error
        programs = {name: files[program_file(name)] for name in PROGRAM_NAMES}
        return cls(spec=spec, programs=programs, weights=weights)


def program_file(name: str) -> str:
    """File name of a program."""
    return f"{name}.ts"


def largest_message_bytes(folder: Path | None) -> int:
    """The largest message that a run with the local model in `folder` has, or one without any.

    Raises:
        LocalModelError: the folder's description can't be read.
    """
    if folder is None or not (folder / SPEC_NAME).exists():
        return DEFAULT_LIMIT_BYTES
    return max(DEFAULT_LIMIT_BYTES, _read_spec(folder).message_bytes)


def _read_spec(folder: Path) -> LocalModelSpec:
    content = _read(folder / SPEC_NAME)
    try:
        return msgspec.json.decode(content, type=LocalModelSpec)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LocalModelError(f"{folder / SPEC_NAME} describes no local model: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalModelError(
            f"can't read {path}: {error.strerror}; blackfleet launch --algorithm fedavg writes this folder, "
            f"copy it to where it is needed"
        ) from error
