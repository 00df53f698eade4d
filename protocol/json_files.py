"""JSON that people have written with any editor, as typed content."""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

from protocol.text_files import KeyTwice, decode_text, parse_json

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
    """What is no JSON passes: the decoder says it better."""
    try:
        parse_json(text)
    except KeyTwice as error:
        raise msgspec.DecodeError(str(error)) from None
    except (json.JSONDecodeError, RecursionError):
        return
