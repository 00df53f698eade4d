"""What an audit of a run has left on disk, and the section of the report that shows it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleet.errors import OperatorError
from fleet.report import text
from fleet.report.tables import Table

FOLDER_NAME = "audit"
AUDIT_NAME = "audit.json"
_DIGITS = {"psnr_db": 1, "ssim": 2, "top1": 2, "auc": 2, "agreement": 2, "miou": 2}


class Scores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How well an attack did; what it isn't scored by is None."""

    psnr_db: float | None = None
    """Mean over frames."""
    ssim: float | None = None
    top1: float | None = None
    """Share of frames whose drive was told right."""
    auc: float | None = None
    """Of telling frames that were trained on from others; 0.5 is chance."""
    agreement: float | None = None
    """Of a copy of the cloud's network with it: share of the cells of class maps."""
    miou: float | None = None
    """The same, as mean IoU over classes."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One attack, done."""

    attack: str
    """Its name, and that of its files."""
    observer: str
    """Who could do it."""
    sees: str
    """What of the traffic, or what else, it is made from."""
    knows: str
    """What the attacker has besides."""
    bits_a_frame: float | None
    """Size of what is seen of a frame; None where it isn't of single frames."""
    scores: Scores
    nothing: Scores
    """Of one who sees nothing: the mean frame, or chance; of a copy: who has labels and no answers."""
    frames: int
    """How many were attacked."""
    wall_s: float


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A frame, and what attacks made of it, as files of the folder."""

    key: str
    frame: str
    recovered: dict[str, str]
    """By attack."""


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `audit.json`."""

    algorithm: str
    vehicle: str
    """Whose frames were attacked."""
    shadow: str
    """What attackers trained on."""
    image_size: str
    findings: tuple[Finding, ...]
    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...]
    """Attacks for which there was no time."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The report's section."""

    vehicle: str
    shadow: str
    table: Table
    pictures: list[tuple[str, str, list[tuple[str, str]]]]
    """(key, the frame, (caption, picture) of each attack), pictures as `data:` URIs."""


def read_audit(run_folder: Path) -> Audit | None:
    """What the audit of a run has found; None where there was none.

    Raises:
        OperatorError: the file is damaged.
    """
    path = run_folder / FOLDER_NAME / AUDIT_NAME
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Audit)
    except msgspec.DecodeError as error:
        raise OperatorError(f"damaged {path}: {error}; run `blackfleet audit` again") from error


def shown_audit(run_folder: Path) -> Shown | None:
    """The section of the report; None where there was no audit.

    Raises:
        OperatorError, OSError: a file is damaged or missing.
    """
    audit = read_audit(run_folder)
    if audit is None:
        return None
    folder = run_folder / FOLDER_NAME
    by_name = {finding.attack: finding for finding in audit.findings}
    return Shown(
        vehicle=audit.vehicle,
        shadow=audit.shadow,
        table=audit_table(audit),
        pictures=[
            (
                picture.key,
                _uri(folder / picture.frame),
                [
                    (f"{attack} · {by_name[attack].scores.psnr_db:.1f} dB", _uri(folder / name))
                    for attack, name in picture.recovered.items()
                    if attack in by_name
                ],
            )
            for picture in audit.pictures
        ],
    )


def audit_table(audit: Audit) -> Table:
    """A row for each attack."""
    return Table(
        caption=f"What an observer can learn of the frames of {audit.vehicle}. In brackets: one who sees "
        "nothing, and says the mean of the frames that attackers have, or guesses; of AUC, the same for two "
        f"splits that nobody trained on. Attackers have {audit.shadow}. Top-1: the drive is told right. AUC: "
        "frames that were trained on are told from test frames. Alike, IoU: share of "
        "cells, and mean IoU, of a copy of the cloud's network with its class maps; in brackets a copy by "
        "labels alone. Planted cases: the attack where all there is to be found is there.",
        columns=(
            "attack",
            "observer",
            "sees",
            "knows",
            "bits a frame",
            "PSNR",
            "SSIM",
            "top-1",
            "AUC",
            "alike",
            "IoU",
        ),
        rows=[
            (
                finding.attack,
                finding.observer,
                finding.sees,
                finding.knows,
                text.NONE if finding.bits_a_frame is None else f"{finding.bits_a_frame:,.0f}",
                *(_score(finding, name, digits) for name, digits in _DIGITS.items()),
            )
            for finding in audit.findings
        ],
    )


def _score(finding: Finding, name: str, digits: int) -> str:
    reached, nothing = getattr(finding.scores, name), getattr(finding.nothing, name)
    if reached is None:
        return text.NONE
    unit = " dB" if name == "psnr_db" else ""
    return f"{reached:.{digits}f}{unit}" + ("" if nothing is None else f" ({nothing:.{digits}f})")


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
