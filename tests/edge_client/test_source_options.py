"""The options of a vehicle's camera."""

from __future__ import annotations

import pytest

from edge_client.command import _config, _parse
from edge_client.source.settings import SourceConfig
from protocol.errors import Mistake


def options(*words: str) -> SourceConfig | None:
    arguments = ("--fleet", "f", "--vehicle", "v", "--bundle", "b", "--state", "s", *words)
    return _config(_parse(list(arguments))).source


def test_options_describe_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    given = options("--source", "a.mp4", "--source-size", "1280x720", "--source-loop", "--keep-every", "2")
    assert given == SourceConfig(uri="a.mp4", recording="s/recording", size=(1280, 720), loop=True, every_s=2)
    monkeypatch.setenv("BLACKFLEET_SOURCE", "rtsp://user:secret@host/a")
    assert options("--frames", "9") == SourceConfig(
        uri="rtsp://user:secret@host/a", recording="s/recording", frames=9
    )
    assert options("--data-root", "d") is None, "a data set that is named counts for more"
    for words, reason in (
        (("--data-root", "d", "--source-loop"), "--source-loop is about a camera"),
        (("--source", "csi://0", "--dataset", "camvid"), "--source and --dataset exclude each other"),
        (("--source", "csi://0", "--source-size", "big"), "WIDTHxHEIGHT, for instance 1280x720"),
        (("--source", "csi://0", "--frames", "2"), "frames must be at least 3"),
        (("--source", "csi://0", "--keep-changed", "2"), "changed must be from 0 to 1"),
    ):
        with pytest.raises(Mistake, match=reason):
            options(*words)
