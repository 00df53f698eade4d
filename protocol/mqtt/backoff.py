"""How long to wait before a connection is tried again."""

from __future__ import annotations

import random

from protocol import noise

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 8.0
_MOST_DOUBLINGS = 10


class Backoff:
    """Twice as long after each failure; clients' waits differ, so that they don't come all at once."""

    def __init__(self, client_id: str, seed: int) -> None:
        self._jitter = random.Random(noise.derive_seed("reconnect", client_id, seed))
        self._attempts = 0

    def reset(self) -> None:
        """The connection was good for a while."""
        self._attempts = 0

    def next_s(self) -> float:
        """The next wait, in seconds."""
        wait_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0**self._attempts) * self._jitter.uniform(0.5, 1.5)
        self._attempts = min(self._attempts + 1, _MOST_DOUBLINGS)
        return wait_s
