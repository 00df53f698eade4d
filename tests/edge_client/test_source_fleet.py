"""A vehicle that records while it learns: killed and started again, it ends with the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from fleet_fixtures import TinyFleet, World
from supervision import Supervisor, _Process

from datasets.label_files import label_beside, signed
from datasets.labels import CAMVID
from edge_client.host import Host, HostConfig
from edge_client.source.recording import recorded_frames
from edge_client.source.settings import SourceConfig

CAR = "car-1"
FRAMES = 7
TEACHER = "0123456789abcdef"


class RecordingFleet(TinyFleet):
    """One vehicle, whose frames come into a folder with the labels of a teacher."""

    def __init__(self, world: World, folder: Path) -> None:
        super().__init__(world, folder, vehicles=(CAR,), algorithm="blackfed-v1")
        self.incoming = folder / "incoming"
        self.incoming.mkdir(parents=True)
        self.come_in(0, FRAMES)

    def come_in(self, first: int, stop: int) -> None:
        """Copies with their times, which frames are called by."""
        for number in range(first, stop):
            name = f"seq0_{number:04d}"
            label = (self.world.data_root / "trainannot" / f"{name}.png").read_bytes()
            label_beside(self.incoming / f"{name}.png").write_bytes(signed(label, {"teacher": TEACHER}))
            shutil.copy2(self.world.data_root / "train" / f"{name}.png", self.incoming)

    def host(self, *cars: str, give_up_s: float = 30.0) -> HostConfig:
        """A vehicle with a source instead of a data set."""
        config = super().host(*cars, give_up_s=give_up_s)
        [vehicle] = config.vehicles
        source = SourceConfig(
            uri=f"file://{self.incoming}", recording=str(self.folder / "recording"), frames=FRAMES
        )
        return msgspec.structs.replace(
            config,
            data_root=None,
            source=source,
            label_space="camvid",
            vehicles=(msgspec.structs.replace(vehicle, frames={}),),
        )


class RecordingSupervisor(Supervisor):
    """Each life of the vehicle begins with more frames in the folder than the one before."""

    lives = 0

    def run_vehicle(self, car: str) -> None:
        """See `Supervisor.run_vehicle`."""
        fleet = self.fleet
        assert isinstance(fleet, RecordingFleet)
        fleet.come_in(FRAMES, FRAMES + self.lives)
        self.lives += 1
        process = self._hosts[car] = _Process(self.bus)
        config = fleet.host(car)
        assert config.source is not None
        with recorded_frames(config.source, config.fleet, CAMVID, process.stop) as recording:
            Host(config, process.connect, process.stop, recording.frames).run()


def test_vehicle_that_records_and_is_killed_ends_with_the_same_bits(
    tiny_world: World, tmp_path: Path
) -> None:
    undisturbed = RecordingFleet(tiny_world, tmp_path / "undisturbed")
    RecordingSupervisor(undisturbed).run()
    killed = RecordingFleet(tiny_world, tmp_path / "killed")
    supervisor = RecordingSupervisor(killed)
    supervisor.run_with_kills({(CAR, "query", 2), (CAR, "upload", 4)}, CAR)
    assert supervisor.lives == 3
    assert killed.fingerprint() == undisturbed.fingerprint()
    assert killed.scores() == undisturbed.scores()
    assert killed.scores()["mean_local_miou"] is not None, "it had labels"
    labels = killed.result()["vehicles"][CAR]["labels"]
    assert {maker for split in ("train", "val", "test") for maker in labels[split]} == {f"teacher {TEACHER}"}
    recorded = list((tmp_path / "killed" / "recording" / "frames").glob("*_labelIds.png"))
    assert len(recorded) > FRAMES, "it went on recording"
