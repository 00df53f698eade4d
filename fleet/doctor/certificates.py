"""From when to when certificates are valid."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from fleet.doctor.finding import Finding
from protocol.mqtt.certificates import CertificateFault, certificates_in, validity

_SOON = timedelta(days=30)
_CONNECT_S = 5.0


def check_certificate_file(path: Path, now: datetime | None = None) -> Iterator[Finding]:
    """A finding for each certificate in a PEM file."""
    about = f"certificate {path}"
    try:
        found = certificates_in(path)
        for number, certificate in enumerate(found, 1):
            which = f"{about} ({number} of {len(found)})" if len(found) > 1 else about
            yield _judged(which, validity(certificate), now)
    except OSError as error:
        yield Finding(
            about=about, state="wrong", found=f"can't be read: {error.strerror}", advice="name a PEM file"
        )
    except CertificateFault as error:
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
