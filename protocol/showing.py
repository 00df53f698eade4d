"""What a process prints reaches any terminal and any file: what can't be written there is replaced."""

from __future__ import annotations

import io
import sys


def show_anything() -> None:
    """Let standard output and error take what their encoding lacks, and bytes that were no text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
