"""A request that has not been answered, and when its vehicle begins to wonder."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import Recall, Request
from protocol.session.link import Sending

_SLOWEST_RECALL_S = 30.0


@dataclass
class Pending:
    """The clock of a request stands still while the request, or anything else, is on its way."""

    request: Request
    sending: Sending
    wait_s: float
    """For so long an answer is waited for; then for twice as long, and so on."""
    _disturbed_at: float = 0.0
    _recalled_at: float = 0.0

    def disturbed(self, at: float) -> None:
        """Up to this moment the network had a reason to be silent."""
        self._disturbed_at = max(self._disturbed_at, at)

    def due_at(self) -> float | None:
        """When the request is to be recalled; None while it is on its way."""
        since = self._since()
        return None if since is None else max(since, self._recalled_at) + self.wait_s

    def waited_s(self, now: float) -> float:
        """How long the cloud has had the request, as far as is known, with the network at work."""
        since = self._since()
        return 0.0 if since is None else now - since

    def recall(self, now: float) -> Recall:
        """The question what became of the request; the next one is due later."""
        self._recalled_at = now
        self.wait_s = min(2 * self.wait_s, max(self.wait_s, _SLOWEST_RECALL_S))
        header = self.request
        return Recall(vehicle=header.vehicle, grant=header.grant, turn_id=header.turn_id, step=header.step)

    def _since(self) -> float | None:
        return None if self.sending.done_at is None else max(self.sending.done_at, self._disturbed_at)
