"""A vehicle's camera: what its URI names, what is kept of it, what a run works on, and when it goes away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.labels import CAMVID
from edge_client.errors import VehicleError
from edge_client.source import live
from edge_client.source.capture import CaptureError, OpenCVCapture
from edge_client.source.choice import Choice
from edge_client.source.folder import GrowingFolder
from edge_client.source.live import LiveFrames
from edge_client.source.pipelines import ways_to_open
from edge_client.source.recording import recorded_frames
from edge_client.source.ring import Ring
from edge_client.source.settings import SourceConfig
from edge_client.source.snapshot import SnapshotFrames, read_manifest, take_snapshot, write_manifest
from edge_client.source.uri import Kind, SourceUri
from protocol.errors import Mistake, SettingError

FRAMES = 24
WAIT_S = 20.0


def picture(number: int) -> NDArray[np.uint8]:
    """BGR 64x48: a bright square that moves."""
    image_HWC = np.full((48, 64, 3), 40, np.uint8)
    image_HWC[10:30, 2 * number % 40 : 2 * number % 40 + 20] = 220
    return image_HWC


def jpeg(number: int) -> bytes:
    return cv2.imencode(".jpg", picture(number))[1].tobytes()


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded drive of 24 frames at 12 a second."""
    path = tmp_path_factory.mktemp("drive") / "drive.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.0, (64, 48))
    for number in range(FRAMES):
        writer.write(picture(number))
    writer.release()
    return path


def config(uri: str | Path, folder: Path, **settings: object) -> SourceConfig:
    return SourceConfig(uri=str(uri), recording=str(folder), **settings)  # type: ignore[arg-type]


# Where frames come from -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "where", "shown"),
    [
        ("csi://0", Kind.CSI, "0", "csi://0"),
        ("v4l2:///dev/video0", Kind.V4L2, "/dev/video0", "v4l2:///dev/video0"),
        (
            "rtsp://u:p%40@[::1]:8554/a?b=1",
            Kind.RTSP,
            "rtsp://u:p%40@[::1]:8554/a?b=1",
            "rtsp://[::1]:8554/a?b=1",
        ),
        ("file://my%20drive.mp4", Kind.FILE, "my drive.mp4", "file://my%20drive.mp4"),
        ("file:///data/frames", Kind.FILE, "/data/frames", "file:///data/frames"),
        ("50%25.mp4", Kind.FILE, "50%25.mp4", "50%25.mp4"),
    ],
)
def test_uri_names_a_source_and_shows_no_password(text: str, kind: Kind, where: str, shown: str) -> None:
    assert SourceUri.parse(text) == SourceUri(kind, where, shown)


@pytest.mark.parametrize(
    "text", ["", "csi://left", "v4l2://video0", "rtsp://", "rtsp://u:secret@h:port/", "http://u:secret@h/"]
)
def test_uri_of_no_source_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(SettingError, match="expected csi://0, v4l2:///dev/video0, rtsp://HOST") as raised:
        SourceUri.parse(text)
    assert "secret" not in str(raised.value)


def test_jetsons_use_gstreamer_and_others_ffmpeg_and_v4l2(tmp_path: Path) -> None:
    csi = config("csi://1", tmp_path, size=(1280, 720), rate_hz=29.97, flip="rotate-90")
    [way] = ways_to_open(csi, gstreamer=True)
    assert way.what.startswith(
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=720,height=1280,framerate=29970/1000 "
        "! nvvidconv flip-method=3 ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR "
    )
    assert way.turns
    with pytest.raises(SettingError, match="csi://1 needs an OpenCV with GStreamer"):
        ways_to_open(csi, gstreamer=False)
    stream = config("rtsp://h/a", tmp_path)
    assert [way.name for way in ways_to_open(stream, gstreamer=False)] == ["FFmpeg"]
    on_jetson, other = ways_to_open(stream, gstreamer=True, jetson=True)
    assert ("nvvidconv" in on_jetson.what, other.name) == (True, "FFmpeg")
    [device] = ways_to_open(config("v4l2:///dev/video0", tmp_path, size=(640, 480)), gstreamer=True)
    assert (device.api, list(device.parameters)) == (
        cv2.CAP_V4L2,
        [cv2.CAP_PROP_FRAME_WIDTH, 640, cv2.CAP_PROP_FRAME_HEIGHT, 480],
    )


