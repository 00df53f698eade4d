"""What `benchmarks.flower` makes of its measurements; Flower itself is not here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.flower import Measured, _pss_mib, _tree, are_same, summarise


def _measured(system: str, vehicles: int, *, wall_s: float, peak_mib: float) -> Measured:
    return Measured(
        system=system,
        vehicles=vehicles,
        wall_s=wall_s,
        first_turn_s=1.0,
        first_step_s=2.0,
        steps_s=3.0,
        processes=4,
        peak_mib=peak_mib,
    )


def test_ratios_are_flower_to_ours_and_a_further_client_is_what_more_clients_take() -> None:
    ratios = summarise(
        [
            _measured("blackfleet", 10, wall_s=10.0, peak_mib=100.0),
            _measured("Flower", 10, wall_s=20.0, peak_mib=50.0),
            _measured("blackfleet", 100, wall_s=50.0, peak_mib=190.0),
            _measured("Flower", 100, wall_s=25.0, peak_mib=230.0),
        ]
    )

    assert ratios["10"]["wall_s"] == 2.0 and ratios["100"]["wall_s"] == 0.5
    assert ratios["10"]["mib_a_client"] == 0.5
    assert ratios["MiB a further client"] == pytest.approx({"blackfleet": 1.0, "Flower": 2.0})


@pytest.mark.parametrize(("name", "apart"), [("weights, of their way", 0.1), ("test mIoU", 0.1)])
def test_runs_apart_in_weights_or_scores_are_not_the_same(name: str, apart: float) -> None:
    near = {"weights, of their way": 1e-4, "test mIoU": 1e-5, "validation mIoU, round 1": 0.0}

    assert are_same(near) and not are_same(near | {name: apart})


def test_memory_is_of_a_process_and_all_below_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        below = list(_tree(os.getpid()))
        size = _pss_mib(child.pid)
        child.communicate(b"\n")

    assert child.pid in below and size is not None and size > 0
    assert _pss_mib(child.pid) is None
