"""What a client has subscribed to, and who is to have a message."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from protocol.session.transport import Handler, topic_matches


class Subscriptions:
    """By filter; may be changed and read by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exact: dict[str, tuple[Handler, int]] = {}
        self._with_wildcards: dict[str, tuple[Handler, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._exact or self._with_wildcards)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter([*self._with_wildcards, *self._exact])

    def add(self, topic_filter: str, handler: Handler, qos: int) -> None:
        """Subscribe; a filter has one handler."""
        with self._lock:
            if "+" in topic_filter or "#" in topic_filter:
                self._with_wildcards = {**self._with_wildcards, topic_filter: (handler, qos)}
            else:
                self._exact[topic_filter] = (handler, qos)

    def remove(self, topic_filter: str) -> None:
        """No longer subscribe; what is not there needs no removal."""
        with self._lock:
            kept = {known: how for known, how in self._with_wildcards.items() if known != topic_filter}
            self._with_wildcards = kept
            self._exact.pop(topic_filter, None)

    def now(self, topic_filters: Iterable[str]) -> tuple[list[tuple[str, int]], list[str]]:
        """Those of the filters that are subscribed to, with the level wanted, and those that are not."""
        with self._lock:
            known = {**self._with_wildcards, **self._exact}
        wanted = [(each, known[each][1]) for each in topic_filters if each in known]
        return wanted, [each for each in topic_filters if each not in known]

    def handlers(self, topic: str) -> list[Handler]:
        """Of the filters that a topic falls under; with very many of them this takes no longer."""
        found = [handler for handler, _ in filter(None, [self._exact.get(topic)])]
        return found + [
            handler
            for topic_filter, (handler, _) in self._with_wildcards.items()
            if topic_matches(topic_filter, topic)
        ]
