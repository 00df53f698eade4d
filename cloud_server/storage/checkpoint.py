"""Tensors and JSON in one self-verifying file, and a folder of the last few of them. Nothing is pickled.

A file is a safetensors file whose header also holds the meta data as JSON and a SHA-256 over both. It gets
its name by a rename after it has reached the disk, so the newest name there is always a complete checkpoint,
and a later flaw of the disk is noticed when it is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from protocol.atomic import write_bytes_atomic
from protocol.errors import Mistake

_NAME = re.compile(r"checkpoint-(\d{6,})\.safetensors")
_LEFT_OVERS = ".checkpoint-*.tmp"
_KEPT = 2
_LENGTH_BYTES = 8


class CheckpointError(Mistake):
    """A checkpoint is missing or damaged."""


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write the next checkpoint of `folder` (created if missing), drop all but the last two; return its path.

    Once this returns, the checkpoint survives a power cut; if it never returns, the one before it stands.

    Args:
        tensors: by name, of any layout and device.
        meta: what strict JSON can hold.

    Raises:
        OSError: the folder is unwritable or the disk is full; the one before it stands.
        ValueError: `meta` is not JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = _checkpoints(folder)
    path = folder / f"checkpoint-{_number(paths[-1]) + 1 if paths else 1:06d}.safetensors"
    write_tensors(path, tensors, meta)
    for outdated in [*paths[: 1 - _KEPT], *folder.glob(_LEFT_OVERS)]:
        outdated.unlink(missing_ok=True)
    return path


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to load, damaged or not."""
    return bool(_checkpoints(folder))


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors (on the CPU) and meta data of the newest checkpoint in `folder`.

    A damaged newest one is an error, never skipped silently: going back loses a turn, and whether that is
    wanted is for the operator to say, by removing the file.

    Raises:
        CheckpointError: there is none, or it is damaged.
        OSError: it can't be read.
    """
    paths = _checkpoints(folder)
    if not paths:
        raise CheckpointError(f"no checkpoint in {folder}")
    try:
        return read_tensors(paths[-1])
    except CheckpointError as exc:
        raise CheckpointError(f"{exc}; {_way_out(paths[:-1])}") from exc


def _way_out(older: list[Path]) -> str:
    for path in reversed(older):
        try:
            read_tensors(path)
        except (CheckpointError, OSError):
            continue
        return f"remove it to go on from the one before it, {path.name}, which is intact"
    return "no intact one is left, so the run can only start anew"


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted((p for p in folder.glob("checkpoint-*") if _NAME.fullmatch(p.name)), key=_number)


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


# One file ---------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and `meta` to `path`, atomically and durably.

    Raises:
        OSError: the folder is missing, unwritable or full; `path` keeps what it held.
        ValueError: `meta` is not JSON.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    header = {"meta": text, "sha256": _digest(plain, text)}
    write_bytes_atomic(path, safetensors.torch.save(plain, metadata=header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write_tensors` wrote.

    Raises:
        CheckpointError: the file is damaged or of another kind.
        OSError: it can't be read.
    """
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])["__metadata__"]
        text, expected = header["meta"], header["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{path} is damaged: not a complete file of weights") from exc
    if _digest(tensors, text) != expected:
        raise CheckpointError(f"{path} is damaged: its content doesn't match its SHA-256")
    return tensors, cast(dict[str, Any], json.loads(text))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Nested states ----------------------------------------------------------------------------------------


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a nested state into its tensors and a JSON structure that says where they were.

    Takes dictionaries (keys: str or int), lists, tuples (which come back as lists), tensors, str, finite
    numbers, bool and None.

    Raises:
        TypeError: anything else is in it.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node
            return {"tensor": path}
        if isinstance(node, Mapping):
            for key in node:
                if type(key) not in (str, int):
                    raise TypeError(f"can't store a key of type {type(key).__name__} at {path or 'the top'}")
            return {"dict": [[key, walk(value, f"{path}/{key}")] for key, value in node.items()]}
        if isinstance(node, (list, tuple)):
            return {"list": [walk(value, f"{path}/{index}") for index, value in enumerate(node)]}
        if node is None or isinstance(node, (str, bool, int, float)):
            return node
        raise TypeError(f"can't store a {type(node).__name__} at {path or 'the top'}")

    return tensors, walk(state, "")


def unflatten_state(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """Undo `flatten_state`.

    Raises:
        CheckpointError: a tensor is missing or the structure is not one of `flatten_state`.
    """
    if not isinstance(structure, dict):
        return structure
    match structure:
        case {"tensor": str(path)} if path in tensors:
            return tensors[path]
        case {"dict": list(items)}:
            return {key: unflatten_state(tensors, value) for key, value in items}
        case {"list": list(values)}:
            return [unflatten_state(tensors, value) for value in values]
    raise CheckpointError(f"the checkpoint's structure doesn't fit its tensors at {str(structure)[:80]}")
