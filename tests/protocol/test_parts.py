"""Messages in parts: any order, any repetition, and nothing that a stranger sends may grow or crash."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.session.parts import PartsError, split
from protocol.session.reassembly import Reassembler
from protocol.session.transport import publish_packet_bytes

LIMIT = 40


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def reassembler(max_message_bytes: int = 10_000, max_pending: int = 4) -> Reassembler:
    return Reassembler(max_message_bytes=max_message_bytes, max_pending=max_pending)


@given(st.binary(max_size=2000), st.integers(18, 300), st.randoms(use_true_random=False))
def test_message_comes_back_from_shuffled_and_repeated_parts(
    message: bytes, limit: int, rng: random.Random
) -> None:
    pieces = split(message, limit, 7)
    assert all(len(piece) <= limit for piece in pieces)
    rng.shuffle(pieces)
    receiver = reassembler()
    outcomes = []
    for piece in pieces:
        outcomes.append(receiver.feed("a", piece))
        if outcomes[-1] is None:
            assert receiver.feed("a", piece) is None
    assert outcomes[-1] == message and not any(outcomes[:-1])


def test_small_message_costs_one_byte() -> None:
    assert [len(piece) for piece in split(payload(LIMIT - 1), LIMIT, 0)] == [LIMIT]
    assert len(split(payload(LIMIT), LIMIT, 0)) == 2
    assert split(b"", LIMIT, 0) == [b"\x00"]


def test_default_limit_leaves_room_for_the_longest_topic() -> None:
    topic = f"blackfleet/v1/{'f' * 64}/{'v' * 64}/status"
    assert publish_packet_bytes(topic, 128 * 1024 - 256, 1) <= 128 * 1024


def test_parts_of_several_senders_and_messages_interleave() -> None:
    receiver = reassembler()
    messages = {("a", 1): payload(100, 1), ("a", 2): payload(100, 2), ("b", 1): payload(100, 3)}
    pieces = {key: split(message, LIMIT, key[1]) for key, message in messages.items()}
    for index in range(len(pieces["a", 1])):
        for (sender, message_id), parts in pieces.items():
            outcome = receiver.feed(sender, parts[index])
            assert outcome == (messages[sender, message_id] if index == len(parts) - 1 else None)


def test_reused_message_id_does_not_mix_with_an_unfinished_message() -> None:
    receiver = reassembler()
    before, after = payload(100, 1), payload(100, 2)
    assert receiver.feed("a", split(before, LIMIT, 1)[0]) is None
    assert [receiver.feed("a", piece) for piece in split(after, LIMIT, 1)][-1] == after


def test_repeated_message_is_returned_again() -> None:
    receiver = reassembler()
    pieces = split(payload(100), LIMIT, 1)
    for _ in range(2):
        assert [receiver.feed("a", piece) for piece in pieces][-1] == payload(100)


def test_unfinished_messages_are_bounded_at_the_expense_of_who_has_most() -> None:
    receiver = reassembler(max_pending=3)
    patient = split(payload(60, 99), LIMIT, 0)
    receiver.feed("patient", patient[0])
    for message_id in range(50):
        receiver.feed("flood", split(payload(60, message_id), LIMIT, message_id)[0])
    assert receiver.dropped == 47
    assert [receiver.feed("patient", piece) for piece in patient[1:]][-1] == payload(60, 99)


def test_two_hundred_interleaved_senders_all_complete_in_bounded_memory() -> None:
    size, receiver = 9 * LIMIT, reassembler(max_message_bytes=9 * LIMIT)
    sent = {f"vehicle-{i}": [payload(size, 2 * i), payload(size, 2 * i + 1)] for i in range(200)}
    pieces = {name: [split(one, LIMIT, i) for i, one in enumerate(both)] for name, both in sent.items()}
    outcomes: dict[str, list[bytes]] = {name: [] for name in sent}
    most_bytes = 0
    for turn in range(2):
        for index in range(len(pieces["vehicle-0"][0])):
            for name, both in pieces.items():
                if (message := receiver.feed(name, both[turn][index])) is not None:
                    outcomes[name].append(message)
            most_bytes = max(most_bytes, receiver.held_bytes)
    assert outcomes == sent
    assert receiver.dropped == 0 and receiver.held_bytes == 0
    assert size * 100 < most_bytes <= size * 200


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 5)), max_size=80))
def test_no_sender_holds_more_than_its_share(feeds: list[tuple[str, int, int]]) -> None:
    receiver = reassembler(max_message_bytes=150, max_pending=4)
    for sender, message_id, index in feeds:
        pieces = split(payload(120, message_id), LIMIT, message_id)
        receiver.feed(sender, pieces[index % len(pieces)])
        assert receiver.held_bytes <= 150 * len({name for name, _, _ in feeds})


def test_message_over_the_limit_is_refused_and_forgotten() -> None:
    receiver = reassembler(max_message_bytes=100)
    with pytest.raises(PartsError, match="at most 100 allowed"):
        receiver.feed("a", split(payload(101), 1000, 1)[0])
    pieces = split(payload(101), LIMIT, 2)
    for piece in pieces[:-1]:
        assert receiver.feed("a", piece) is None
    with pytest.raises(PartsError, match="at most 100 allowed"):
        receiver.feed("a", pieces[-1])
    assert receiver.feed("a", split(payload(100), 1000, 3)[0]) == payload(100)


def test_damaged_part_fails_the_checksum() -> None:
    receiver = reassembler()
    first, *rest = split(payload(100), LIMIT, 1)
    receiver.feed("a", first[:-1] + bytes([first[-1] ^ 1]))
    with pytest.raises(PartsError, match="checksum"):
        for piece in rest:
            receiver.feed("a", piece)


def test_two_contents_of_one_part_are_refused() -> None:
    receiver = reassembler()
    first, *_ = split(payload(100), LIMIT, 1)
    receiver.feed("a", first)
    with pytest.raises(PartsError, match="two contents"):
        receiver.feed("a", first[:-1] + bytes([first[-1] ^ 1]))


@pytest.mark.parametrize("frame", [b"", b"\x02abc", b"\x01", b"\x01" + bytes(16), b"\xff" * 40])
def test_frame_of_no_kind_is_refused(frame: bytes) -> None:
    with pytest.raises(PartsError, match="are no message"):
        reassembler().feed("a", frame)


def test_part_beyond_the_count_is_refused() -> None:
    with pytest.raises(PartsError, match="part 3 of 3 does not exist"):
        reassembler().feed("a", b"\x01" + bytes(12) + b"\x00\x03\x00\x03" + b"x")


@given(st.lists(st.binary(max_size=60), max_size=30))
def test_random_bytes_raise_nothing_else(frames: list[bytes]) -> None:
    receiver = reassembler(max_message_bytes=64, max_pending=2)
    for frame in frames:
        try:
            outcome = receiver.feed("a", frame)
        except PartsError:
            continue
        assert outcome is None or len(outcome) <= 64


def test_split_refuses_impossible_limits() -> None:
    with pytest.raises(ValueError, match="more than 17 bytes, got 17"):
        split(b"x" * 100, 17, 0)
    with pytest.raises(ValueError, match="over 65535"):
        split(bytes(70_000), 18, 0)
