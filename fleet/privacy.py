"""What of a scenario is about what vehicles keep to themselves."""

from __future__ import annotations

from edge_client.naming import KEYS, NAMINGS
from protocol.errors import SettingError
from protocol.plans.checks import Section


class PrivacyPart(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What vehicles keep to themselves."""

    section = "privacy"

    names: str = KEYS
    """What frames are called to broker and cloud: by their `keys`, which say of which drive and moment they
    are, or by their `numbers` alone; predictions get their names back when the run has ended."""

    label_square: int = 1
    """Train labels go to the cloud in squares of so many pixels a side of the encoder's input, each of the
    class that most of it has: no outlines. A vehicle's own learning has them as they are. 1 = as they are."""

    decoder_weight: float = 0.0
    """How much encoders that learn from their own labels also learn that a decoder on the vehicle can't paint
    their frames from the features: of −log of its squared error beside the loss of labels. 0 = no decoder."""

    update_clip: float | None = None
    """Of `fedavg` and `fedprox`: C, the longest change of all weights together, as one vector, that a
    vehicle sends of a turn: longer ones are shortened, and all get noise. None = sent as they are."""
    update_noise: float = 1.0
    """σ: standard deviation of the noise on each number of a change, in C."""
    delta: float = 1e-5
    """δ, with which ε is stated."""

    def __post_init__(self) -> None:
        self._above(0, "update_clip", "update_noise", "delta")
        if not self.delta < 1:
            raise SettingError(f"{self.key('delta')} must be below 1, got {self.delta}")
        self._at_least(0, "decoder_weight")
        self._at_least(1, "label_square")
        self._one_of(NAMINGS, "names")
