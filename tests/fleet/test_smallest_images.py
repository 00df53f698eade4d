"""The smallest images that are not refused can be learnt from."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet_fixtures import World
from start_fixtures import run

from fleet.export.bundle import export_bundle
from fleet.scenario import load_scenario
from protocol.errors import SettingError


@pytest.mark.parametrize(
    ("encoder", "size", "algorithm"),
    [
        ("stride8-c8", "16x8", "blackfleet"),
        ("stride8-c4", "8x16", "fedavg"),
        ("stride4-c8", "8x4", "blackfleet"),
        ("blackfed-double-conv", "4x8", "blackfleet"),
    ],
)
def test_the_smallest_image_makes_a_run(
    tiny_world: World, tmp_path: Path, encoder: str, size: str, algorithm: str
) -> None:
    settings = {
        "algorithm": algorithm,
        "vehicles": 1,
        "rounds": 1,
        "image_size": size,
        "cores": 1,
        "broker": "memory",
        "encoder": {"name": encoder, "mode": "rebuild"},
        "dataset": {"name": "camvid", "root": str(tiny_world.data_root)},
        "first_order": {"epochs": 1, "batch_size": 4},
        "local_loss": {"warm_up_epochs": 1, "epochs": 1},
        "evaluation": {"overlays": 0},
    }
    assert run(load_scenario(None, settings), tmp_path / "run")["frames_seen"] > 0


def test_a_single_cell_is_refused_by_the_export_too(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"8x8 is too small for encoder stride8-c8: one cell .* are 16x8 and 8x16"
    ):
        export_bundle("stride8-c8", tmp_path / "bundle", image_size=(8, 8), seed=0)
    assert not (tmp_path / "bundle").exists()
