"""Partitions: every frame once, whole blocks of time, skew where it is asked for, the same for ever."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datasets.allotment import MIN_FRAMES, distinctive_classes
from datasets.catalog import open_dataset
from datasets.draws import StableDraws
from datasets.frame import DatasetError, Frame, FrameRef
from datasets.labels import CAMVID
from datasets.partition import METHODS, PARTS, FrameSplit, describe_partition, partition_frames

PLACES = ("city", "sequence")


def make_refs(sizes: Sequence[Sequence[int]]) -> list[FrameRef]:
    """Frames of cities whose sequences have these lengths: `sizes[city][sequence]`."""
    refs = []
    for c, sequences in enumerate(sizes):
        for s, length in enumerate(sequences):
            for f in range(length):
                city, sequence, frame_id = f"city{c:02d}", f"{s:06d}", f"{f:06d}"
                path = Path(f"{city}_{sequence}_{frame_id}")
                refs.append(FrameRef(path.name, city, sequence, frame_id, path, path))
    return refs


class OneClassFrames:
    """A source whose frames show road, and a patch of one further class each."""

    label_space = CAMVID

    def __init__(self, count: int) -> None:
        self.refs = tuple(make_refs([[count]]))

    def load_label(self, ref: FrameRef) -> NDArray[np.uint8]:
        label_HW = np.full((4, 4), CAMVID.by_name("road").train_id, np.uint8)
        label_HW[0] = self.patch_class(ref)
        label_HW[1, 0] = 255
        return label_HW

    def load_image(self, ref: FrameRef) -> NDArray[np.uint8]:
        return np.zeros((4, 4, 3), np.uint8)

    def load(self, ref: FrameRef) -> Frame:
        return Frame(
            image_HWC=self.load_image(ref),
            label_HW=self.load_label(ref),
            city=ref.city,
            sequence=ref.sequence,
            frame_id=ref.frame_id,
        )

    @staticmethod
    def patch_class(ref: FrameRef) -> int:
        return (0, 1, 2, 4, 5)[int(ref.frame_id) % 5]


def ids(count: int) -> list[str]:
    return [f"vehicle-{i:03d}" for i in range(count)]


def keys_of(frames: FrameSplit) -> tuple[str, ...]:
    return frames.train + frames.val + frames.test


def check_fleet(partition: dict[str, FrameSplit], refs: Sequence[FrameRef], vehicles: list[str]) -> None:
    """Every vehicle has all parts, every frame is owned exactly once."""
    assert list(partition) == vehicles
    owned = Counter(key for frames in partition.values() for key in keys_of(frames))
    assert owned == Counter(ref.key for ref in refs)
    for frames in partition.values():
        assert frames.train and frames.val and frames.test
        assert all(list(part) == sorted(part) for part in dataclasses.astuple(frames))


sizes = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(), sizes=sizes, method=st.sampled_from([*PLACES, "uniform"]), seed=st.integers(0, 2**64 - 1)
)
def test_every_frame_is_owned_once_whatever_the_fleet(
    data: st.DataObject, sizes: list[list[int]], method: str, seed: int
) -> None:
    refs = make_refs(sizes)
    if len(refs) < MIN_FRAMES:
        return
    vehicles = ids(data.draw(st.integers(1, len(refs) // MIN_FRAMES), label="vehicles"))
    shuffled = data.draw(st.permutations(refs), label="order")
    fractions = data.draw(st.sampled_from([(0.7, 0.1, 0.2), (0.05, 0.05, 0.9), (0.4, 0.3, 0.3)]))
    partition = partition_frames(shuffled, vehicles, method=method, fractions=fractions, seed=seed)
    check_fleet(partition, refs, vehicles)
    assert partition == partition_frames(refs, vehicles, method=method, fractions=fractions, seed=seed)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(3, 40), min_size=1, max_size=4), min_size=1, max_size=6),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_places_stay_whole_while_there_are_enough(
    sizes: list[list[int]], seed: int, data: st.DataObject
) -> None:
    refs = make_refs(sizes)
    for method, places in (("city", len(sizes)), ("sequence", sum(map(len, sizes)))):
        count = data.draw(st.integers(1, places))
        partition = partition_frames(refs, ids(count), method=method, seed=seed)
        cut = len("city00") if method == "city" else len("city00_000000")
        owners = [{key[:cut] for key in keys_of(frames)} for frames in partition.values()]
        assert sum(map(len, owners)) == len(set().union(*owners)) == places
        # Graham's bound for dealing each place to the vehicle that has the fewest frames (1969).
        largest = max(Counter(ref.key[:cut] for ref in refs).values())
        most = max(len(keys_of(frames)) for frames in partition.values())
        assert most <= len(refs) / count + (1 - 1 / count) * largest


def test_parts_are_contiguous_blocks_of_each_sequence_in_time() -> None:
    refs = make_refs([[20, 30], [40]])
    partition = partition_frames(refs, ids(1), method="city", seed=0)
    frames = partition["vehicle-000"]
    part_of = {key: part for part in PARTS for key in getattr(frames, part)}
    for _, sequence in itertools.groupby(refs, key=lambda ref: (ref.city, ref.sequence)):
        parts = [part_of[ref.key] for ref in sequence]
        assert [part for part, _ in itertools.groupby(parts)] == list(PARTS)
        assert Counter(parts) == {
            "train": 0.7 * len(parts),
            "val": 0.1 * len(parts),
            "test": 0.2 * len(parts),
        }


def test_sequences_of_single_frames_are_divided_as_one() -> None:
    # Most cities of the real Cityscapes look so: each snippet has one labelled frame.
    partition = partition_frames(make_refs([[1] * 20]), ids(1), method="city", seed=0)
    assert [len(part) for part in dataclasses.astuple(partition["vehicle-000"])] == [14, 2, 4]


def test_larger_places_are_divided_among_more_vehicles() -> None:
    partition = partition_frames(make_refs([[60], [100], [300]]), ids(9), method="city", seed=1)
    vehicles_in = Counter(frames.train[0][:6] for frames in partition.values())
    assert vehicles_in == {"city00": 1, "city01": 2, "city02": 6}
    for frames in partition.values():
        numbers = sorted(int(key[-6:]) for key in keys_of(frames))
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_uniform_mixes_places_evenly() -> None:
    partition = partition_frames(make_refs([[200], [200]]), ids(4), method="uniform", seed=0)
    for frames in partition.values():
        share = np.mean([key.startswith("city00") for key in keys_of(frames)])
        assert len(keys_of(frames)) == 100 and 0.35 < share < 0.65


@pytest.mark.parametrize("method", METHODS)
def test_seed_decides_and_only_the_seed(method: str) -> None:
    source = OneClassFrames(120)
    first, again, other = (partition_frames(source, ids(5), method=method, seed=seed) for seed in (7, 7, 8))
    check_fleet(first, source.refs, ids(5))
    assert first == again != other


def test_draws_are_pinned() -> None:
    """Philox words are frozen (NEP 19); if this changes, every seeded partition changes with it."""
    draws = StableDraws(1)
    assert draws.permutation(8).tolist() == [3, 5, 2, 7, 0, 6, 1, 4]
    np.testing.assert_allclose(draws.uniform(2), [0.4082618259872465, 0.1689563422844781], rtol=1e-15)
    np.testing.assert_allclose(
        draws.dirichlet(0.5, 3), [0.3985398027162281, 0.06858546009953335, 0.5328747371842385], rtol=1e-12
    )


@pytest.mark.parametrize("alpha", [0.05, 1.0, 20.0])
def test_dirichlet_has_its_moments(alpha: float) -> None:
    draws, count = StableDraws(3), 4
    shares = np.array([draws.dirichlet(alpha, count) for _ in range(4000)])
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    variance = (count - 1) / (count**2 * (count * alpha + 1))
    np.testing.assert_allclose(shares.mean(axis=0), 1 / count, atol=4 * np.sqrt(variance / 4000))
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.12)


def class_spread(partition: dict[str, FrameSplit], source: OneClassFrames) -> float:
    """Mean largest share of a patch class in a vehicle's frames: 0.2 if even, 1 if each has one class."""
    refs = {ref.key: ref for ref in source.refs}
    shares = []
    for frames in partition.values():
        counts = Counter(source.patch_class(refs[key]) for key in keys_of(frames))
        shares.append(max(counts.values()) / sum(counts.values()))
    return float(np.mean(shares))


