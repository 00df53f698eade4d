"""Vehicles that drive while a run learns: what serves them, what it costs, and that it changes nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, FLEET, IMAGE_SIZE, TinyFleet, World
from numpy.typing import NDArray
from supervision import Supervisor, _Process

from cloud_server.config import ServingConfig
from cloud_server.errors import Stopped
from cloud_server.run.combinations import check_combination
from cloud_server.run.ended import EndedRun
from cloud_server.run.service import serve
from cloud_server.training.inference import Inference
from datasets.frame import resize_image
from datasets.labels import CAMVID
from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
from edge_client.host import Host
from edge_client.through_cloud import ThroughCloud
from protocol.codec.labels import encode_label
from protocol.codec.tensor import decode
from protocol.errors import SettingError
from protocol.messages import ClassMap, Reject, Seen, Serving, WantServing
from protocol.plans.coding import Coding
from protocol.session import topics
from protocol.session.link import CloudLink, VehicleLink
from protocol.session.memory import MemoryBus
from protocol.session.transport import Will

WAIT_S = 60.0


def picture(number: int) -> NDArray[np.uint8]:
    """BGR, larger than what the encoder sees."""
    return np.random.default_rng(number).integers(0, 256, (60, 80, 3)).astype(np.uint8)


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"no {what} in {WAIT_S:g} s"
        time.sleep(0.01)


class Drive(Supervisor):
    """A fleet whose first vehicle drives: it sees a picture every few milliseconds, in the run and after."""

    def __init__(self, fleet: TinyFleet) -> None:
        super().__init__(fleet)
        self.through_cloud = ThroughCloud(fleet.folder / "serving")
        self.seen = picture(0)

    def run_vehicle(self, car: str) -> None:
        """See `Supervisor.run_vehicle`."""
        process = self._hosts[car] = _Process(self.bus)
        host = self.fleet.host(car)
        drives = self.through_cloud if car == CARS[0] else None
        Host(host, process.connect, process.stop, through_cloud=drives).run()

    def run(self) -> None:
        """The run, and some more class maps after it."""
        is_over = threading.Event()

        def camera() -> None:
            while not is_over.wait(0.003):
                self.through_cloud.offer(self.seen)

        def driver() -> None:
            wait_for((self.fleet.run_folder / "result.json").exists, "result")
            before = self.through_cloud.served
            wait_for(lambda: self.through_cloud.served > before + 3, "class map after the run")
            self._cloud.stop.set()

        threads = [threading.Thread(target=act) for act in (camera, driver)]
        with self.through_cloud:
            for thread in threads:
                thread.start()
            try:
                super().run()
            finally:
                is_over.set()
                for thread in threads:
                    thread.join()

    def _keep_cloud(self) -> None:
        with pytest.raises(Stopped):
            serve(
                self.fleet.config,
                self._cloud.connect,
                run_folder=self.fleet.run_folder,
                resume=False,
                stop=self._cloud.stop,
            )


def expected_map(fleet: TinyFleet, seen_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the ended run's network makes of a picture, by the functions that evaluate it; label ids."""
    car = CARS[0]
    encoder = Encoder(EncoderBundle.load(fleet.world.bundle), mode="rebuild")
    width, height = IMAGE_SIZE
    rgb_hwC = np.ascontiguousarray(resize_image(seen_HWC, width, height)[:, :, ::-1])
    newest = fleet.states(car).newest()
    assert newest is not None
    features = fleet.config.coding.encode(encoder.forward(newest.theta, rgb_hwC[None]))
    network = EndedRun(fleet.config, fleet.run_folder).network(car)
    inference = Inference(network, loss="cross-entropy", threads=1)
    features_1CHW = decode(features, expected_shape=(1, None, None, None))
    [label_hw] = inference.predict(features_1CHW, (height, width))
    label_HW = cv2.resize(label_hw, seen_HWC.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return CAMVID.to_ids(np.asarray(label_HW, np.uint8))


@pytest.mark.parametrize("algorithm", ["blackfed-v2", "individual"])
def test_vehicle_that_drives_is_served_by_its_network_and_the_run_keeps_its_bits(
    tiny_world: World, tmp_path: Path, algorithm: str
) -> None:
    # Rounds enough for some to be served before the run has ended.
    settings: dict[str, Any] = {"algorithm": algorithm, "rounds": 6}
    plain = TinyFleet(tiny_world, tmp_path / "plain", **settings)
    Supervisor(plain).run()
    driven = TinyFleet(tiny_world, tmp_path / "driven", **settings, serving=ServingConfig(share=1.0))
    drive = Drive(driven)
    drive.run()
    assert driven.fingerprint() == plain.fingerprint()
    assert driven.scores() == plain.scores()
    # in the run, after it, and by the network of then
    told = json.loads((tmp_path / "driven" / "serving" / "serving.json").read_text())
    assert told["stage"] == driven.events("committed")[-1]["stage"] + 1
    assert told["served"] > 4 and 0 <= told["uncertainty"] <= 1 and told["latency_ms"]["p50"] > 0
    ids_HW = cv2.imread(str(tmp_path / "driven" / "serving" / "classes.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(ids_HW, expected_map(driven, drive.seen))
    counted = driven.result()["vehicles"]
    assert counted[CARS[0]]["served_frames"] > 0 and counted[CARS[1]]["served_frames"] == 0
    assert counted[CARS[0]]["served_downlink_bytes"] > 0
    ours = plain.result()["vehicles"]
    for car in CARS:
        sent = [result[car]["uplink_bytes_by_type"]["upload"] for result in (counted, ours)]
        assert sent[0] == sent[1], "what a run costs does not depend on who drives"
    assert driven.events("served")[-1]["frames"] >= counted[CARS[0]]["served_frames"]


def test_cloud_whose_vehicles_have_the_whole_network_serves_none(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, algorithm="fedavg", serving=ServingConfig())
    with pytest.raises(SettingError, match="fedavg have the whole network, the cloud serves none: leave out"):
        check_combination(fleet.config)
    with pytest.raises(SettingError, match=r"serving\.share must be above 0 and at most 1, got 0"):
        ServingConfig(share=0)


# One frame at a time -----------------------------------------------------------------------------------


class Car:
    """A vehicle's end, and a cloud's that answers as it is told."""

    def __init__(self, world: World, folder: Path, answer_s: float) -> None:
        bus = MemoryBus()
        self.cloud = CloudLink(bus.client("cloud"), FLEET)
        self.cloud.open(1.0)
        self.arrived = self.cloud.see()
        will = Will("t", b"")
        self.link = VehicleLink(bus.client("car", will=will), FLEET, CARS[0])
        self.link.open(1.0)
        bundle = EncoderBundle.load(world.bundle)
        self.folder = folder
        self.through_cloud = ThroughCloud(folder, answer_s=answer_s)
        self.through_cloud.attach(self.link, "ab" * 8, Encoder(bundle, mode="rebuild"), CAMVID)
        self.through_cloud.follow(bundle.theta0)

    def next(self) -> Any:
        received = self.arrived.receive(WAIT_S)
        assert received is not None
        return received.message  # type: ignore[union-attr]

    def say(self, message: Any) -> None:
        self.cloud.answer_seen(CARS[0], message)

    def serves(self) -> None:
        request = self.next()
        assert isinstance(request, WantServing)
        self.say(Serving(vehicle=CARS[0], session=request.session, coding=Coding(bits=4)))

    def map_of(self, seen: Seen, train_id: int, **changes: Any) -> ClassMap:
        width, height = IMAGE_SIZE
        answer = ClassMap(
            vehicle=CARS[0],
            session=seen.session,
            number=seen.number,
            height=height,
            width=width,
            classes=encode_label(np.full((height, width), train_id, np.uint8)),
            uncertainty=0.25,
            stage=3,
        )
        return msgspec.structs.replace(answer, **changes)

    @property
    def classes(self) -> set[int]:
        ids_HW = cv2.imread(str(self.folder / "classes.png"), cv2.IMREAD_UNCHANGED)
        return set(np.unique(ids_HW).tolist())


def test_one_frame_is_under_way_and_late_or_foreign_answers_are_dropped(
    tiny_world: World, tmp_path: Path
) -> None:
    car = Car(tiny_world, tmp_path / "serving", answer_s=0.5)
    drive = car.through_cloud
    with drive:
        car.serves()
        for number in range(5):
            drive.offer(picture(number))
        first = car.next()
        assert isinstance(first, Seen) and first.features.bits == 4
        drive.offer(picture(5))
        assert car.arrived.receive(0.1) is None, "the first one is under way"
        car.serves()  # no answer has come: it asks again, for this may be another cloud
        second = car.next()
        assert second.number > first.number
        car.say(car.map_of(first, 1))
        car.say(car.map_of(second, 2, session="cd" * 8))
        car.say(car.map_of(second, 5))
        wait_for(lambda: drive.served == 1, "class map")
        assert car.classes == set(CAMVID.to_ids(np.array([[5]], np.uint8)).flatten().tolist())
        assert (drive.late, drive.uncertainty()) == (1, 0.25)
        # What is no class map, or is refused, is said, and the next frame is tried.
        drive.offer(picture(6))
        third = car.next()
        car.say(car.map_of(third, 0, classes=b"rubbish"))
        drive.offer(picture(7))
        fourth = car.next()
        car.say(
            Reject(vehicle=CARS[0], grant=fourth.session, step=fourth.number, reason="not yet", final=False)
        )
        car.serves()
        drive.offer(picture(8))
        car.say(car.map_of(car.next(), 4))
        wait_for(lambda: drive.served == 2, "class map")
    assert topics.other_way(topics.SEEN) is topics.CLASSES
