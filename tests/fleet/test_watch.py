"""The live page without a browser: who is let in, what is sent, what a replay holds, what buttons do."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_server.storage.recorders import RunLog, append_event
from fleet.errors import OperatorError
from fleet.run.controls import Controls, Refused
from fleet.watch import feed
from fleet.watch.guard import TOKEN_HEADER, Guard, is_loopback
from fleet.watch.render import render_page
from fleet.watch.replay import write_replay
from fleet.watch.server import WatchServer

LINES = [
    json.dumps({"event": "joined", "vehicle": f"car-{number:02}", "time": number}) for number in range(50)
]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "log.jsonl").write_text("".join(f"{line}\n" for line in LINES))
    return tmp_path


def complete(folder: Path) -> None:
    """What a run leaves when it is over."""
    vehicle = {"local_miou": 0.5, "queries": 8, "uplink_bytes": 12, "downlink_bytes": 3, "rejects": 0}
    result = {"mean_local_miou": 0.5, "vehicles": {"car-01": vehicle}, "confusion": [[1]]}
    (folder / "result.json").write_text(json.dumps(result))
    append_event(folder, "result", {"mean_local_miou": 0.5})


def sent(stream: feed.LogStream) -> tuple[list[str], list[str], list[int]]:
    """(lines of the log, names of the events, their ids) that a reader gets."""
    lines, names, ids = [], [], []
    for chunk in stream:
        for event in chunk.decode().split("\n\n")[:-1]:
            fields = [field.partition(": ")[::2] for field in event.split("\n")]
            [name] = [value for key, value in fields if key == "event"]
            names.append(name)
            ids += [int(value) for key, value in fields if key == "id"]
            lines += [value for key, value in fields if key == "data" and name == "log"]
    return lines, names, ids


# The log as a stream ------------------------------------------------------------------------------------


def test_stream_has_each_line_once_from_any_offset_that_it_has_named(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_BATCH_BYTES", 200)
    complete(run_folder)
    with (run_folder / "log.jsonl").open("a") as log:
        log.write('{"event": "torn')
    whole = [*LINES, json.dumps({"event": "result"})]
    lines, names, ids = sent(feed.LogStream(run_folder, threading.Event()))
    assert len(names) > 10 and names[-1] == "end"
    assert lines[:-2] == LINES
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["result", "final"]
    assert json.loads(lines[-1])["vehicles"]["car-01"]["uplink_bytes"] == 12
    sizes = [len(line) + 1 for line in lines[:-1]]
    for offset in ids:
        rest, _, _ = sent(feed.LogStream(run_folder, threading.Event(), offset=offset))
        assert len(rest) == len(whole) + 1 - next(
            n for n in range(len(whole) + 1) if sum(sizes[:n]) == offset
        )


def test_stream_ends_with_the_server_but_not_before_it_has_sent_what_is_there(run_folder: Path) -> None:
    closing = threading.Event()
    stream = iter(feed.LogStream(run_folder, closing))
    assert next(stream).count(b"data: ") == len(LINES)
    append_event(run_folder, "stopped", {})
    closing.set()
    assert b'"stopped"' in next(stream)
    assert next(stream) == feed.event("end", '{"complete": false}')


def test_event_of_another_process_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.event("one", {})
        append_event(tmp_path, "two", {"process": "cloud"})
        log.event("three", {})
        (tmp_path / "log.jsonl").open("a").write('{"event": "torn')
        append_event(tmp_path, "four", {})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines if not line.endswith("torn")] == [
        "one",
        "two",
        "three",
        "four",
    ]


# Who is let in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "header", "known"),
    [
        ("127.0.0.1", "127.0.0.1:80", True),
        ("127.0.0.1", "localhost:80", True),
        ("127.0.0.1", "[::1]:80", True),
        ("127.0.0.1", "evil.example:80", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "192.168.0.7:80", False),
        ("127.0.0.1", None, False),
        ("192.168.0.7", "192.168.0.7:80", True),
        ("0.0.0.0", "192.168.0.7:80", True),
        ("0.0.0.0", "evil.example:80", False),
    ],
)
def test_page_answers_to_its_own_names_alone(host: str, header: str | None, known: bool) -> None:
    assert Guard(host).knows(header) is known


def test_only_loopback_addresses_are_of_this_machine_alone() -> None:
    hosts = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "192.168.0.7", "example.org")
    assert [is_loopback(host) for host in hosts] == [True, True, True, False, False, False]


@pytest.fixture
def server(run_folder: Path) -> Iterator[WatchServer]:
    with WatchServer(run_folder, controls=Controls()) as server:
        yield server


def ask(
    server: WatchServer, path: str, *, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """(status, headers, content) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_page_is_shown_to_whoever_has_the_address_and_to_nobody_else(server: WatchServer) -> None:
    assert ask(server, "/")[0] == ask(server, "/events")[0] == ask(server, "/?token=no")[0] == 403
    path = server.address.partition(str(server.port))[2]
    assert ask(server, path, Host=f"evil.example:{server.port}")[0] == 403
    status, headers, _ = ask(server, path)
    assert (status, headers["Location"]) == (303, "/")
    assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    cookie = headers["Set-Cookie"].partition(";")[0]
    status, headers, page = ask(server, "/", Cookie=cookie)
    assert status == 200 and server.guard.page_token in page and server.guard.token not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(server, "/", Cookie=cookie, Host="evil.example")[0] == 403
    for path in (
        "/../scenario.yaml",
        "/vehicles/..%2f..%2fx/frames",
        "/vehicles/car-01/..%2fx/frame",
        "/other",
    ):
        assert ask(server, path, Cookie=cookie)[0] == 404, path