def test_skewing_methods_skew_as_much_as_asked() -> None:
    source = OneClassFrames(500)
    spread = {
        alpha: class_spread(partition_frames(source, ids(5), method="dirichlet", seed=2, alpha=alpha), source)
        for alpha in (0.05, 1.0, 1000.0)
    }
    assert spread[0.05] > spread[1.0] > spread[1000.0]
    assert spread[1000.0] < 0.25
    assert class_spread(partition_frames(source, ids(5), method="class-imbalance", seed=0), source) == 1.0


def test_distinctive_class_is_not_the_majority() -> None:
    histogram_NK = np.array([[90, 10, 0], [90, 10, 0], [88, 10, 2], [70, 30, 0], [96, 4, 0]])
    assert distinctive_classes(histogram_NK).tolist()[2:] == [2, 1, 0]
    assert distinctive_classes(np.zeros((2, 3), np.int64)).tolist() == [0, 0]


def test_description_counts_frames_and_pixels() -> None:
    source = OneClassFrames(50)
    partition = partition_frames(source, ids(2), method="city", seed=0)
    summary = describe_partition(source, partition)
    for vehicle, frames in partition.items():
        assert summary[vehicle].frames == {part: len(getattr(frames, part)) for part in PARTS}
        for part in PARTS:
            pixels = summary[vehicle].pixels[part]
            assert sum(pixels.values()) == 15 * len(getattr(frames, part))
            assert pixels["road"] == 11 * len(getattr(frames, part)) and pixels["car"] == 0
    with pytest.raises(DatasetError, match="no frame 'nowhere', which vehicle a should own"):
        describe_partition(source, {"a": FrameSplit(("nowhere",), (), ())})


