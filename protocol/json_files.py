"""JSON that people have written with any editor, as typed content."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from protocol.text_files import decode_text

Content = TypeVar("Content")


def decode_json(data: bytes, content: type[Content]) -> Content:
    """The JSON of a file that a person may have written; it may name files whose names are no text.

    Raises:
        UnicodeDecodeError: see `decode_text`.
        msgspec.DecodeError: it is no JSON, not what `content` is made of, or has a key twice in a table.
    """
    text = decode_text(data)
    _refuse_keys_twice(text)
    try:
        return msgspec.json.decode(text, type=content)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if "\\ud" not in text:
            raise
        # Half a pair: how Python keeps a byte of a name that is no UTF-8.
        return msgspec.convert(json.loads(text), content)


def _refuse_keys_twice(text: str) -> None:
    """Nobody can know which of the two was meant. What is no JSON passes: the decoder says it better."""
    try:
        json.loads(text, object_pairs_hook=_table)
    except (json.JSONDecodeError, RecursionError):
        return


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise msgspec.DecodeError(f"has the key {twice!r} twice; keep one of them")
    return table
