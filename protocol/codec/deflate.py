"""Bounded raw deflate, for bytes that come from the network."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from protocol.errors import WireError

_RAW = -zlib.MAX_WBITS


class CodecError(WireError):
    """Bytes from the network that do not decode to what was expected."""


def deflate(data: bytes, strategy: int, memory_level: int = 9) -> bytes:
    """Compress with zlib's `strategy`: `zlib.Z_HUFFMAN_ONLY` or `zlib.Z_RLE`, which are the fast ones.

    There is a new Huffman code after every 2^(memory_level + 6) symbols.
    """
    return deflate_pieces([data], strategy, memory_level)


def deflate_pieces(pieces: Sequence[bytes], strategy: int, memory_level: int = 9) -> bytes:
    """Compress the pieces as one stream, as `deflate` does, with a new Huffman code for each piece."""
    coder = zlib.compressobj(wbits=_RAW, memLevel=memory_level, strategy=strategy)
    parts = []
    for number, piece in enumerate(pieces):
        if number > 0:
            parts.append(coder.flush(zlib.Z_BLOCK))
        parts.append(coder.compress(piece))
    return b"".join([*parts, coder.flush()])


def inflate(data: bytes, expected_bytes: int, what: str) -> bytes:
    """Exactly `expected_bytes`; nothing larger is ever held.

    Raises `CodecError`, naming `what`, for corrupt data, another size, or bytes after the end.
    """
    decoder = zlib.decompressobj(_RAW)
    try:
        plain = decoder.decompress(data, expected_bytes + 1)
    except zlib.error as exc:
        raise CodecError(f"{what} data is corrupt: {exc}") from exc
    if len(plain) > expected_bytes:
        raise CodecError(f"{what} data is too long: more than {expected_bytes} bytes")
    if not decoder.eof or len(plain) < expected_bytes:
        raise CodecError(f"{what} data is truncated: {len(plain)} of {expected_bytes} bytes")
    if decoder.unused_data:
        raise CodecError(f"{what} data has {len(decoder.unused_data)} bytes after its end")
    return plain
