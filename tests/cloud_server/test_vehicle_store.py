"""The best weights per vehicle: kept exactly, and rolled back with the checkpoint that names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cloud_server.storage.checkpoint import CheckpointError
from cloud_server.storage.vehicle_store import VehicleStore


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value), "steps": torch.tensor(int(value))}


def value_of(store: VehicleStore, vehicle: str) -> float | None:
    found = store.get(vehicle)
    return None if found is None else found["a"][0, 0].item()


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.glob("*/*"))


def test_weights_and_score_come_back_from_memory_and_from_disk(tmp_path: Path) -> None:
    store = VehicleStore(tmp_path, capacity=2)
    assert store.get("car-1") is None and store.score("car-1") is None
    for number in range(5):
        store.put(f"car-{number}", weights(number), score=number / 10, turn_id=number)
    for number in (4, 0, 1, 4, 2, 3):
        assert value_of(store, f"car-{number}") == number
        assert store.score(f"car-{number}") == number / 10
    assert store.references() == {f"car-{number}": number for number in range(5)}


def test_memory_holds_no_more_vehicles_than_its_capacity(tmp_path: Path) -> None:
    store = VehicleStore(tmp_path, capacity=2)
    for number in range(4):
        store.put(f"car-{number}", weights(number), score=0.0, turn_id=number)
    for path in tmp_path.glob("*/*"):
        path.unlink()
    assert value_of(store, "car-3") == 3 and value_of(store, "car-2") == 2
    with pytest.raises(CheckpointError, match=r"car-0/0.safetensors is missing"):
        store.get("car-0")


def test_the_least_recently_used_leaves_memory_first(tmp_path: Path) -> None:
    store = VehicleStore(tmp_path, capacity=2)
    store.put("a", weights(1), score=0.0, turn_id=1)
    store.put("b", weights(2), score=0.0, turn_id=2)
    store.get("a")
    store.put("c", weights(3), score=0.0, turn_id=3)
    for path in tmp_path.glob("*/*"):
        path.unlink()
    assert value_of(store, "a") == 1
    with pytest.raises(CheckpointError):
        store.get("b")


def test_a_killed_store_goes_back_to_what_was_committed(tmp_path: Path) -> None:
    store = VehicleStore(tmp_path)
    store.put("a", weights(1), score=0.1, turn_id=1)
    store.put("b", weights(2), score=0.2, turn_id=2)
    committed = store.references()
    store.prune()
    store.put("a", weights(7), score=0.7, turn_id=7)
    store.put("c", weights(8), score=0.8, turn_id=8)

    restarted = VehicleStore(tmp_path)
    assert restarted.references() == {}
    restarted.restore(committed)
    assert (value_of(restarted, "a"), value_of(restarted, "b")) == (1, 2)
    assert restarted.get("c") is None
    assert restarted.score("a") == 0.1
    restarted.prune()
    assert files(tmp_path) == ["a/1.safetensors", "b/2.safetensors"]

    restarted.put("a", weights(70), score=0.7, turn_id=7)
    assert value_of(restarted, "a") == 70


def test_pruning_keeps_what_the_last_two_checkpoints_need(tmp_path: Path) -> None:
    store = VehicleStore(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".3.safetensors.xyz.tmp").write_bytes(b"unfinished")
    references = []
    for turn_id in range(1, 5):
        store.put("a", weights(turn_id), score=0.0, turn_id=turn_id)
        store.prune()
        references.append(store.references())
    assert files(tmp_path) == ["a/3.safetensors", "a/4.safetensors"]

    older = VehicleStore(tmp_path)
    older.restore(references[-2])
    assert value_of(older, "a") == 3
    with pytest.raises(CheckpointError, match=r"1.safetensors is missing, which the checkpoint names"):
        older.restore(references[0])
    assert value_of(older, "a") == 3


def test_pruning_after_a_restart_keeps_the_restored_versions(tmp_path: Path) -> None:
    store = VehicleStore(tmp_path)
    store.put("a", weights(1), score=0.0, turn_id=1)
    store.prune()
    restarted = VehicleStore(tmp_path)
    restarted.restore(store.references())
    restarted.put("a", weights(2), score=0.0, turn_id=2)
    restarted.prune()
    assert files(tmp_path) == ["a/1.safetensors", "a/2.safetensors"]


def test_damaged_and_mixed_up_files_are_never_used(tmp_path: Path) -> None:
    store = VehicleStore(tmp_path)
    store.put("a", weights(1), score=0.0, turn_id=1)
    store.put("b", weights(2), score=0.0, turn_id=2)
    path_a, path_b = tmp_path / "a" / "1.safetensors", tmp_path / "b" / "2.safetensors"
    restarted = VehicleStore(tmp_path)
    restarted.restore(store.references())
    path_a.write_bytes(path_b.read_bytes())
    with pytest.raises(CheckpointError, match="holds other weights than those of a in turn 1"):
        restarted.get("a")
    path_b.write_bytes(path_b.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        restarted.get("b")


@pytest.mark.parametrize("vehicle", ["", "..", "a/b", "x" * 65])
def test_an_id_that_is_no_vehicle_id_reaches_no_file(tmp_path: Path, vehicle: str) -> None:
    store = VehicleStore(tmp_path / "best")
    with pytest.raises(ValueError, match="vehicle id must be"):
        store.put(vehicle, weights(1), score=0.0, turn_id=1)
    with pytest.raises(ValueError, match="vehicle id must be"):
        store.restore({vehicle: 1})
    assert not (tmp_path / "best").exists()


def test_a_score_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    store = VehicleStore(tmp_path)
    with pytest.raises(ValueError, match="score finite, got 1 and nan"):
        store.put("a", weights(1), score=float("nan"), turn_id=1)
    assert store.references() == {}
