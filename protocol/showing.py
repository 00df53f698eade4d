"""What a process prints reaches any terminal and any file: what can't be written there is replaced.

Words of others are shown as words: a control character could forge a line of a log, or command a terminal.
"""

from __future__ import annotations

import io
import logging
import sys
import unicodedata

_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: controls, formats (bidirectional ones, too), separators of lines and paragraphs."""


def show_anything() -> None:
    """Let standard output and error take what their encoding lacks, and bytes that were no text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


def plain(text: str) -> str:
    """The text in one line, control characters as escapes: `\\x1b`."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSHOWN
        else character
        for character in text
    )


class PlainFormatter(logging.Formatter):
    """Log records of one line each, whoever's words they hold; tracebacks come after it as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # named by logging
        record.message = plain(record.message)
        return super().formatMessage(record)


def log_to_stderr(level: int | str, form: str) -> None:
    """From now on this process logs to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])
