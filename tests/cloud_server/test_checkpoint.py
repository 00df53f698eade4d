"""Checkpoints come back exactly, survive being cut off, and are never used when damaged."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cloud_server.storage.checkpoint import (
    CheckpointError,
    flatten_state,
    has_checkpoint,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
    unflatten_state,
    write_tensors,
)


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0, 2),
    }


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_saved_tensors_and_meta_come_back_exactly(tmp_path: Path) -> None:
    meta = {"turn_id": 3, "rate": 0.1, "vehicles": {"a": 1}, "text": "Straße"}
    save_checkpoint(tmp_path / "new", some_tensors(), meta)
    tensors, loaded_meta = load_checkpoint(tmp_path / "new")
    assert loaded_meta == meta
    assert tensors.keys() == some_tensors().keys()
    for name, tensor in some_tensors().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_newest_is_loaded_and_the_last_two_are_kept(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    (tmp_path / ".checkpoint-000009.safetensors.abc.tmp").write_bytes(b"cut off")
    for turn_id in range(12):
        save_checkpoint(tmp_path, some_tensors(turn_id), {"turn_id": turn_id})
    assert names(tmp_path) == ["checkpoint-000011.safetensors", "checkpoint-000012.safetensors"]
    tensors, meta = load_checkpoint(tmp_path)
    assert meta == {"turn_id": 11}
    assert torch.equal(tensors["weight"], some_tensors(11)["weight"])


def test_loading_from_a_folder_without_checkpoints_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_damaged_newest_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, some_tensors(1), {"turn_id": 1})
    second = save_checkpoint(tmp_path, some_tensors(2), {"turn_id": 2})
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert str(second) in str(caught.value) and first.name in str(caught.value)
    assert "\n" not in str(caught.value)
    second.unlink()
    assert load_checkpoint(tmp_path)[1] == {"turn_id": 1}
    first.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no intact one is left"):
        load_checkpoint(tmp_path)


def test_no_flipped_bit_and_no_truncation_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors, meta = some_tensors(), {"turn_id": 1}
    write_tensors(path, tensors, meta)
    data = path.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found, found_meta = read_tensors(path)
        except CheckpointError:
            continue
        # Padding and the order of header entries carry nothing.
        assert found_meta == meta and all(torch.equal(found[name], tensors[name]) for name in tensors)
    for length in draw.sample(range(len(data)), 60):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_tensors(path)


def test_a_foreign_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for data in (b"", b"\x80\x04K\x01.", os.urandom(500), b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path)


def test_a_failed_save_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, some_tensors(1), {"turn_id": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, some_tensors(2), {"turn_id": 2})
    assert names(tmp_path) == ["checkpoint-000001.safetensors"]
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, {}, {"score": float("nan")})
    assert load_checkpoint(tmp_path)[1] == {"turn_id": 1}


def test_a_process_killed_while_saving_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path\n"
        "from cloud_server.storage.checkpoint import save_checkpoint\n"
        "for turn_id in range(10**9):\n"
        "    tensors = {'w': torch.full((100_000,), float(turn_id))}\n"
        "    save_checkpoint(Path(sys.argv[1]), tensors, {'turn_id': turn_id}); print(turn_id, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert process.stdout is not None
    for _ in range(10):
        acknowledged = int(process.stdout.readline())
    process.kill()
    process.wait()
    tensors, meta = load_checkpoint(tmp_path)
    assert meta["turn_id"] >= acknowledged
    assert torch.equal(tensors["w"], torch.full((100_000,), float(meta["turn_id"])))


def test_nested_state_survives_flattening_json_and_back(tmp_path: Path) -> None:
    state = {
        "network": {"a/b": torch.arange(3.0), "c": torch.tensor(1)},
        "groups": [{"rate": 0.1 + 0.2, "params": [0, 1]}, None, True],
        7: {"nested": {}},
        "name": "x",
    }
    tensors, structure = flatten_state(state)
    write_tensors(tmp_path / "state.safetensors", tensors, {"state": structure})
    loaded, meta = read_tensors(tmp_path / "state.safetensors")
    result = unflatten_state(loaded, json.loads(json.dumps(meta["state"])))
    assert result["groups"] == state["groups"] and result[7] == state[7] and result["name"] == "x"
    assert torch.equal(result["network"]["a/b"], torch.arange(3.0))


def test_flattening_what_can_not_be_stored_names_the_place() -> None:
    with pytest.raises(TypeError, match="set at /a/0"):
        flatten_state({"a": [{1, 2}]})
    with pytest.raises(TypeError, match="key of type tuple"):
        flatten_state({(1, 2): 3})
    with pytest.raises(CheckpointError, match="structure"):
        unflatten_state({}, {"tensor": "/a"})
