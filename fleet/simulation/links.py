"""Links by name: what lies between a vehicle and the broker."""

from __future__ import annotations

import msgspec

from protocol.errors import SettingError


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One vehicle's link."""

    up_mbit_s: float
    """Of a vehicle's packets to the broker, 10⁶ bits a second."""
    down_mbit_s: float
    latency_ms: float = 0.0
    """One way."""
    jitter_ms: float = 0.0
    """At most so much is added to the latency of a packet, uniformly; packets stay in order."""
    loss: float = 0.0
    """Share of segments of 1,460 bytes that are lost and sent again, a round trip later."""
    budget_mb: float | None = None
    """10⁶ bytes a month of 30 days, both ways together; who has used them has no link until it ends. None =
    no bound."""

    def __post_init__(self) -> None:
        for name in ("up_mbit_s", "down_mbit_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingError(
                    f"a link's {name} must be above 0, got {getattr(self, name):g}; a vehicle without a link "
                    f"is what availability is for"
                )
        for name in ("latency_ms", "jitter_ms"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingError(f"a link's {name} must be 0 or more, got {getattr(self, name):g}")
        check_budget("a link's budget_mb", self.budget_mb)
        if not 0 <= self.loss <= 0.5:
            raise SettingError(f"a link's loss must be from 0 to 0.5, got {self.loss:g}")


class CellProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What vehicles of one cell share."""

    up_mbit_s: float
    """Of all packets of its vehicles to the broker, 10⁶ bits a second."""
    down_mbit_s: float

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingError(f"a cell's {name} must be above 0, got {getattr(self, name):g}")


def check_budget(name: str, budget_mb: float | None) -> None:
    """Refuse a budget that is none.

    Raises:
        SettingError: it is not above 0.
    """
    if budget_mb is not None and not 0 < budget_mb < float("inf"):
        raise SettingError(
            f"{name} must be above 0, got {budget_mb:g}; leave it out for no bound, and a vehicle without a "
            f"link is what availability is for"
        )


LINKS = {
    "ethernet": LinkProfile(up_mbit_s=1000, down_mbit_s=1000, latency_ms=0.25),
    "wifi-depot": LinkProfile(up_mbit_s=50, down_mbit_s=50, latency_ms=4, jitter_ms=6, loss=0.001),
    "5g": LinkProfile(up_mbit_s=20, down_mbit_s=200, latency_ms=15, jitter_ms=5, loss=0.0005),
    "lte": LinkProfile(up_mbit_s=12, down_mbit_s=12, latency_ms=35, jitter_ms=10, loss=0.001),
    "3g": LinkProfile(up_mbit_s=0.768, down_mbit_s=1.6, latency_ms=150, jitter_ms=30, loss=0.005),
}
"""Where they come from: docs/running.md."""
