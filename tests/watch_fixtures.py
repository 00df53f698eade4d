"""A log with everything in it that the live page has to fold."""

from __future__ import annotations

from typing import Any

CROWD = [f"car-{number:03}" for number in range(1, 121)]


def events() -> list[dict[str, Any]]:
    """A run of many vehicles with everything that a log can tell."""
    time = iter(range(1_000_000))

    def event(name: str, **values: Any) -> dict[str, Any]:
        return {"event": name, "time": 1e9 + next(time), **values}

    def traffic(number: int) -> dict[str, int]:
        sent = {"queries": number, "uplink_bytes": 10 * number, "downlink_bytes": number}
        return {**sent, "round_trip_ms": number, "reconnects": 2}

    told = [event("processes", processes={"cloud": [], "host-01": CROWD})]
    told += [event("joined", vehicle=name, encoder="stride8-c4", frames={}) for name in reversed(CROWD)]
    run = {"algorithm": "blackfleet", "stages": 3, "rounds": 2, "vehicles": CROWD}
    told += [event("run", first=0, **run), event("unheard-of", vehicle="car-001"), event("unheard-of")]
    for stage in (0, 1):
        for number, name in enumerate(CROWD, 1):
            told.append(event("turn", stage=stage, round=stage + 1, kind="train", vehicle=name))
            told.append(event("traffic", vehicle=name, **traffic(number)))
            if number == 50:
                told += [event("left", vehicle=name), event("joined", vehicle=name, encoder="stride8-c4")]
                told.append(event("restarted", vehicle=name, stage=stage))
            told.append(
                event(
                    "turn_done",
                    stage=stage,
                    round=stage + 1,
                    kind="train",
                    vehicle=name,
                    loss=2.0,
                    **traffic(number),
                )
            )
            told.append(event("validation", vehicle=name, stage=stage, round=1, miou=0.2, best=number / 200))
        spent = {"uplink_bytes": 1000 * (stage + 1), "downlink_bytes": 0, "wall_s": 5.0}
        told.append(
            event(
                "curve", stage=stage, round=stage + 1, loss=2.0 - stage, val_miou=0.2 + 0.1 * stage, **spent
            )
        )
        told.append(event("committed", stage=stage, round=stage + 1, kind="train"))
    told += [event("reject", vehicle="car-002", reason="<b>too large</b>", count=1)]
    told += [event("reject", vehicle="stranger", reason="unknown", count=1)]
    told += [event("killed", process="cloud"), event("revived", process="cloud")]
    # The cloud had not committed the last stage.
    told += [event("run", first=1, **run), event("left", vehicle="car-003")]
    told += [event("failed", vehicle="car-004", stage=1, round=2, reason="no disk")]
    return told
