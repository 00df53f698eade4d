"""When a vehicle sends a request, when it asks what became of it, and when it does neither."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest
from slow_bus import ActingClock, SlowBus, SlowTransport
from turn_fixtures import empty_turn

from edge_client.conversation import Conversation, Patience
from edge_client.errors import TurnRefused, VehicleError
from protocol.codec.weights import WeightTensor
from protocol.messages import Ack, Down, FetchWeights, Recall, Resend, Status, TurnDone, Up, Weights
from protocol.session.link import CloudLink, Received, VehicleLink

CAR, SESSION = "car-1", "0" * 16
HEADER = {"vehicle": CAR, "grant": "a" * 16, "turn_id": 1, "step": 0}
TURN = empty_turn(**HEADER)
DONE = TurnDone(**HEADER, loss=None)  # type: ignore[arg-type]
ACK = Ack(**HEADER)  # type: ignore[arg-type]


class World:
    """A vehicle in conversation with a cloud that the test plays."""

    def __init__(self, *, give_up_s: float = 600.0, payload_limit_bytes: int = 1024) -> None:
        self.clock, self.bus = ActingClock(), SlowBus()
        self.link = VehicleLink(
            self.bus.client(), "tiny", CAR, payload_limit_bytes=payload_limit_bytes, clock=self.clock
        )
        self.cloud = CloudLink(
            self.bus.client(), "tiny", payload_limit_bytes=payload_limit_bytes, clock=self.clock
        )
        self.link.open(1)
        self.cloud.open(1)
        self.conversation = Conversation(
            self.link,
            Patience(give_up_s=give_up_s),
            session=SESSION,
            stop=threading.Event(),
            on_new_cloud=lambda: None,
            alive=lambda: None,
        )
        self.heard: list[tuple[float, Up | Status]] = []
        """What has come to the cloud, and when."""
        self.told = self.clock.now()

    def live(self, *, uplink_from: float = 0.0, answer: Callable[[Up, float], Down | None]) -> None:
        """From now on the cloud hears what arrives after `uplink_from`, and answers each message as told."""

        def act(now: float) -> None:
            if now - self.told > 10:  # the cloud's heartbeat
                self.told = now
                self.cloud.announce(Status(vehicle="cloud", session="c" * 16, online=True, beat=0))
            cloud = self.cloud.transport
            assert isinstance(cloud, SlowTransport)
            while cloud.step():
                pass
            if now < uplink_from:
                return
            self.bus.run()
            while (received := self.cloud.receive(0)) is not None:
                assert isinstance(received, Received)
                if received.vehicle != CAR:
                    continue
                self.heard.append((now, received.message))  # type: ignore[arg-type]
                reply = answer(received.message, now)  # type: ignore[arg-type]
                if reply is not None:
                    self.cloud.send(CAR, reply)

        self.clock.act = act

    def kinds(self) -> list[str]:
        return [type(message).__name__ for _, message in self.heard]


def test_request_that_waits_in_its_own_socket_is_not_sent_again() -> None:
    world = World()
    world.live(uplink_from=220.0, answer=lambda message, now: ACK)
    assert world.conversation.ask(TURN, [DONE]) == [ACK]
    assert world.kinds() == ["TurnDone"] and world.heard[0][0] >= 220


def test_busy_cloud_is_asked_in_few_bytes_ever_more_rarely() -> None:
    world = World()
    world.live(answer=lambda message, now: ACK if now > 200 else None)
    assert world.conversation.ask(TURN, [DONE]) == [ACK]
    assert world.kinds() == ["TurnDone", *["Recall"] * 6]
    times = [time_s for time_s, _ in world.heard]
    waits = [round(later - earlier) for earlier, later in itertools.pairwise(times)]
    assert all(abs(wait - wanted) <= 1 for wait, wanted in zip(waits, (5, 10, 20, 30, 30, 30), strict=True))


def test_request_that_the_cloud_lacks_is_sent_again_once() -> None:
    world = World()
    seen: list[object] = []

    def answer(message: Up, now: float) -> Down | None:
        seen.append(message)
        if isinstance(message, Recall):
            return Resend(**HEADER)  # type: ignore[arg-type]
        return ACK if len(seen) > 1 else None

    world.live(answer=answer)
    assert world.conversation.ask(TURN, [DONE]) == [ACK]
    assert world.kinds() == ["TurnDone", "Recall", "TurnDone"]


def test_answer_that_has_arrived_is_read_before_the_request_is_recalled() -> None:
    world = World()
    world.live(answer=lambda message, now: ACK)

    def slow_work() -> object:
        yield DONE
        # A minute of the vehicle's own work, in which the answer comes.
        world.clock.act(world.clock.now())
        world.bus.run()
        world.clock.time_s += 60
        yield TurnDone(**{**HEADER, "step": 1}, loss=None)  # type: ignore[arg-type]

    world.clock.act(0)
    second = Ack(**{**HEADER, "step": 1})  # type: ignore[arg-type]
    world.live(answer=lambda message, now: Ack(**{**HEADER, "step": message.step}))  # type: ignore[arg-type,union-attr]
    assert world.conversation.ask(TURN, slow_work()) == [ACK, second]  # type: ignore[arg-type]
    assert world.kinds() == ["TurnDone", "TurnDone"]


def test_answer_in_parts_that_is_on_its_way_is_not_recalled() -> None:
    world = World()
    weights = Weights(**HEADER, tensors=(WeightTensor("w", (5_000,), bytes(20_000)),))  # type: ignore[arg-type]
    world.live(answer=lambda message, now: weights)
    act, cloud = world.clock.act, world.cloud.transport
    assert isinstance(cloud, SlowTransport)
    fast = cloud.step
    slept = [0.0]

    def one_part_in_four_seconds(lose: object = None) -> bool:
        if world.clock.now() - slept[0] < 4:
            return False
        slept[0] = world.clock.now()
        return fast()

    cloud.step = one_part_in_four_seconds  # type: ignore[method-assign]
    world.clock.act = act
    fetch = FetchWeights(**HEADER)  # type: ignore[arg-type]
    assert world.conversation.ask(TURN, [fetch]) == [weights]
    assert world.kinds() == ["FetchWeights"] and world.clock.now() > 150


def test_cloud_that_is_there_and_never_answers_ends_the_vehicle() -> None:
    world = World(give_up_s=100)
    world.live(answer=lambda message, now: None)
    with pytest.raises(VehicleError, match="the cloud has not answered for 125 s"):
        world.conversation.ask(TURN, [DONE])
    assert world.kinds().count("TurnDone") == 1


def test_request_that_the_cloud_can_not_take_fails_the_turn_in_one_line() -> None:
    world = World()
    world.cloud.limit_bytes = 10
    world.cloud.announce(Status(vehicle="cloud", session="c" * 16, online=True, beat=0))
    world.bus.run()
    list(world.conversation.arrived(0.1))
    with pytest.raises(
        TurnRefused, match="a message TurnDone of 33 bytes is more than the 10 bytes that 'cloud'"
    ):
        world.conversation.ask(TURN, [DONE])
    assert not world.heard
