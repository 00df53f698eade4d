"""`blackfleet audit`: attacks on what crossed in a run that has ended, each kept when it is done."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.status import Status

from cloud_server.run.results import RESULT_NAME
from fleet.audit.material import Material
from fleet.audit.reconstruction import Effort, Outcome
from fleet.audit.table import Attack, attacks_on
from fleet.cores import usable_cores
from fleet.errors import OperatorError
from fleet.model.export import choose_vehicle, read_ended
from fleet.report.audited import (
    AUDIT_NAME,
    FOLDER_NAME,
    Audit,
    Finding,
    Picture,
    audit_table,
)
from fleet.report.page import write_report
from fleet.run.folder import readable_by_owner_alone
from fleet.show.encoded import encoded
from fleet.show.screen import Column, FittedTable
from protocol.atomic import write_bytes_atomic
from protocol.errors import SettingError
from protocol.noise import derive_seed

_PICTURES = 3
_VERSION = "1"
"""Of what attacks compute: what was kept by another one is done again."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an audit is to do."""

    vehicle: str | None = None
    """Whose frames are attacked; None: those of the best one on its own test frames."""
    attacks: tuple[str, ...] = ()
    """Names of some; empty: all."""
    frames: int = 12
    shadow_frames: int = 120
    steps: int = 300
    minutes: float | None = None
    threads: int | None = None
    """That compute; None = as many as there are cores to use."""

    def __post_init__(self) -> None:
        for name, value in (("frames", self.frames), ("shadow-frames", self.shadow_frames)):
            if value < 2:
                raise SettingError(f"--{name} must be at least 2, got {value}")
        if self.steps < 2:
            raise SettingError(f"--steps must be at least 2, got {self.steps}")
        if self.minutes is not None and not self.minutes > 0:
            raise SettingError(f"--minutes must be more than 0, got {self.minutes:g}")


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """An attack's own file."""

    identity: str
    finding: Finding
    recovered: tuple[str, ...] = ()
    """Pictures of the first frames, as files of the folder."""


def audit(run_folder: Path, settings: Settings, console: Console) -> Audit:
    """Do the attacks that are not done yet, and write `audit.json` and the report.

    Raises:
        OperatorError: the folder holds no run that has ended, its fleet has one vehicle, or it gives nobody
            the means for an attack that is named.
        Mistake, OSError: a part of the run, or a frame, is missing or damaged; a file can't be written.
    """
    deadline = None if settings.minutes is None else time.monotonic() + 60 * settings.minutes
    scenario, result = read_ended(run_folder)
    vehicle = choose_vehicle(result, settings.vehicle)
    material = Material(
        scenario, run_folder, vehicle, frames=settings.frames, shadow_frames=settings.shadow_frames
    )
    attacks = _chosen(attacks_on(material), settings.attacks, scenario.algorithm)
    folder = run_folder / FOLDER_NAME
    identity = _identity(run_folder, vehicle, settings)
    with readable_by_owner_alone(), _threads(settings.threads or usable_cores()):
        folder.mkdir(exist_ok=True)
        frames = _write_pictures(folder, "frame", material.target.image_BHWC)
        kept: dict[str, _Kept] = {}
        left_out: list[str] = []
        with console.status("attacking") as status:
            for number, attack in enumerate(attacks, start=1):
                before = _read(folder, attack.name, identity)
                if before is None and deadline is not None and time.monotonic() > deadline:
                    left_out.append(attack.name)
                    continue
                told = f"{number}/{len(attacks)} {attack.name}"
                kept[attack.name] = before or _done(
                    attack, material, settings, folder, identity, status, told
                )
                if before is None and not console.is_terminal:
                    console.print(
                        f"{told}: {kept[attack.name].finding.wall_s:.0f} s", highlight=False, markup=False
                    )
        audited = Audit(
            algorithm=scenario.algorithm,
            vehicle=vehicle,
            shadow=f"{len(material.shadow.keys)} frames of the other vehicles",
            image_size=f"{material.target.image_BHWC.shape[2]}x{material.target.image_BHWC.shape[1]}",
            findings=tuple(each.finding for each in kept.values()),
            pictures=_pictures(material.target.keys, frames, kept),
            left_out=tuple(left_out),
        )
        write_bytes_atomic(
            folder / AUDIT_NAME, msgspec.json.format(msgspec.json.encode(audited), indent=2) + b"\n"
        )
        report = write_report(run_folder)
    _say(audited, console)
    console.print(f"{folder / AUDIT_NAME}, {report}", soft_wrap=True, highlight=False, markup=False)
    return audited


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch computes with so many in the body."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(attacks: Sequence[Attack], names: Collection[str], algorithm: str) -> list[Attack]:
    known = [attack.name for attack in attacks]
    for name in names:
        if name not in known:
            raise OperatorError(
                f"a run of {algorithm} gives nobody the means for the attack {name!r}; it has: "
                f"{', '.join(known)}"
            )
    return [attack for attack in attacks if not names or attack.name in names]