def test_button_works_from_the_page_alone(server: WatchServer) -> None:
    own = {
        "Origin": f"http://127.0.0.1:{server.port}",
        "Cookie": server.guard.cookie(server.port).partition(";")[0],
        TOKEN_HEADER: server.guard.page_token,
    }

    def press(**changes: str | None) -> tuple[int, str]:
        headers = {name: value for name, value in {**own, **changes}.items() if value is not None}
        status, _, said = ask(server, "/press", method="POST", body='{"action": "pause"}', **headers)
        return status, said

    assert press(Origin="http://127.0.0.1:1")[0] == press(Origin="null")[0] == press(Origin=None)[0] == 403
    assert press(**{TOKEN_HEADER: None})[0] == press(**{TOKEN_HEADER: server.guard.token})[0] == 403
    assert press(Cookie=None)[0] == press(Host="evil.example", Origin="http://evil.example")[0] == 403
    assert press() == (409, "the fleet has no processes of its own now\n")
    for body in ("", "[]", "{}", '"pause"', "x" * 5000):
        assert ask(server, "/press", method="POST", body=body, **own)[0] == 400


def test_address_that_cannot_be_had_is_said_in_one_line(server: WatchServer, run_folder: Path) -> None:
    for host, port in (("127.0.0.1", server.port), ("192.0.2.1", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(OperatorError, match=f"can't show the run at {host}:{port} .*--port"):
            WatchServer(run_folder, host=host, port=port)


# What the page holds ------------------------------------------------------------------------------------


def test_no_text_of_a_run_ends_the_page_or_a_script() -> None:
    hostile = "</script><script>alert(1)</script>"
    page, policy = render_page({"live": False, "pictures": {hostile: []}}, title=hostile, log=b"")
    plain, _ = render_page({"live": False, "pictures": {}}, title="x", log=b"")
    assert page.count("<script") == plain.count("<script") and "alert(1)<" not in page
    assert "unsafe" not in policy and "http" not in policy
    assert json.loads(re.findall(r'id="settings">(.*?)</script>', page)[0])["pictures"] == {hostile: []}


def test_replay_holds_the_whole_log_and_the_result(run_folder: Path) -> None:
    overlay = run_folder / "overlays" / "car-01" / "a b.png"
    overlay.parent.mkdir(parents=True)
    overlay.touch()
    complete(run_folder)
    path = write_replay(run_folder)
    assert path is not None
    page = path.read_text()
    log = gzip.decompress(base64.b64decode(re.findall(r'id="log">(.*?)</script>', page)[0])).decode()
    *lines, final = log.splitlines()
    assert lines == (run_folder / "log.jsonl").read_text().splitlines()
    assert json.loads(final)["mean_local_miou"] == 0.5
    assert '"overlays/car-01/a%20b.png"' in page
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page)
    path.unlink()
    (run_folder / "log.jsonl").unlink()
    assert write_replay(run_folder) is None


# Buttons ------------------------------------------------------------------------------------------------


class Fleet:
    """Notes what it is asked to do."""

    def __init__(self) -> None:
        self.done: list[tuple[str, ...]] = []

    def kill(self, name: str) -> None:
        if name == "gone":
            raise Refused("gone does not run")
        self.done.append(("kill", name))

    def revive(self, name: str) -> None:
        self.done.append(("revive", name))

    def pause(self) -> None:
        self.done.append(("pause",))

    def resume(self) -> None:
        self.done.append(("resume",))


def test_what_is_asked_is_done_by_the_thread_that_serves() -> None:
    controls, fleet, answers = Controls(), Fleet(), []

    def ask_all() -> None:
        presses: list[tuple[str, Any]] = [
            ("kill", "car-07"),
            ("revive", "cloud"),
            ("pause", ""),
            ("resume", ""),
            ("kill", "gone"),
            ("jump", ""),
        ]
        for action, what in presses:
            try:
                controls.press(action, what)
                answers.append("")
            except Refused as refused:
                answers.append(str(refused))

    controls.open({"car-07": "host-02"})
    asking = threading.Thread(target=ask_all)
    asking.start()
    while asking.is_alive():
        controls.serve(fleet)
        asking.join(0.01)
    assert fleet.done == [("kill", "host-02"), ("revive", "cloud"), ("pause",), ("resume",)]
    assert answers[:5] == ["", "", "", "", "gone does not run"] and "unknown action 'jump'" in answers[5]
    controls.close()
    with pytest.raises(Refused, match="no processes"):
        controls.press("pause", "")
