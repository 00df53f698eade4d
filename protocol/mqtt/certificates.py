"""What a certificate says of itself, read without a library: a machine that checks itself may have none."""

from __future__ import annotations

import re
import ssl
from datetime import datetime, timezone
from pathlib import Path

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
_SEQUENCE, _VERSION = 0x30, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_COMMON_NAME = b"\x06\x03\x55\x04\x03"
"""2.5.4.3, as an ASN.1 element."""


class CertificateFault(Exception):
    """Why it can't be told; goes on after the file's name."""


def certificates_in(path: Path) -> list[bytes]:
    """Each certificate of a PEM file, in DER.

    Raises:
        CertificateFault: it holds none.
        OSError: it can't be read.
    """
    texts = _PEM.findall(path.read_text(encoding="ascii", errors="replace"))
    if not texts:
        raise CertificateFault("holds no certificate: a PEM file has lines that begin with -----BEGIN")
    try:
        return [ssl.PEM_cert_to_DER_cert(text) for text in texts]
    except ValueError as error:
        raise CertificateFault(f"is no certificate: {error}") from error


def validity(certificate: bytes) -> tuple[datetime, datetime]:
    """From when to when a certificate in DER is valid, in UTC (RFC 5280, section 4.1).

    Raises:
        CertificateFault: the bytes are no certificate.
    """
    try:
        tag, period, _ = _element(_from_dates_on(certificate))
        if tag != _SEQUENCE:
            raise ValueError(f"tag {tag:#x} where the dates should be")
        first, begin, rest = _element(period)
        second, end, _ = _element(rest)
        return _time(first, begin), _time(second, end)
    except (ValueError, IndexError) as error:
        raise CertificateFault(f"is no certificate: {error}") from error


def common_name(certificate: bytes) -> str:
    """Whom a certificate in DER names; empty where it names nobody.

    Raises:
        CertificateFault: the bytes are no certificate.
    """
    try:
        _, _, rest = _element(_from_dates_on(certificate))
        _, subject, _ = _element(rest)
        _, found, after = subject.rpartition(_COMMON_NAME)
        return _element(after)[1].decode(errors="replace") if found else ""
    except (ValueError, IndexError) as error:
        raise CertificateFault(f"is no certificate: {error}") from error


def _from_dates_on(certificate: bytes) -> bytes:
    """What follows the issuer's name: dates, subject, key."""
    _, body, _ = _element(certificate)
    _, fields, _ = _element(body)
    tag, _, rest = _element(fields)
    if tag == _VERSION:
        _, _, rest = _element(rest)  # the serial number
    for _ in ("signature", "issuer"):
        _, _, rest = _element(rest)
    return rest


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content and what follows of the first ASN.1 element."""
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    content = data[start : start + length]
    if len(content) < length:
        raise ValueError("it ends too early")
    return tag, content, data[start + length :]


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"tag {tag:#x} where a date should be")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
