"""Updates from an HTTPS address: fetched once, and from servers that are trusted alone."""

from __future__ import annotations

import hashlib
import http.server
import logging
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.updates.pull import UpdatePull, check_update_url
from protocol.errors import SettingError
from protocol.openssl import run_openssl


class Server(http.server.ThreadingHTTPServer):
    """Serves one file by TLS on the loopback interface, or leads elsewhere."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.leads_to, self.bodies = b"first", "", 0
        self.certificate = folder / "server.crt"
        key = folder / "server.key"
        run_openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(self.certificate)),
            folder=folder,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}/better.bfu"

    def handle_error(self, *_: object) -> None:
        """Who does not trust it hangs up."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        tag = hashlib.sha256(self.server.content).hexdigest()
        if self.server.leads_to:
            self.send_response(302)
            self.send_header("Location", self.server.leads_to)
            self.end_headers()
        elif self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("ETag", tag)
            self.end_headers()
            self.wfile.write(self.server.content)
            self.server.bodies += 1

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _pull(server: Server, folder: Path, *, trusts: bool = True) -> UpdatePull:
    context = ssl.create_default_context()
    if trusts:
        context.load_verify_locations(server.certificate)
    return UpdatePull(server.url, folder, context)


def test_a_file_is_fetched_when_it_has_changed_and_lies_there_alone(server: Server, tmp_path: Path) -> None:
    pull = _pull(server, tmp_path / "pulled")
    pull.look()
    pull.look()
    assert server.bodies == 1
    server.content = b"second"
    pull.look()
    newest = pull.newest()
    assert newest is not None and newest.path.read_bytes() == b"second"
    assert newest.digest == hashlib.sha256(b"second").hexdigest()
    assert list((tmp_path / "pulled").iterdir()) == [newest.path]


def test_nothing_comes_from_a_server_that_is_not_trusted_nor_from_one_without_tls(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    stranger = _pull(server, tmp_path / "pulled", trusts=False)
    stranger.look()
    stranger.look()
    assert stranger.newest() is None
    assert [record.message.count("CERTIFICATE_VERIFY_FAILED") for record in caplog.records] == [1]
    server.leads_to = server.url.replace("https", "http")
    led_away = _pull(server, tmp_path / "pulled")
    led_away.look()
    assert led_away.newest() is None and "without TLS" in caplog.text


@pytest.mark.parametrize("url", ["http://a/b", "better.bfu", "https:///b", "https://me:secret@a/b"])
def test_an_address_without_tls_or_with_a_password_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="an update URL"):
        check_update_url(url)
