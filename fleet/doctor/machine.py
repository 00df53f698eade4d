"""The machine itself: cores, memory, disk, cameras."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fleet.cores import usable_cores
from fleet.doctor.finding import Finding
from protocol.metrics import read_memory

_GB = 1e9
_SCARCE_MEMORY_BYTES = 2 * _GB
_SCARCE_DISK_BYTES = 5 * _GB
_LEAST_DISK_BYTES = 0.5 * _GB


def check_cores_and_memory() -> Finding:
    """What processes have to share."""
    cores = usable_cores()
    memory = read_memory()
    free = None if memory is None else memory[1]
    found = f"{cores} cores" + ("" if free is None else f", {free / _GB:.1f} GB of memory free")
    if free is None or free >= _SCARCE_MEMORY_BYTES:
        return Finding(about="machine", state="ok", found=found)
    return Finding(
        about="machine",
        state="note",
        found=found,
        advice="a cloud takes about 1 GB and each vehicle process 0.2 GB: launch few, or end other programs",
    )


def check_disk(folder: Path) -> Finding:
    """Whether runs can be written to a folder, or to the nearest one above it that is there."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    about = "disk"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
    except OSError as error:
        return Finding(
            about=about,
            state="wrong",
            found=f"{there} can't be written to: {error.strerror}",
            advice="choose another folder with --run-dir",
        )
    free = shutil.disk_usage(there).free
    found = f"{free / _GB:.1f} GB free in {there}"
    if free < _SCARCE_DISK_BYTES:
        return Finding(
            about=about,
            state="wrong" if free < _LEAST_DISK_BYTES else "note",
            found=found,
            advice="runs keep predictions and features: remove old ones, or choose another disk",
        )
    return Finding(about=about, state="ok", found=found)


def check_cameras(
    devices: Path = Path("/dev"), names: Path = Path("/sys/class/video4linux")
) -> Iterator[Finding]:
    """Video devices, and whether this user may open them."""
    found = sorted(devices.glob("video*"), key=lambda path: (len(path.name), path.name))
    if not found:
        yield Finding(about="camera", state="ok", found="none; vehicles read frames from disk")
    for device in found:
        label = names / device.name / "name"
        title = f" ({label.read_text(errors='replace').strip()})" if label.is_file() else ""
        if os.access(device, os.R_OK | os.W_OK):
            yield Finding(about="camera", state="ok", found=f"{device}{title}")
        else:
            yield Finding(
                about="camera",
                state="note",
                found=f"{device}{title} can't be opened by this user",
                advice="sudo usermod -aG video $USER, then log in again",
            )
