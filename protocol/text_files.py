"""Text that people have written with any editor: a byte order mark, or UTF-16, makes no difference."""

from __future__ import annotations

import codecs
import json
from typing import TypeVar

import msgspec

Content = TypeVar("Content")

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


def decode_json(data: bytes, content: type[Content]) -> Content:
    """The JSON of a file that a person may have written; it may name files whose names are no text.

    Raises:
        UnicodeDecodeError: see `decode_text`.
        msgspec.DecodeError: it is no JSON, or not what `content` is made of.
    """
    text = decode_text(data)
    try:
        return msgspec.json.decode(text, type=content)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if "\\ud" not in text:
            raise
        # Half a pair: how Python keeps a byte of a name that is no UTF-8.
        return msgspec.convert(json.loads(text), content)
