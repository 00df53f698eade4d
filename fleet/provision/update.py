"""Makes an update of what was exported: a bundle, a local head, or settings; signed by the operator's key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_client.encoder.bundle import EncoderBundle, spec_digest
from edge_client.local.head import FILE_NAMES, SPEC_NAME, HeadFolder
from edge_client.updates.settings import SETTINGS_NAME, read_settings
from fleet.errors import OperatorError
from protocol.atomic import write_bytes_atomic
from protocol.session.topics import check_id, check_vehicle_id
from protocol.update_file import (
    MOST_BYTES,
    Kind,
    Manifest,
    UpdateError,
    encode_manifest,
    pack,
    packed_file,
    read_update,
)
from protocol.update_signature import sign

_BUNDLE_SPEC = "encoder.json"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The command's options."""

    key: Path
    fleet: str
    version: int
    name: str | None = None
    vehicles: Sequence[str] = ()
    weights: Literal["learnt", "own"] = "learnt"


def sign_folder(folder: Path, wishes: Wishes, output: Path, say: Callable[[str], None]) -> None:
    """Write the update of what lies in `folder`.

    Raises:
        Mistake, OSError: one line that says what to do.
    """
    kind, names, bundle_digest = _content(folder)
    contents = {name: (folder / name).read_bytes() for name in names}
    if sum(map(len, contents.values())) > MOST_BYTES:
        raise OperatorError(f"{folder} holds more than {MOST_BYTES} bytes, which is too much for an update")
    if wishes.version < 1:
        raise OperatorError(f"--version must be at least 1, got {wishes.version}")
    manifest = Manifest(
        kind=kind,
        name=check_id(wishes.name or folder.absolute().name.replace(".", "-"), "name of an update"),
        version=wishes.version,
        fleet=check_id(wishes.fleet, "fleet id"),
        vehicles=tuple(map(check_vehicle_id, wishes.vehicles)),
        weights=wishes.weights,
        bundle_digest=bundle_digest,
        files=tuple(packed_file(name, content) for name, content in contents.items()),
    )
    signed = encode_manifest(manifest)
    write_bytes_atomic(output, pack(signed, sign(wishes.key, signed), contents))
    say(f"{output}: {described(manifest)}, {output.stat().st_size} bytes, for {whose(manifest)}")


def described(manifest: Manifest) -> str:
    """`bundle fog, version 3`."""
    return f"{manifest.kind} {manifest.name}, version {manifest.version}"


def whose(manifest: Manifest) -> str:
    """Which vehicles may take it."""
    return f"{', '.join(manifest.vehicles) or 'all vehicles'} of fleet {manifest.fleet}"


def put_into_run(update: Path, run_folder: Path, updates_folder: str, say: Callable[[str], None]) -> None:
    """Let the cloud of a run offer an update.

    Raises:
        UpdateError: it is none, or nobody has signed it.
        OperatorError: there is no such run.
        OSError: it can't be copied.
    """
    found = read_update(update)
    if not found.signature:
        raise UpdateError(f"{update} is not signed; no vehicle would take it: `blackfleet update sign`")
    if not run_folder.is_dir():
        raise OperatorError(
            f"{run_folder} is no run folder; give that of the run whose vehicles are to get it"
        )
    manifest, folder = found.manifest, run_folder / updates_folder
    folder.mkdir(exist_ok=True)
    target = folder / f"{manifest.kind}-{manifest.name}-{manifest.version}.bfu"
    write_bytes_atomic(target, update.read_bytes())
    say(f"{target}: {described(manifest)} is offered to {whose(manifest)} while the run goes on")


def _content(folder: Path) -> tuple[Kind, list[str], str]:
    """Of what kind a folder's content is, its files, and what its bundle is known by."""
    if folder.is_file() and folder.suffix == ".json":
        raise OperatorError(f"give the folder that holds {SETTINGS_NAME}, not the file {folder}")
    found = [name for name in (_BUNDLE_SPEC, SPEC_NAME, SETTINGS_NAME) if (folder / name).is_file()]
    if len(found) != 1:
        raise OperatorError(
            f"{folder} must hold one of {_BUNDLE_SPEC} (a bundle), {SPEC_NAME} (a local head) and "
            f"{SETTINGS_NAME}; it has {', '.join(found) or 'none'}"
        )
    if found[0] == _BUNDLE_SPEC:
        spec = EncoderBundle.load(folder).spec
        return "bundle", [_BUNDLE_SPEC, *(f"{name}.onnx" for name in spec.graphs)], spec_digest(spec)
    if found[0] == SPEC_NAME:
        HeadFolder.load(folder)
        return "head", [SPEC_NAME, *FILE_NAMES], ""
    read_settings(folder)
    return "settings", [SETTINGS_NAME], ""
