"""The files of a run's seals, in one folder: `cloud.seal` with the run's key, `NAME.seal` with a vehicle's.

Each is a line of words: `blackfleet-seal`, the fleet, whose it is, and keys in hexadecimal. All are secrets.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

from protocol.atomic import write_bytes_atomic
from protocol.errors import Mistake
from protocol.session.seal import KEY_BYTES, CloudSeal, VehicleSeal, vehicle_key
from protocol.session.topics import CLOUD_ID

FOLDER_NAME = "seals"
"""In a run's folder."""
SUFFIX = ".seal"
_WORD = "blackfleet-seal"


class SealFault(Mistake):
    """A file that holds no seal's key, or that of another vehicle or fleet."""


def make_seals(folder: Path, fleet: str, vehicles: Iterable[str]) -> None:
    """Keys of a cloud and its vehicles, in `folder`; of a key that is there already those that are missing.

    Raises:
        SealFault: what is there is no such key.
        OSError: they can't be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(folder, CLOUD_ID)
    if not path.exists():
        _write(path, fleet, CLOUD_ID, secrets.token_bytes(KEY_BYTES))
    [run_key] = _read(path, fleet, CLOUD_ID, keys=1)
    of_status = vehicle_key(run_key, fleet, CLOUD_ID)
    for vehicle in vehicles:
        _write(_path(folder, vehicle), fleet, vehicle, vehicle_key(run_key, fleet, vehicle), of_status)


def has_seal(folder: Path, name: str) -> bool:
    """Whether a folder has the keys of the cloud, or of a vehicle."""
    return _path(folder, name).exists()


def check_seal(folder: Path, name: str) -> None:
    """See that a folder has the keys of the cloud, or of a vehicle.

    Raises:
        SealFault: it has none.
    """
    if not has_seal(folder, name):
        raise SealFault(
            f"{folder} has no {name}{SUFFIX}; `blackfleet provision` makes them, `launch` in a run's folder"
        )


def cloud_seal(folder: Path, fleet: str, session: str) -> CloudSeal:
    """The cloud's seal, by the key of a folder.

    Raises:
        SealFault: there is none, or it is another fleet's.
    """
    [run_key] = _read(_path(folder, CLOUD_ID), fleet, CLOUD_ID, keys=1)
    return CloudSeal(run_key, fleet, session)


def vehicle_seal(folder: Path, fleet: str, vehicle: str, session: str) -> VehicleSeal:
    """A vehicle's seal, by the keys of a folder.

    Raises:
        SealFault: there are none, or they are another fleet's or vehicle's.
    """
    own, of_status = _read(_path(folder, vehicle), fleet, vehicle, keys=2)
    return VehicleSeal(own, of_status, session)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}{SUFFIX}"


def _write(path: Path, fleet: str, whose: str, *keys: bytes) -> None:
    words = " ".join((_WORD, fleet, whose, *(key.hex() for key in keys)))
    data = f"{words}\n".encode()
    if not path.exists() or path.read_bytes() != data:
        write_bytes_atomic(path, data)


def _read(path: Path, fleet: str, whose: str, *, keys: int) -> list[bytes]:
    try:
        words = path.read_text(encoding="ascii").split()
    except OSError as error:
        raise SealFault(
            f"can't read the seal {path}: {error.strerror}; `blackfleet provision` and `launch` make them"
        ) from error
    except UnicodeDecodeError as error:
        raise SealFault(f"{path} is no seal; `blackfleet provision` makes them") from error
    if words[1:3] != [fleet, whose] and words[:1] == [_WORD]:
        raise SealFault(f"{path} is the seal of {' '.join(words[1:3])}, expected {fleet} {whose}")
    try:
        found = [bytes.fromhex(word) for word in words[3:]]
    except ValueError:
        found = []
    if words[:1] != [_WORD] or [len(key) for key in found] != [KEY_BYTES] * keys:
        raise SealFault(f"{path} is no seal; `blackfleet provision` makes them")
    return found
