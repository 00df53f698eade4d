"""Labels received once: exact, bounded in memory, and intact after any kind of end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_server.storage.label_store import LabelError, LabelStore
from protocol.codec.labels import content_hash, encode_label

Label = NDArray[np.uint8]


def make_label(seed: int, height: int = 12, width: int = 16) -> Label:
    generator = np.random.default_rng(seed)
    label_HW = generator.integers(0, 11, (height // 4, width // 4), np.uint8).repeat(4, 0).repeat(4, 1)
    label_HW[0, : seed % width] = 255
    return label_HW


def add(store: LabelStore, vehicle: str, index: int, label_HW: Label) -> None:
    height, width = label_HW.shape
    store.add(
        vehicle,
        index,
        f"{vehicle}/frame-{index}",
        content_hash(label_HW),
        encode_label(label_HW),
        height=height,
        width=width,
    )


def test_labels_come_back_as_sent_and_after_reopening(tmp_path: Path) -> None:
    labels = [make_label(seed) for seed in range(4)]
    with LabelStore(tmp_path, num_classes=11) as store:
        for index, label_HW in enumerate(labels):
            add(store, "car-1", index, label_HW)
        assert np.array_equal(store.batch("car-1", [2, 0, 2]), np.stack([labels[2], labels[0], labels[2]]))
    with LabelStore(tmp_path, num_classes=11) as store:
        assert len(store) == 4
        assert np.array_equal(store.batch("car-1", range(4)), np.stack(labels))
        key, label_HW = store.full("car-1", 3)
        assert key == "car-1/frame-3" and np.array_equal(label_HW, labels[3])


def test_a_store_that_is_never_closed_loses_nothing(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, num_classes=11)
    add(store, "a", 0, make_label(1))
    assert LabelStore(tmp_path, num_classes=11).has("a", 0)
    store.close()


def test_has_tells_labels_of_other_content_apart(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, num_classes=11)
    add(store, "a", 0, make_label(1))
    assert store.has("a", 0) and store.has("a", 0, content_hash(make_label(1)))
    assert not store.has("a", 0, content_hash(make_label(2)))
    assert not store.has("a", 1) and not store.has("b", 0)


def test_the_same_label_again_is_not_stored_twice_and_another_takes_its_place(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, num_classes=11)
    add(store, "a", 0, make_label(1))
    size = (tmp_path / "labels.log").stat().st_size
    add(store, "a", 0, make_label(1))
    assert (tmp_path / "labels.log").stat().st_size == size
    add(store, "a", 0, make_label(2))
    for opened in (store, LabelStore(tmp_path, num_classes=11)):
        assert len(opened) == 1
        assert np.array_equal(opened.full("a", 0)[1], make_label(2))


def test_labels_of_several_sizes_come_as_a_list(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, num_classes=11)
    labels = [make_label(1), make_label(2, 24, 20)]
    for index, label_HW in enumerate(labels):
        add(store, "a", index, label_HW)
    assert all(np.array_equal(*pair) for pair in zip(store.get("a", [0, 1]), labels, strict=True))
    with pytest.raises(LabelError, match="must have one size, got 16x12, 20x24"):
        store.batch("a", [0, 1])
    with pytest.raises(LabelError, match="got no labels"):
        store.batch("a", [])


def test_a_label_that_was_never_sent_is_an_error(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, num_classes=11)
    with pytest.raises(LabelError, match="no label of frame 7 of vehicle a has been received"):
        store.full("a", 7)


def test_decoded_labels_take_no_more_memory_than_allowed(tmp_path: Path) -> None:
    labels = [make_label(seed) for seed in range(6)]
    store = LabelStore(tmp_path, num_classes=11, memory_bytes=2 * labels[0].nbytes)
    for index, label_HW in enumerate(labels):
        add(store, "a", index, label_HW)
    for index in (5, 0, 1, 0, 4, 3, 2):
        assert np.array_equal(store.full("a", index)[1], labels[index])
        assert store._decoded_bytes <= 2 * labels[0].nbytes
    assert store.full("a", 2)[1] is store.full("a", 2)[1]
    none = LabelStore(tmp_path, num_classes=11, memory_bytes=0)
    assert np.array_equal(none.batch("a", range(6)), np.stack(labels))
    assert none._decoded_bytes == 0


def test_a_returned_label_can_not_be_changed(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, num_classes=11)
    add(store, "a", 0, make_label(1))
    with pytest.raises(ValueError, match="read-only"):
        store.full("a", 0)[1][0, 0] = 1
    store.batch("a", [0])[0, 0, 0] = 1
    assert np.array_equal(store.full("a", 0)[1], make_label(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": b"12345678"}, "label of frame 3 of vehicle a: its content is not what its digest"),
        ({"coded": b"nonsense"}, "label of frame 3 of vehicle a"),
        ({"height": 11}, "label of frame 3 of vehicle a"),
        ({"coded": encode_label(np.full((12, 16), 11, np.uint8))}, "label ids must be below 11"),
    ],
)
def test_a_label_that_is_not_what_it_claims_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    store = LabelStore(tmp_path, num_classes=11)
    label_HW = make_label(1)
    sent = {"digest": content_hash(label_HW), "coded": encode_label(label_HW), "height": 12, "width": 16}
    with pytest.raises(LabelError, match=message):
        store.add("a", 3, "frame", **{**sent, **change})
    assert len(store) == 0 and (tmp_path / "labels.log").stat().st_size == 0


def test_an_unfinished_write_at_any_byte_costs_only_that_label(tmp_path: Path) -> None:
    with LabelStore(tmp_path, num_classes=11) as store:
        for index in range(2):
            add(store, "a", index, make_label(index))
        whole = (tmp_path / "labels.log").stat().st_size
        add(store, "a", 2, make_label(2))
    data = (tmp_path / "labels.log").read_bytes()
    for length in range(whole, len(data)):
        (tmp_path / "labels.log").write_bytes(data[:length])
        with LabelStore(tmp_path, num_classes=11) as store:
            assert len(store) == 2 and not store.has("a", 2)
            add(store, "a", 2, make_label(2))
        assert (tmp_path / "labels.log").read_bytes() == data


def test_a_damaged_record_in_the_middle_is_left_out(tmp_path: Path) -> None:
    ends = []
    with LabelStore(tmp_path, num_classes=11) as store:
        for index in range(3):
            add(store, "a", index, make_label(index))
            ends.append((tmp_path / "labels.log").stat().st_size)
    path = tmp_path / "labels.log"
    data = bytearray(path.read_bytes())
    data[ends[1] - 3] ^= 4
    path.write_bytes(data)
    with LabelStore(tmp_path, num_classes=11) as store:
        assert [store.has("a", index) for index in range(3)] == [True, False, True]
        add(store, "a", 1, make_label(1))
    with LabelStore(tmp_path, num_classes=11) as store:
        assert np.array_equal(store.batch("a", range(3)), np.stack([make_label(i) for i in range(3)]))


def test_a_record_spoilt_while_open_is_noticed_when_read(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, num_classes=11, memory_bytes=0)
    add(store, "a", 0, make_label(1))
    path = tmp_path / "labels.log"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(LabelError, match=r"labels.log is damaged at the label of frame 0 of vehicle a"):
        store.full("a", 0)


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LabelStore(tmp_path, num_classes=11)
    add(store, "a", 0, make_label(0))
    real_pwrite = os.pwrite

    def write_half(file: int, data: bytes, offset: int) -> int:
        return real_pwrite(file, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", write_half)
    with pytest.raises(OSError, match="bytes could be written"):
        add(store, "a", 1, make_label(1))
    monkeypatch.undo()
    assert len(store) == 1 and not store.has("a", 1)
    add(store, "a", 2, make_label(2))
    with LabelStore(tmp_path, num_classes=11) as reopened:
        assert [reopened.has("a", index) for index in range(3)] == [True, False, True]
