"""Who may look at a live page, and who may press its buttons.

Another local user, a page of another origin in the same browser, and a name that somebody points at this
address (DNS rebinding) are kept out: the address holds a token, which a cookie carries on; the names that the
page goes by are known; and a button needs the page's own origin and a token that only the page contains.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from http.cookies import CookieError, SimpleCookie

LOOPBACK = "127.0.0.1"
_ANYWHERE = ("0.0.0.0", "::")
TOKEN_HEADER = "X-Blackfleet-Token"


class Guard:
    """What a page that listens at `host` demands of requests; tokens are drawn anew for each server."""

    def __init__(self, host: str) -> None:
        self._names = {"localhost", LOOPBACK, "::1"}
        self._any_address = host in _ANYWHERE
        self.name = socket.gethostname() if self._any_address else host
        """By which others find the page."""
        self._names.add(self.name.lower())
        self.token = secrets.token_urlsafe(24)
        """In the address that is printed."""
        self.page_token = secrets.token_urlsafe(24)
        """In the page itself."""

    def knows(self, host_header: str | None) -> bool:
        """Whether `Host` is a name or an address that this page goes by, with any port."""
        name = _name(host_header or "")
        return name in self._names or (self._any_address and _is_address(name))

    def is_token(self, given: str | None) -> bool:
        """Whether it is the token of the address."""
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def may_look(self, cookies: str | None, port: int) -> bool:
        """Whether the `Cookie` header holds what the address with the token gave."""
        try:
            morsel = SimpleCookie(cookies or "").get(cookie_name(port))
        except CookieError:
            return False
        return morsel is not None and self.is_token(morsel.value)

    def may_press(self, origin: str | None, host_header: str | None, token: str | None) -> bool:
        """Whether a POST comes from the page itself: its origin is the host that it is sent to."""
        if not self.knows(host_header) or origin != f"http://{host_header}":
            return False
        return token is not None and hmac.compare_digest(token.encode(), self.page_token.encode())

    def cookie(self, port: int) -> str:
        """The value of `Set-Cookie`: for this page alone, out of reach of scripts and of other sites."""
        return f"{cookie_name(port)}={self.token}; Path=/; HttpOnly; SameSite=Strict"


def cookie_name(port: int) -> str:
    """Cookies don't tell ports apart; their names must."""
    return f"blackfleet-{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _name(host_header: str) -> str:
    """Without port, and without the brackets of an IPv6 address."""
    if host_header.startswith("["):
        return host_header[1:].partition("]")[0].lower()
    return host_header.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
