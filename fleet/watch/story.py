"""The lines of a run's log from what the cloud tells of them: each once, in their order, none of them twice.

What has just happened comes line by line; where something is missing, because an observer came late or the
network lost it, what still matters of the past takes its place.
"""

from __future__ import annotations

import json
from typing import Any

from protocol.codec.lines import decode_lines
from protocol.errors import WireError
from protocol.messages import Events, Happened, Past

_MOST_PENDING = 20_000
_MOST_PARTS = 4096


class Story:
    """Puts together what one cloud, or one after the other, tells."""

    def __init__(self) -> None:
        self._session = ""
        self._next: int | None = None
        """Number of the line to come; None: the past is to be heard first."""
        self._pending: dict[int, str] = {}
        """By number: lines that have arrived, before one that is missing."""
        self._upto = -1
        self._parts: dict[int, dict[int, str]] = {}
        self._time = float("-inf")
        """Of the latest line given out."""
        self._known_until = float("-inf")
        """What an earlier process of the cloud has told is not given out again."""

    def take(self, message: Events) -> list[str]:
        """The lines that can be given out now.

        Raises:
            WireError: the message is not what it should be, and changes nothing.
        """
        if isinstance(message, Past) and message.session == self._session and not self._misses(message):
            return []
        lines = self._decode(message)
        if message.session != self._session:
            self._session, self._next, self._upto = message.session, None, -1
            self._pending, self._parts = {}, {}
            self._known_until = self._time
        if isinstance(message, Past):
            self._take_past(message, lines)
        else:
            self._take_new(message.first, lines)
        return self._give_out()

    def _misses(self, past: Past) -> bool:
        return self._next is None or past.upto > self._next

    def _decode(self, message: Events) -> dict[int, str]:
        """By number.

        Raises:
            WireError: these are no lines of a log.
        """
        lines = decode_lines(message.plain_bytes, message.lines)
        if isinstance(message, Happened):
            return {message.first + place: line for place, line in enumerate(lines)}
        if len(lines) != len(message.numbers) or not message.part < message.parts <= _MOST_PARTS:
            raise WireError(f"{len(lines)} lines with {len(message.numbers)} numbers")
        return dict(zip(message.numbers, lines, strict=True))

    def _take_new(self, first: int, lines: dict[int, str]) -> None:
        if self._next is None and first == 0:
            self._next = 0
        self._pending |= {
            number: line for number, line in lines.items() if self._next is None or number >= self._next
        }
        if len(self._pending) > _MOST_PENDING:
            self._pending, self._next = {}, None

    def _take_past(self, message: Past, lines: dict[int, str]) -> None:
        if message.upto != self._upto:
            self._upto, self._parts = message.upto, {}
        self._parts[message.part] = lines
        if len(self._parts) < message.parts:
            return
        start = 0 if self._next is None else self._next
        for part in self._parts.values():
            self._pending |= {number: line for number, line in part.items() if start <= number < message.upto}
        # From here to `upto` no more will come of what is missing.
        self._next = message.upto
        self._parts = {}

    def _give_out(self) -> list[str]:
        given = []
        if self._next is not None:
            numbers = sorted(number for number in self._pending if number < self._next)
            while self._next in self._pending:
                numbers.append(self._next)
                self._next += 1
            given = [self._pending.pop(number) for number in numbers]
        return [event for line in given if (event := self._new_event(line)) is not None]

    def _new_event(self, line: str) -> str | None:
        """The line, made anew, of an event that was not told by an earlier process of the cloud."""
        try:
            event: Any = json.loads(line)
            time = float(event["time"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        self._time = max(self._time, time)
        return json.dumps(event) if time > self._known_until else None
