"""Text that people have written with any editor: a byte order mark, or UTF-16, makes no difference."""

from __future__ import annotations

import codecs
import json
from typing import Any

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, *, errors: str = "strict") -> str:
    """The text of a file: UTF-8, or what its byte order mark says; without that mark.

    `errors` as in `bytes.decode`.

    Raises:
        UnicodeDecodeError: it is another encoding, or no text; a `ValueError` whose caller names the file.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding, errors)


class KeyTwice(ValueError):
    """A table has a key twice, of which nobody can know which was meant; goes on after the file's name."""


def parse_json(text: str) -> Any:
    """What a JSON text holds, stricter than `json.loads` in one thing.

    Raises:
        KeyTwice: a table has a key twice.
        JSONDecodeError: it is no JSON.
    """
    return json.loads(text, object_pairs_hook=_table)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise KeyTwice(f"has the key {twice!r} twice; keep one of them")
    return table