def test_frames_of_a_drive_are_turned_and_sized(drive: Path, tmp_path: Path) -> None:
    plain = OpenCVCapture(config(drive, tmp_path)).read()
    assert plain is not None and plain.shape == (48, 64, 3)
    for flip, turned_HWC in (
        ("rotate-90", cv2.rotate(plain, cv2.ROTATE_90_CLOCKWISE)),
        ("horizontal", cv2.flip(plain, 1)),
    ):
        given = OpenCVCapture(config(drive, tmp_path, flip=flip)).read()
        assert given is not None
        np.testing.assert_array_equal(given, turned_HWC)
    small = OpenCVCapture(config(drive, tmp_path, size=(32, 24))).read()
    assert small is not None and small.shape == (24, 32, 3)


class Stream:
    """What stands for a camera's driver: gives `frames` of a drive, then ends, or hangs for a while."""

    def __init__(self, drive: Path, frames: int, hangs: threading.Event | None = None) -> None:
        self._drive = OpenCVCapture(config(drive, drive.parent))
        self._left = frames
        self._hangs = hangs

    def read(self) -> NDArray[np.uint8] | None:
        if self._left == 0:
            if self._hangs is not None:
                self._hangs.wait(WAIT_S)
            return None
        self._left -= 1
        time.sleep(0.01)
        return self._drive.read()

    def close(self) -> None:
        self._drive.close()


