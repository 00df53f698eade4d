"""The page as one HTML document: template, style and scripts; nothing is loaded but the run's events."""

from __future__ import annotations

import base64
import gzip
import json
import secrets
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_SCRIPTS = (
    "show.js",
    "fold.js",
    "source.js",
    "load.js",
    "grid.js",
    "charts.js",
    "vehicle.js",
    "news.js",
    "operator.js",
    "main.js",
)
"""In the order in which they know of each other."""


def render_page(settings: Mapping[str, Any], *, title: str, log: bytes | None = None) -> tuple[str, str]:
    """(the page, its content security policy).

    Args:
        settings: what the scripts are told, JSON.
        log: a whole log, which the page then holds; None: it asks its server for events.
    """
    nonce = secrets.token_urlsafe(16)
    environment = Environment(
        loader=PackageLoader("fleet.watch", "page"), autoescape=True, undefined=StrictUndefined
    )
    folder = files("fleet.watch") / "page"

    def content(name: str) -> Markup:
        return Markup((folder / name).read_text(encoding="utf-8"))

    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src 'nonce-{nonce}'",
            f"style-src 'nonce-{nonce}'",
            "img-src 'self' data:" if log is None else "img-src 'self' file: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    page = environment.get_template("page.html.j2").render(
        title=title,
        nonce=nonce,
        # A file has no server that could send it as a header.
        policy=policy if log is not None else None,
        style=content("page.css"),
        scripts=[content(name) for name in _SCRIPTS],
        settings=_json(settings),
        log=None if log is None else base64.b64encode(gzip.compress(log, 9, mtime=0)).decode(),
    )
    return page, policy


def _json(value: Any) -> Markup:
    """JSON that no text in it can end the script element with."""
    return Markup(json.dumps(value).replace("<", "\\u003c").replace("&", "\\u0026"))
