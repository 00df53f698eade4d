"""Text that people have written with any editor: a byte order mark, or UTF-16, makes no difference."""

from __future__ import annotations

import codecs

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