@pytest.mark.parametrize(
    ("vehicles", "options", "message"),
    [
        ([], {}, "number of vehicles must be at least 1, got 0"),
        (["a", "b", "a"], {}, "vehicle ids must differ, got 'a' twice"),
        (ids(4), {}, r"more vehicles than frames .* 4 vehicles need at least 12 frames .* got 10"),
        (["a"], {"method": "country"}, "unknown partition method 'country', expected one of: city, sequence"),
        (["a"], {"fractions": (0.8, 0.0, 0.2)}, "must be positive and sum to 1, got 0.8, 0, 0.2"),
        (["a"], {"fractions": (0.8, 0.1, 0.2)}, "must be positive and sum to 1, got 0.8, 0.1, 0.2"),
        (["a"], {"alpha": 0.0}, "alpha must be positive, got 0"),
        (["a"], {"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
        (["a"], {"method": "dirichlet"}, "partition by dirichlet reads the labels: give a frame source"),
    ],
)
def test_impossible_requests_are_refused(
    vehicles: list[str], options: dict[str, object], message: str
) -> None:
    arguments = {"method": "city", "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        partition_frames(make_refs([[10]]), vehicles, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", PLACES)
def test_real_camvid_gives_each_vehicle_a_sequence(camvid_root: Path, method: str) -> None:
    source = open_dataset("camvid", camvid_root)
    partition = partition_frames(source, ids(3), method=method, seed=0)
    check_fleet(partition, source.refs, ids(3))
    counts = {
        frames.train[0][:6]: [len(part) for part in dataclasses.astuple(frames)]
        for frames in partition.values()
    }
    assert counts == {"0001TP": [43, 6, 13], "0006R0": [71, 10, 20], "0016E5": [214, 30, 61]}