def test_camera_that_ends_or_hangs_is_opened_again_and_its_newest_frame_wins(
    drive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FIRST_PAUSE_S", 0.01)
    stop, hangs = threading.Event(), threading.Event()
    openings = iter(["ends", "refuses", "hangs", "works"])
    states: list[str] = []

    def open_camera() -> Stream:
        states.append(next(openings))
        if states[-1] == "refuses":
            raise CaptureError("it can't be opened")
        if states[-1] == "hangs":
            threading.Timer(0.5, hangs.set).start()
            return Stream(drive, 8, hangs)
        return Stream(drive, 20 if states[-1] == "works" else 8)

    frames = LiveFrames(open_camera, shown="cam", timeout_s=0.15, stop=stop)
    for taken, _ in enumerate(frames):
        if taken == 1:
            time.sleep(0.05)  # looked at for longer than a frame lasts: those in between are dropped
        if len(states) == 4:
            stop.set()
    assert states == ["ends", "refuses", "hangs", "works"]
    assert (frames.failures, frames.reconnects) == (3, 2)
    assert frames.dropped >= 2 and frames.rate.hz > 0


# What is kept -----------------------------------------------------------------------------------------


def test_frames_are_kept_that_are_late_enough_and_different_enough() -> None:
    choice = Choice(every_s=1.0, changed=0.02)
    noise = np.random.default_rng(0).integers(0, 6, (48, 64, 3)).astype(np.uint8)
    seen = [
        (picture(0), 0.0, True),
        (picture(3), 0.5, False),  # too soon
        (picture(3), 1.0, True),
        (picture(3), 5.0, False),  # the car stands
        (picture(9), 5.1, True),
        (picture(0), 0.1, True),  # a drive that began anew
    ]
    assert [choice.is_worth(image_HWC + noise, at_s) for image_HWC, at_s, _ in seen] == [
        is_kept for *_, is_kept in seen
    ]


def test_ring_keeps_to_its_quota_and_keeps_what_is_pinned(tmp_path: Path) -> None:
    size = max(len(jpeg(number)) for number in range(8))
    ring = Ring(tmp_path / "frames", 4 * size)
    (tmp_path / "frames" / ".drive.tmp").write_bytes(b"half")
    keys = [ring.add(jpeg(number), ".jpg", 1000.0 + number) for number in range(3)]
    assert keys[0] is not None and keys[0].startswith("drive-0001_000001_19700101T001640.000Z_")
    assert ring.add(jpeg(1), ".jpg", 5.0) == keys[1], "the same content is kept once"
    with pytest.raises(VehicleError, match="another process records into"):
        Ring(tmp_path / "frames", 4 * size)
    ring.add_label(keys[1] or "", b"label")
    ring.pin(key for key in keys[:1] if key)
    for number in range(3, 8):
        assert ring.add(jpeg(number), ".jpg", 0.0) is not None
    assert ring.size_bytes <= 4 * size
    assert ring.frames[0].key == keys[0]
    left = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert left == sorted([".lock", ".drive.tmp", *(frame.path.name for frame in ring.frames)])
    assert (tmp_path / "frames").stat().st_mode & 0o077 == 0
    ring.pin(frame.key for frame in ring.frames)
    assert ring.add(b"x" * size, ".jpg", 0.0) is None, "all that the quota allows is a run's"
    ring.close()
    again = Ring(tmp_path / "frames", 4 * size)
    assert not (tmp_path / "frames" / ".drive.tmp").exists()
    assert again.add(b"y" * 10, ".jpg", 0.0) is not None
    assert again.frames[-1].drive == 2
    again.close()


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    opened = Ring(tmp_path / "frames", 10**6)
    for number in range(8):
        opened.add(jpeg(number), ".jpg", float(number))
    yield opened
    opened.close()


def test_snapshot_stays_whatever_is_recorded_and_says_if_it_was_touched(ring: Ring, tmp_path: Path) -> None:
    manifest = take_snapshot(ring, most=5, fleet="demo", source="csi://0")
    assert [frame.file for frame in manifest.frames] == [frame.path.name for frame in ring.frames[-5:]]
    write_manifest(tmp_path / "snapshot.json", manifest)
    before = SnapshotFrames(ring.folder, CAMVID, manifest)
    ring.add(jpeg(9), ".jpg", 9.0)
    read = read_manifest(tmp_path / "snapshot.json")
    assert read == manifest
    after = SnapshotFrames(ring.folder, CAMVID, manifest)
    assert [ref.key for ref in after.refs] == [ref.key for ref in before.refs]
    assert (after.load(after.refs[0]).label_HW == 255).all()
    after.refs[2].image_path.write_bytes(jpeg(9))
    with pytest.raises(VehicleError, match="is gone or has changed; put it back"):
        SnapshotFrames(ring.folder, CAMVID, manifest)
    (tmp_path / "snapshot.json").write_text("{")
    with pytest.raises(VehicleError, match="damaged manifest"):
        read_manifest(tmp_path / "snapshot.json")
    assert (
        take_snapshot(ring, most=9, fleet="demo", source="csi://0").frames[-1].file
        == ring.frames[-1].path.name
    )
    assert len(ring.frames) == 8, "the frame that is not what its name says is left out"


def test_snapshot_prefers_frames_with_labels(ring: Ring) -> None:
    label = cv2.imencode(".png", np.zeros((48, 64), np.uint8))[1].tobytes()
    labelled = [frame.key for frame in ring.frames[1:6:2]]
    for key in labelled:
        ring.add_label(key, label)
    manifest = take_snapshot(ring, most=5, fleet="demo", source="csi://0")
    frames = SnapshotFrames(ring.folder, CAMVID, manifest)
    assert [ref.key for ref in frames.refs] == labelled
    assert frames.labelled == 3
    assert (frames.load(frames.refs[0]).label_HW == 0).all()


def test_folder_that_goes_away_is_missed_once_and_taken_up_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, stop = tmp_path / "in", threading.Event()
    folder.mkdir()
    (folder / "frame1.jpg").write_bytes(jpeg(1))
    ring = Ring(tmp_path / "frames", 10**6)
    growing = GrowingFolder(folder, ring, CAMVID, tmp_path / "taken.json")
    growing.scan(stop)
    folder.rename(tmp_path / "unplugged")
    for _ in range(3):
        growing.scan(stop)
    (tmp_path / "unplugged").rename(folder)
    growing.scan(stop)
    said = [record.getMessage().removeprefix(f"{folder} ") for record in caplog.records]
    assert said == ["is gone; nothing is recorded until it is back", "is there again"]
    assert growing.taken == 1
    ring.close()


def test_growing_folder_gives_whole_pictures_once_with_labels_that_come_later(tmp_path: Path) -> None:
    folder, stop = tmp_path / "in", threading.Event()
    (folder / "b").mkdir(parents=True)
    ring = Ring(tmp_path / "frames", 10**6)

    def watch() -> GrowingFolder:
        return GrowingFolder(folder, ring, CAMVID, tmp_path / "taken.json")

    growing = watch()
    (folder / "frame10.jpg").write_bytes(jpeg(1))
    (folder / "frame9.jpg").write_bytes(jpeg(2)[:200])
    (folder / "b" / "x.png").write_bytes(cv2.imencode(".png", picture(3))[1].tobytes())
    growing.scan(stop)
    assert (growing.taken, growing.faulty) == (2, 0)
    (folder / "frame9.jpg").write_bytes(jpeg(2))
    label_path = folder / "frame9_labelIds.png"
    label_path.write_bytes(cv2.imencode(".png", np.full((48, 64), 99, np.uint8))[1].tobytes())
    growing.scan(stop)
    assert (growing.taken, sum(frame.has_label for frame in ring.frames)) == (3, 0), "99 is no class"
    label_path.write_bytes(cv2.imencode(".png", np.full((48, 64), 3, np.uint8))[1].tobytes())
    growing.scan(stop)
    assert [frame.has_label for frame in ring.frames] == [False, False, True]
    for frame in ring.frames:
        ring.forget(frame.key)
    restarted = watch()
    (folder / "bad.jpg").write_bytes(b"no picture")
    for _ in range(10):
        restarted.scan(stop)
    assert (restarted.taken, restarted.faulty, ring.frames) == (0, 1, [])
    ring.close()


# What a run works on ----------------------------------------------------------------------------------


def take(source: SourceConfig, fleet: str = "demo") -> list[str]:
    """The frames of a run that ends well."""
    with recorded_frames(source, fleet, CAMVID, threading.Event()) as recording:
        recording.run_is_over()
        return [ref.key for ref in recording.frames.refs]


def test_run_works_on_the_same_frames_until_it_is_over(drive: Path, tmp_path: Path) -> None:
    source = config(f"file://{drive}", tmp_path / "r", every_s=0.2, frames=6)
    with pytest.raises(RuntimeError), recorded_frames(source, "demo", CAMVID, threading.Event()) as recording:
        begun = [ref.key for ref in recording.frames.refs]
        raise RuntimeError("killed")
    assert len(begun) == 6
    ring = Ring(tmp_path / "r" / "frames", 10**6)
    newer = [ring.add(jpeg(number), ".jpg", 0.0) for number in range(30, 40)]
    ring.close()
    assert take(msgspec.structs.replace(source, quota_mb=0.001)) == begun, "the run that goes on"
    assert take(msgspec.structs.replace(source, snapshot="keep")) == begun, "the same once more"
    assert take(source) != begun, "a run that begins has the newest"
    assert take(source, fleet="other") != begun
    # A drive's frames are called alike whenever it is read.
    other = take(config(drive, tmp_path / "s", every_s=0.2, frames=6))
    assert other == begun
    assert None not in newer


def test_drive_that_is_played_gives_frames_at_its_pace_again_and_again(drive: Path, tmp_path: Path) -> None:
    source = config(drive, tmp_path / "r", every_s=0.0, frames=12, loop=True, rate_hz=100.0)
    stop = threading.Event()
    with recorded_frames(source, "demo", CAMVID, stop) as recording:
        begun, first = time.monotonic(), [ref.key for ref in recording.frames.refs]
        while time.monotonic() - begun < 0.5:  # two rounds of the drive, meanwhile
            time.sleep(0.05)
    assert len(first) == 12
    again = Ring(tmp_path / "r" / "frames", 10**6)
    assert 12 < len(again.frames) <= FRAMES, "what comes again is not kept again"
    again.close()


@pytest.mark.parametrize(
    ("content", "settings", "reason"),
    [
        (None, {}, "there is nothing at .*drive.mp4: give a recorded drive"),
        (b"no video", {}, "drive.mp4 is no video that OpenCV can decode"),
        ("drive", {"every_s": 60.0}, "gave 1 frames worth keeping, 3 are needed at least: keep more"),
    ],
)
def test_drive_that_can_not_serve_a_run_is_a_mistake_in_one_line(
    content: bytes | str | None, settings: dict[str, float], reason: str, drive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "drive.mp4"
    if content is not None:
        path.write_bytes(drive.read_bytes() if isinstance(content, str) else content)
    with pytest.raises(Mistake, match=reason):
        take(config(path, tmp_path / "r", **settings))


@pytest.mark.parametrize(
    ("uri", "settings", "reason"),
    [
        ("csi://0", {"loop": True}, "only a recorded drive can begin again"),
        ("rtsp://user:secret@host/a", {"rate_hz": 5.0}, "the rate of rtsp://host/a is its camera's to set"),
        ("", {"every_s": 2.0}, "--keep-every is about cameras and drives"),
        ("", {"loop": True, "serve": "model.onnx"}, "--serve is about cameras and drives"),
    ],
)
def test_setting_that_a_source_can_not_heed_is_refused(
    uri: str, settings: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=reason):
        take(config(uri or tmp_path, tmp_path / "r", **settings))