def _identity(run_folder: Path, vehicle: str, settings: Settings) -> str:
    digest = hashlib.blake2b((run_folder / RESULT_NAME).read_bytes(), digest_size=16)
    for part in (_VERSION, vehicle, settings.frames, settings.shadow_frames, settings.steps):
        digest.update(f"\0{part}".encode())
    return digest.hexdigest()


def _read(folder: Path, attack: str, identity: str) -> _Kept | None:
    """What was kept of an attack; None where it is to be done (again)."""
    try:
        kept = msgspec.json.decode((folder / f"{attack}.json").read_bytes(), type=_Kept)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    there = all((folder / name).is_file() for name in kept.recovered)
    return kept if kept.identity == identity and there else None


def _done(
    attack: Attack,
    material: Material,
    settings: Settings,
    folder: Path,
    identity: str,
    status: Status,
    told: str,
) -> _Kept:
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        left_s = round((time.monotonic() - began) / max(1, done) * (total - done))
        status.update(f"{told}: step {done}/{total}, about {left_s // 60}:{left_s % 60:02d} left")

    seed = derive_seed(material.scenario.seed, "audit", attack.name)
    outcome: Outcome = attack.run(material, Effort(steps=settings.steps, seed=seed, progress=progress))
    kept = _Kept(
        identity=identity,
        finding=Finding(
            attack=attack.name,
            observer=attack.observer,
            sees=attack.sees,
            knows=attack.knows,
            bits_a_frame=outcome.bits_a_frame,
            scores=outcome.scores,
            nothing=outcome.nothing,
            frames=outcome.frames,
            wall_s=time.monotonic() - began,
        ),
        recovered=()
        if outcome.recovered_BHWC is None
        else _write_pictures(folder, attack.name, outcome.recovered_BHWC),
    )
    write_bytes_atomic(folder / f"{attack.name}.json", msgspec.json.encode(kept))
    return kept


def _write_pictures(
    folder: Path, name: str, image_BHWC: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> tuple[str, ...]:
    names = tuple(f"{name}-{number}.png" for number in range(1, min(_PICTURES, len(image_BHWC)) + 1))
    for file, image_HWC in zip(names, image_BHWC, strict=False):
        write_bytes_atomic(folder / file, encoded(image_HWC, "png"), sync=False)
    return names


def _pictures(keys: Sequence[str], frames: Sequence[str], kept: dict[str, _Kept]) -> tuple[Picture, ...]:
    return tuple(
        Picture(
            key=key,
            frame=frame,
            recovered={
                attack: each.recovered[place] for attack, each in kept.items() if place < len(each.recovered)
            },
        )
        for place, (key, frame) in enumerate(zip(keys, frames, strict=False))
    )


def _say(audited: Audit, console: Console) -> None:
    content = audit_table(audited)
    table = FittedTable(
        [Column(column, left=number < 4) for number, column in enumerate(content.columns)],
        title=f"{audited.algorithm}: {audited.vehicle} at {audited.image_size}",
        box=box.SIMPLE_HEAD,
    )
    table.caption = content.caption
    for row in content.rows:
        table.add_row(*row)
    console.print(table)
    if audited.left_out:
        console.print(
            f"no time for: {', '.join(audited.left_out)}; the same command goes on with them",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
