"""A start: what `blackfleet pretrain` leaves for fleets to begin from, as a folder.

    encoder/                    the encoder bundle with the trained weights
    cloud_network.safetensors   the cloud network's weights and BatchNorm statistics
    source_features.msgpack     labelled features of train frames, for the cloud to rehearse
    surrogate/                  a small head trained on those, to stand for the network on vehicles
    start.json                  what it is, and the sha256 of each file; written last

A run keeps a copy in its own folder.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge_client.encoder.bundle import BundleError, EncoderBundle
from fleet.errors import OperatorError
from protocol.atomic import new_folder_beside, sync_folder, write_bytes_atomic

if (
    TYPE_CHECKING
):  # every command knows what a start is: torch and ONNX Runtime are for those that begin at one
    from torch import Tensor, nn

FOLDER_NAME = "start"
"""Of the copy in a run folder."""
SPEC_NAME = "start.json"
ENCODER_NAME = "encoder"
NETWORK_NAME = "cloud_network.safetensors"
FEATURES_NAME = "source_features.msgpack"
HEAD_NAME = "surrogate"


class StartSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`start.json`."""

    format_version: Literal[1]
    encoder: str
    """As a scenario names it."""
    network: str
    """As a scenario names it."""
    image_size: tuple[int, int]
    """Width and height in pixels."""
    label_space: str
    feature_shape: tuple[int, int, int]
    """C, H, W of one frame's features."""
    seed: int
    dataset: str
    """A row of `datasets.catalog.DATASETS`."""
    cities: tuple[str, ...]
    """Where the source frames were taken."""
    val: tuple[str, ...]
    """Keys of the source's validation frames."""
    test: tuple[str, ...]
    """Keys of the source's test frames, on which forgetting is measured."""
    test_label_digests: tuple[str, ...]
    """`protocol.codec.labels.content_hash` of each test frame's label, in hexadecimal."""
    val_miou: float
    """0 to 1, at the end of the training, at the encoder's input size."""
    test_miou: float | None
    """0 to 1, at the end of the training, at the labels' own size; None where it is undefined."""
    sha256: dict[str, str]
    """By file, relative to the folder."""

    def __post_init__(self) -> None:
        if len(self.test) != len(self.test_label_digests):
            raise ValueError(f"{len(self.test)} test frames, {len(self.test_label_digests)} label digests")


@dataclass(frozen=True)
class Start:
    """A start on disk, checked: `Start.load(folder)`."""

    folder: Path
    spec: StartSpec

    @classmethod
    def load(cls, folder: Path) -> Start:
        """Read the description and check every file against it.

        Raises:
            OperatorError: the folder holds no start, or a file is not the one that was written.
        """
        try:
            spec = msgspec.json.decode((folder / SPEC_NAME).read_bytes(), type=StartSpec)
            for name, expected in spec.sha256.items():
                if digest_of(folder / name) != expected:
                    raise ValueError(f"{name} is not the file that was written (sha256 differs)")
        except FileNotFoundError as error:
            raise OperatorError(
                f"{folder} holds no start ({Path(error.filename).name} is missing); make one with "
                f"`blackfleet pretrain {folder}`, or end one that was interrupted with --resume"
            ) from error
        except OSError as error:
            raise OperatorError(f"can't read the start in {folder}: {error.strerror}") from error
        except (ValueError, msgspec.DecodeError) as error:
            raise OperatorError(f"damaged start {folder}: {error}; pretrain again") from error
        return cls(folder, spec)

    @property
    def encoder_folder(self) -> Path:
        """Of the bundle that every vehicle starts with."""
        return self.folder / ENCODER_NAME

    @property
    def head_folder(self) -> Path | None:
        """Of the head that stands for the network; None: it was pretrained before there were any."""
        from edge_client.local.head import SPEC_NAME as HEAD_SPEC_NAME

        has_one = f"{HEAD_NAME}/{HEAD_SPEC_NAME}" in self.spec.sha256
        return self.folder / HEAD_NAME if has_one else None

    def begin(self, encoder: nn.Module, network: nn.Module) -> None:
        """Copy the trained weights, and the network's BatchNorm statistics, into these modules.

        `encoder` is folded: its parameters, in order, are the θ of a bundle.

        Raises:
            OperatorError: they are of other architectures.
        """
        import torch

        from cloud_server.storage.checkpoint import CheckpointError

        try:
            theta = torch.from_numpy(EncoderBundle.load(self.encoder_folder).theta0.copy())
            own = sum(parameter.numel() for parameter in encoder.parameters())
            if theta.numel() != own:
                raise OperatorError(
                    f"the start in {self.folder} doesn't fit: its encoder has {theta.numel()} parameters, "
                    f"expected {own}"
                )
            torch.nn.utils.vector_to_parameters(theta, encoder.parameters())
            network.load_state_dict(self.network_weights())
        except (RuntimeError, BundleError, CheckpointError) as error:
            raise OperatorError(f"the start in {self.folder} doesn't fit: {_one_line(error)}") from error

    def network_weights(self) -> dict[str, Tensor]:
        """The cloud network's state.

        Raises:
            CheckpointError, OSError: the file is damaged, or can't be read.
        """
        from cloud_server.storage.checkpoint import read_tensors

        return read_tensors(self.folder / NETWORK_NAME)[0]

    def copy(self, folder: Path) -> Start:
        """Copy it to `folder` at once, in place of what is there.

        Raises:
            OperatorError: a file has changed meanwhile.
            OSError: `folder` can't be written.
        """
        written = new_folder_beside(folder)
        try:
            for name in (*self.spec.sha256, SPEC_NAME):
                (written / name).parent.mkdir(parents=True, exist_ok=True)
                write_bytes_atomic(written / name, (self.folder / name).read_bytes())
            Start.load(written)
            shutil.rmtree(folder, ignore_errors=True)
            written.replace(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(written, ignore_errors=True)
        return Start(folder, self.spec)


def write_spec(folder: Path, **fields: Any) -> Start:
    """Describe the files that are in `folder`; with this the start is complete.

    `fields` are those of `StartSpec` but for `format_version` and `sha256`.
    """
    names = [
        f"{part}/{path.name}"
        for part in (ENCODER_NAME, HEAD_NAME)
        for path in sorted((folder / part).iterdir())
    ]
    names += [NETWORK_NAME, FEATURES_NAME]
    spec = StartSpec(
        format_version=1,
        sha256={name: digest_of(folder / name) for name in names},
        **fields,
    )
    write_bytes_atomic(folder / SPEC_NAME, msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
    return Start(folder, spec)


def digest_of(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
