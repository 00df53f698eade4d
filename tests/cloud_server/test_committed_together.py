"""Stages of single vehicles that are committed together: done again after a kill, to the same end."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet_fixtures import CARS, TinyFleet, World
from supervision import Supervisor


@pytest.mark.parametrize("algorithm", ["blackfed-v2", "split"])
def test_stages_committed_together_end_with_the_same_bits_whatever_is_killed(
    algorithm: str, tiny_world: World, tmp_path: Path
) -> None:
    alone, together = (
        TinyFleet(tiny_world, tmp_path / str(every), algorithm=algorithm, commit_every=every)
        for every in (1, 9)
    )
    Supervisor(alone).run()
    # In the second turn of learning, when the first one's stage is over and not committed.
    last = (CARS[1], "upload" if algorithm == "blackfed-v2" else "train", 3)
    Supervisor(together).run_with_kills({last}, victim="cloud")
    assert together.fingerprint() == alone.fingerprint()
    assert together.scores() == alone.scores()
    assert [event["stage"] for event in together.events("committed")] == [0, 2, 4, 5]
    assert [event["stage"] for event in alone.events("committed")] == [0, 1, 2, 3, 4, 5]
    first = [event["vehicle"] for event in together.events("turn_done") if event["stage"] == 1]
    assert first == [CARS[0]] * 2, "its turn was done again"
