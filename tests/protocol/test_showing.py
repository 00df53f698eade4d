"""Words of others in logs: one line each, and no command to a terminal."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.showing import PlainFormatter, plain


@given(st.text())
def test_plain_text_is_one_line_without_controls(text: str) -> None:
    shown = plain(text)
    assert len(shown.splitlines()) <= 1
    assert shown.isprintable() or not text.isprintable()
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Straße 7, 東京", "Straße 7, 東京"),
        ("done\n2026-01-01 cloud INFO all is well", "done\\n2026-01-01 cloud INFO all is well"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
    ],
)
def test_what_commands_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_log_keeps_the_lines_of_a_traceback_and_no_others() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    try:
        raise ValueError("oh\x1b")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "said %s", ("a\nERROR b",), None)
        handler.emit(record)
        [line] = stream.getvalue().splitlines()
        assert line == "ERROR said a\\nERROR b"
        handler.emit(
            logging.LogRecord("x", logging.ERROR, "f", 1, "it failed", (), __import__("sys").exc_info())
        )
    assert "\nTraceback (most recent call last):\n" in stream.getvalue()
