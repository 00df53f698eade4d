"""An update as one file: a flat container, described by a manifest that the operator signs.

    b"BFUPDATE"  length of the manifest (uint32)  length of the signature (uint16)   little endian
    manifest     JSON, with the size and SHA-256 of each file
    signature    of the manifest, so of everything
    files        one after the other, in the manifest's order, and nothing behind them

Names are plain file names, so that nothing is written outside the folder that it is unpacked into; nothing is
unpickled or run to read it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Meta

from protocol.base import Id
from protocol.errors import Mistake

SUFFIX = ".bfu"
MOST_BYTES = 512 * 1024 * 1024
"""Of a whole update."""
MOST_VERSION = 2**53
KINDS = ("bundle", "head", "settings")
Kind = Literal["bundle", "head", "settings"]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\Z", max_length=64)]

_MAGIC = b"BFUPDATE"
_HEADER = struct.Struct("<8sIH")
_MOST_MANIFEST_BYTES = 256 * 1024
_BLOCK_BYTES = 1024 * 1024


class UpdateError(Mistake):
    """An update that can't be used; the message says why."""


class PackedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of an update."""

    name: FileName
    bytes: Annotated[int, Meta(ge=0, le=MOST_BYTES)]
    sha256: Sha256


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is signed."""

    format: Literal[1] = 1
    kind: Kind
    name: Id
    """What people call it."""
    version: Annotated[int, Meta(ge=1, le=MOST_VERSION)]
    """Each update of a kind has a higher one than those before it: older ones are refused."""
    fleet: Id
    """Whose vehicles may take it."""
    vehicles: tuple[Id, ...] = ()
    """Which of them; empty = all."""
    weights: Literal["learnt", "own"] = "learnt"
    """What a vehicle goes on with: what it has learnt, where the update's parameters have the same names and
    shapes, or in any case the update's own."""
    bundle_digest: Annotated[str, Meta(max_length=128)] = ""
    """Of a bundle: what the cloud knows it by, once a vehicle has it."""
    files: Annotated[tuple[PackedFile, ...], Meta(min_length=1, max_length=64)]

    def __post_init__(self) -> None:
        if len({file.name.lower() for file in self.files}) < len(self.files):
            raise ValueError("two files of the same name")
        if sum(file.bytes for file in self.files) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")

    def is_for(self, fleet: str, vehicle: str) -> bool:
        """Whether a vehicle may take it."""
        return fleet == self.fleet and (not self.vehicles or vehicle in self.vehicles)


@dataclass(frozen=True, kw_only=True)
class Update:
    """A container whose form is sound; its files and its signature are yet to be checked."""

    path: Path
    manifest: Manifest
    signed: bytes
    """The manifest as it was signed."""
    signature: bytes
    size_bytes: int
    files_at: int
    """Where the first file begins."""


def packed_file(name: str, content: bytes) -> PackedFile:
    """The manifest's entry of a file."""
    return PackedFile(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def encode_manifest(manifest: Manifest) -> bytes:
    """As it is signed and packed."""
    return msgspec.json.encode(manifest)


def pack(signed: bytes, signature: bytes, contents: Mapping[str, bytes]) -> bytes:
    """The container of an encoded manifest, its signature (none: empty), and the files by name.

    Raises:
        KeyError: a file of the manifest is not among them.
    """
    manifest = msgspec.json.decode(signed, type=Manifest)
    header = _HEADER.pack(_MAGIC, len(signed), len(signature))
    return b"".join([header, signed, signature, *(contents[file.name] for file in manifest.files)])


def read_update(path: Path) -> Update:
    """The container in a file.

    Raises:
        UpdateError: it is none, or incomplete.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise UpdateError(f"{path} is no update; `blackfleet update sign` makes one")
        _, manifest_bytes, signature_bytes = _HEADER.unpack(header)
        if manifest_bytes > _MOST_MANIFEST_BYTES or size_bytes > MOST_BYTES + _MOST_MANIFEST_BYTES:
            raise UpdateError(f"{path} is larger than any update")
        signed, signature = file.read(manifest_bytes), file.read(signature_bytes)
    try:
        manifest = msgspec.json.decode(signed, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpdateError(f"{path} has no sound manifest: {error}") from error
    files_at = _HEADER.size + manifest_bytes + signature_bytes
    expected = files_at + sum(entry.bytes for entry in manifest.files)
    if size_bytes != expected:
        raise UpdateError(f"{path} has {size_bytes} bytes, its manifest says {expected}")
    return Update(
        path=path,
        manifest=manifest,
        signed=signed,
        signature=signature,
        size_bytes=size_bytes,
        files_at=files_at,
    )


def unpack(update: Update, folder: Path) -> None:
    """Write the files into `folder`, which exists and is empty, durably.

    Raises:
        UpdateError: one is not what the manifest says; the folder is to be thrown away.
        OSError: the disk is full, or the folder can't be written.
    """
    with update.path.open("rb") as source:
        source.seek(update.files_at)
        for entry in update.manifest.files:
            digest = hashlib.sha256()
            with (folder / entry.name).open("xb") as target:
                for block in _blocks(source, entry.bytes):
                    digest.update(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            if digest.hexdigest() != entry.sha256:
                raise UpdateError(f"{entry.name} of {update.path} is not the file that was signed")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal: what an update is known by on its way.

    Raises:
        OSError: it can't be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left > 0:
        block = file.read(min(left, _BLOCK_BYTES))
        if not block:
            return
        left -= len(block)
        yield block
