"""Lines of text as bytes: raw deflate over all of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from protocol.codec.deflate import CodecError, deflate, inflate


def encode_lines(lines: Sequence[str]) -> tuple[int, bytes]:
    """(bytes before, bytes after deflating) of lines that hold no line break."""
    plain = "\n".join(lines).encode()
    return len(plain), deflate(plain, zlib.Z_DEFAULT_STRATEGY)


def decode_lines(plain_bytes: int, data: bytes) -> list[str]:
    """The lines that were encoded; never more than `plain_bytes` of them.

    Raises:
        CodecError: the data is corrupt, of another size, or no text.
    """
    try:
        return inflate(data, plain_bytes, "lines").decode().split("\n")
    except UnicodeDecodeError as error:
        raise CodecError(f"lines are no text: {error}") from error
