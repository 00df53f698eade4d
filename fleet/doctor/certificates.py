"""From when to when certificates are valid."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from fleet.doctor.finding import Finding

_SOON = timedelta(days=30)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
_SEQUENCE, _VERSION = 0x30, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_CONNECT_S = 5.0


class CertificateFault(Exception):
    """Why it can't be told; goes on after the file's name."""


def check_certificate_file(path: Path, now: datetime | None = None) -> Iterator[Finding]:
    """A finding for each certificate in a PEM file."""
    about = f"certificate {path}"
    try:
        texts = _PEM.findall(path.read_text(encoding="ascii", errors="replace"))
        if not texts:
            raise CertificateFault("holds no certificate: a PEM file has lines that begin with -----BEGIN")
        for number, text in enumerate(texts, 1):
            which = f"{about} ({number} of {len(texts)})" if len(texts) > 1 else about
            yield _judged(which, validity(ssl.PEM_cert_to_DER_cert(text)), now)
    except OSError as error:
        yield Finding(
            about=about, state="wrong", found=f"can't be read: {error.strerror}", advice="name a PEM file"
        )
    except (CertificateFault, ValueError) as error:
        yield Finding(about=about, state="wrong", found=str(error), advice="name a PEM file of a certificate")


def check_certificate_of(host: str, port: int, now: datetime | None = None) -> Iterator[Finding]:
    """The one that a server shows; nothing where there is no server, which others find out."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its dates alone are looked at
    try:
        with (
            socket.create_connection((host, port), _CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            certificate = secure.getpeercert(binary_form=True)
    except OSError:
        return
    if certificate:
        yield _judged(f"certificate of {host}:{port}", validity(certificate), now)


def _judged(about: str, dates: tuple[datetime, datetime], now: datetime | None) -> Finding:
    begin, end = dates
    now = now or datetime.now(timezone.utc)
    found = f"valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    if now < begin:
        return Finding(
            about=about,
            state="wrong",
            found=f"{found}, which is not yet",
            advice=f"is this machine's clock right? It says {now:%Y-%m-%d %H:%M} UTC",
        )
    if now > end:
        return Finding(about=about, state="wrong", found=f"{found}, which is over", advice="make a new one")
    if end - now < _SOON:
        return Finding(
            about=about, state="note", found=f"{found}: {(end - now).days} days left", advice="make a new one"
        )
    return Finding(about=about, state="ok", found=found)


def validity(certificate: bytes) -> tuple[datetime, datetime]:
    """From when to when a certificate in DER is valid, in UTC (RFC 5280, section 4.1).

    Raises:
        CertificateFault: the bytes are no certificate.
    """
    try:
        _, body, _ = _element(certificate)
        _, fields, _ = _element(body)
        tag, _, rest = _element(fields)
        if tag == _VERSION:
            _, _, rest = _element(rest)  # the serial number
        for _ in ("signature", "issuer"):
            _, _, rest = _element(rest)
        tag, period, _ = _element(rest)
        if tag != _SEQUENCE:
            raise ValueError(f"tag {tag:#x} where the dates should be")
        first, begin, rest = _element(period)
        second, end, _ = _element(rest)
        return _time(first, begin), _time(second, end)
    except (ValueError, IndexError) as error:
        raise CertificateFault(f"is no certificate: {error}") from error


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
