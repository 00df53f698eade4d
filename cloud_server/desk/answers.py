"""How much the cloud has told a vehicle of its network, and how much it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloud_server.errors import RequestError


@dataclass(kw_only=True)
class Told:
    """Answers that one vehicle has had in the whole run: a loss or a loss map about a frame is one.

    Those of attempts that came to nothing count, too: whoever starts over knows what it was told before.
    """

    answers: int = 0

    def check(self, frames: Sequence[int], answers: int, most: int) -> None:
        """Check that so many more answers about each of some frames are allowed.

        Raises:
            RequestError: the vehicle would have had more than `most`.
        """
        asked = self.answers + len(frames) * answers
        if asked > most:
            raise RequestError(
                f"this vehicle would have {asked} answers in this run, more than the {most} allowed "
                f"(zeroth_order.max_answers_per_vehicle)"
            )
