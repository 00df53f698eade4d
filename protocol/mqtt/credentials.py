"""The certificates of one client: read anew before each connection, and looked at before they end.

A vehicle runs for months, a certificate is replaced beneath it: whoever writes new files need not stop it.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from protocol.errors import SettingError
from protocol.mqtt.broker_url import BrokerUrl
from protocol.mqtt.certificates import CertificateFault, certificates_in, validity

log = logging.getLogger(__name__)

SOON = timedelta(days=30)
_AGAIN = timedelta(days=1)


class Credentials:
    """A TLS context that a client keeps, and the files that fill it; without TLS there is neither."""

    def __init__(self, url: BrokerUrl, client_id: str) -> None:
        """Raises SettingError when a file can't be used."""
        self.url = url
        self._client_id = client_id
        self._files = [file for file in (url.ca, url.cert, url.key) if file is not None]
        self._read = self._stamps()
        self.context = url.ssl_context() if url.tls else None
        self._looked_at: datetime | None = None
        self._days: int | None = None
        self._broker_end: datetime | None = None
        self._said = ""

    def refresh(self) -> None:
        """Take what the files hold now into the context, for connections to come.

        Files that don't fit together, because they are being replaced, for instance, change nothing.
        """
        stamps = self._stamps()
        if self.context is None or stamps == self._read:
            return
        try:
            self.url.ssl_context()
            if self.url.ca is not None:
                self.context.load_verify_locations(self.url.ca)
            if self.url.cert is not None:
                self.context.load_cert_chain(self.url.cert, self.url.key)
        except (SettingError, OSError) as error:
            log.warning("%s: %s; going on with those that were there", self._client_id, error)
            return
        self._read, self._looked_at = stamps, None
        log.info("%s: the certificate files were replaced, and are in use from now on", self._client_id)

    def note_broker(self, sock: Any) -> None:
        """Look at the certificate that a broker shows on a new connection."""
        if self.context is None or not hasattr(sock, "getpeercert"):
            return  # a WebSocket doesn't say
        shown = sock.getpeercert(binary_form=True)
        with contextlib.suppress(CertificateFault):
            end = validity(shown)[1] if shown else None
            if end != self._broker_end:
                self._broker_end, self._looked_at = end, None

    def warn(self, now: datetime | None = None) -> int | None:
        """Log what is about to end, once a day; gives the days of the own certificate, where they are few."""
        now = now or datetime.now(timezone.utc)
        if self._looked_at is None or now - self._looked_at >= _AGAIN:
            self._looked_at = now
            for words in self.endings(now):
                log.warning("%s: %s; take a new one", self._client_id, words)
            end = None if self.url.cert is None else _end(self.url.cert, of_first=True)
            self._days = None if end is None or end - now >= SOON else max(0, (end - now).days)
        return self._days

    def endings(self, now: datetime | None = None) -> list[str]:
        """Of each certificate that ends soon or has ended, when."""
        now = now or datetime.now(timezone.utc)
        ends = {
            f"{_kind(path, self.url)} {path}": _end(path, of_first=path == self.url.cert)
            for path in (self.url.cert, self.url.ca)
            if path is not None
        }
        ends["the broker's certificate"] = self._broker_end
        return [f"{what} {when}" for what, end in ends.items() if end and (when := _ending(end, now))]

    def why_closed(self, was_ready: bool) -> str:
        """What may be why a broker has ended a connection, which in TLS 1.3 is how it refuses a client."""
        if was_ready or self.url.cert is None:
            return "connection closed"
        reason = "; ".join(self.endings()) or (
            f"is certificate {self.url.cert} revoked, or of another authority than the broker's?"
        )
        words = f"connection closed before an answer: {reason}"
        if words != self._said:
            self._said = words
            log.warning("%s: %s", self._client_id, words)
        return words

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files]


def _ending(end: datetime, now: datetime) -> str:
    """`expires in 9 days`; empty where that is far off."""
    days = (end - now).days
    if end < now:
        return f"expired on {end:%Y-%m-%d %H:%M} UTC"
    if end - now >= SOON:
        return ""
    return f"expires in {days} days" if days != 1 else "expires in 1 day"


def _end(path: Path, *, of_first: bool) -> datetime | None:
    """Of a client's own certificate, which stands first in its file, or of an authority that stands alone."""
    try:
        found = certificates_in(path)
        return validity(found[0])[1] if of_first or len(found) == 1 else None
    except (CertificateFault, OSError):
        return None


def _kind(path: Path, url: BrokerUrl) -> str:
    return "certificate" if path == url.cert else "authority"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
