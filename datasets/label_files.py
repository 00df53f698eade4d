"""Label files beside pictures: what they are called, and who has made them, people or a model.

A model's label is a PNG whose first chunk after the header is a text, `blackfleet-label`, of JSON; copies of
the file keep it. `teacher` in it is the start of the SHA-256 of the model's file.
https://www.w3.org/TR/png-3/#11tEXt
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LABEL_SUFFIX = "_labelIds.png"
"""Of the label of a picture that lies beside it: `NAME_labelIds.png` for `NAME.jpg`, 8-bit grey label ids."""

FILES = "files"
"""Of a label that does not say who has made it: somebody's files."""
NONE = "none"
"""Of a frame that has no label."""
PSEUDO = "pseudo"
"""Of a frame whose label is what the fleet's own network predicts."""
OTHERS = "others"
"""Of labels of more makers than are told apart."""

_KEYWORD = b"blackfleet-label\0"
_TEACHER = re.compile(r"[0-9a-f]{16}")
_PLACE = 33
"""Of the chunk: after PNG's signature and IHDR."""
_MOST_BYTES = 4096
_MOST_TOLD = 16


def label_beside(picture: Path) -> Path:
    """Where the label of a picture lies, if it has one beside it."""
    return picture.with_name(picture.stem + LABEL_SUFFIX)


def signed(png: bytes, words: Mapping[str, Any]) -> bytes:
    """A PNG that says of itself `words`, JSON of less than 4000 bytes, `teacher` among them."""
    content = _KEYWORD + json.dumps(words, sort_keys=True).encode("ascii")
    assert len(content) < _MOST_BYTES - _PLACE - 12, f"{len(content)} bytes are too many"
    chunk = b"tEXt" + content
    return b"".join(
        (
            png[:_PLACE],
            struct.pack(">I", len(content)),
            chunk,
            struct.pack(">I", zlib.crc32(chunk)),
            png[_PLACE:],
        )
    )


def read_words(path: Path) -> dict[str, Any] | None:
    """What a label file says of itself; None: nothing, or it can't be read.

    Only the beginning is read: whether the file is whole is for those to say who read its pixels.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_MOST_BYTES)
        [length] = struct.unpack_from(">I", head, _PLACE)
        content = head[_PLACE + 8 : _PLACE + 8 + length]
        if head[_PLACE + 4 : _PLACE + 8] != b"tEXt" or not content.startswith(_KEYWORD):
            return None
        words = json.loads(content[len(_KEYWORD) :])
    except (OSError, struct.error, ValueError, RecursionError):
        return None
    is_ours = isinstance(words, dict) and _TEACHER.fullmatch(str(words.get("teacher")))
    return words if is_ours else None


def origin(label_path: Path | None) -> str:
    """Who has made a frame's label: `files`, `teacher 0123456789abcdef`, or `none` where it has none."""
    if label_path is None:
        return NONE
    words = read_words(label_path)
    return FILES if words is None else f"teacher {words['teacher']}"


def count_origins(origins: Iterable[str]) -> dict[str, int]:
    """How many labels each has made, sorted by name; of too many makers the rarest are `others`."""
    counts = Counter(origins)
    if len(counts) > _MOST_TOLD:
        told = dict(counts.most_common(_MOST_TOLD - 1))
        return dict(sorted({**told, OTHERS: counts.total() - sum(told.values())}.items()))
    return dict(sorted(counts.items()))
