"""Predictions of a finished run beside its curves: overlays as pictures in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloud_server.storage.recorders import Board
from fleet.frames.allocation import evenly_spaced

MOST_PICTURES = 32
"""Of a run: TensorBoard shows so many on a page, and a large fleet's are many."""


def put_on_board(run_folder: Path, overlays: Sequence[Path], *, step: int) -> None:
    """Add overlays, `overlays/<vehicle>/<frame>.png`, to the run's board as `overlays/<vehicle>`, one a step
    from `step` on.

    Raises:
        OSError: the folder can't be written.
    """
    shown = evenly_spaced(tuple(map(str, overlays)), MOST_PICTURES)
    if not shown:
        return
    numbers: dict[str, int] = {}
    with Board(run_folder) as board:
        for path in map(Path, shown):
            vehicle = path.parent.name
            board.picture(f"overlays/{vehicle}", path.read_bytes(), step + numbers.get(vehicle, 0))
            numbers[vehicle] = numbers.get(vehicle, 0) + 1
