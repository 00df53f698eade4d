"""Which attacks an algorithm gives whom the means for: a row each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

from edge_client.naming import KEYS
from fleet.audit.extraction import by_answers, planted_extraction
from fleet.audit.material import UNROUNDED, Material
from fleet.audit.recognition import drive_by_features, drive_by_name, membership
from fleet.audit.reconstruction import (
    Effort,
    Outcome,
    by_decoder,
    by_gradient,
    by_inversion,
    paint_labels,
    planted_features,
    planted_gradient,
)
from protocol.plans.coding import Coding

WIDTHS = (2, 4, 8)
"""Bits of features that are also attacked besides those of the run and float32."""

MOST_ANSWERS = 32
"""About a frame, of those that a student is trained on."""

_BROKER = "broker"
_CLOUD = "cloud"
_NEIGHBOUR = "vehicle at an open broker"
_INSIDER = "who has the car's encoder"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One of them, and who could do it."""

    name: str
    observer: str
    sees: str
    knows: str
    run: Callable[[Material, Effort], Outcome]


def _trained(material: Material) -> nn.Module:
    return material.trained_encoder


def _initial(material: Material) -> nn.Module:
    return material.initial_encoder


def _neighbours(material: Material) -> nn.Module:
    return material.neighbour_encoder


def _unrelated(material: Material) -> nn.Module:
    return material.unrelated_encoder


def attacks_on(material: Material) -> list[Attack]:
    """All that this run gives anyone the means for, cheap ones first."""
    if material.sends_features:
        return [*_on_labels(material), *_on_answers(material), *_on_features(material)]
    if material.row.build is None:
        return list(_on_features_in_the_clear(material))
    return list(_on_updates())


def _planted(name: str, run: Callable[[Material, Effort], Outcome]) -> Attack:
    return Attack(name=name, observer="–", sees="a planted case", knows="all of it", run=run)


def _on_labels(material: Material) -> Iterator[Attack]:
    yield Attack(
        name="labels",
        observer=_BROKER,
        sees="labels",
        knows="mean colours",
        run=paint_labels,
    )
    if material.scenario.privacy.names == KEYS:
        yield Attack(
            name="names", observer=_BROKER, sees="names of frames", knows="names of drives", run=drive_by_name
        )


def _on_answers(material: Material) -> Iterator[Attack]:
    """What a vehicle can do that learns from losses."""
    answers = min(material.answers_a_frame, MOST_ANSWERS)
    if not answers:
        return
    yield _planted("planted-extraction", planted_extraction)
    for name, every_class, seen in (
        ("extraction", False, f"loss maps of each frame: {answers}"),
        ("extraction-every-class", True, "a loss map of each class, by labels that lie"),
    ):
        yield Attack(
            name=name,
            observer="the vehicle itself",
            sees=seen,
            knows="its features, its labels",
            run=partial(by_answers, answers=1 if every_class else answers, every_class=every_class),
        )


def _membership(observer: str, sees: str) -> Attack:
    return Attack(name="membership", observer=observer, sees=sees, knows="the network", run=membership)


def _on_features(material: Material) -> Iterator[Attack]:
    coding = material.coding
    yield _membership(_CLOUD, "features, labels")
    yield Attack(
        name="places",
        observer=_CLOUD,
        sees="features",
        knows="its first encoder",
        run=partial(drive_by_features, knows=_initial, coding=coding),
    )
    yield from _planted_features()
    insider = _BROKER if material.encoders_cross else _INSIDER
    for name, observer, knows, encoder in (
        ("decoder-unknown", _BROKER, "another encoder", _unrelated),
        ("decoder-neighbour", _NEIGHBOUR, "its own encoder", _neighbours),
        ("decoder-initial", _CLOUD, "its first encoder", _initial),
        ("decoder-trained", insider, "its encoder", _trained),
    ):
        run = partial(by_decoder, knows=encoder, coding=coding)
        yield Attack(name=name, observer=observer, sees=_seen(coding), knows=knows, run=run)
    yield Attack(
        name="inversion-trained",
        observer=insider,
        sees=_seen(coding),
        knows="its encoder",
        run=partial(by_inversion, knows=_trained, coding=coding),
    )
    for width in (UNROUNDED, *(Coding(bits=bits) for bits in WIDTHS)):
        if width != coding:
            yield Attack(
                name=f"decoder-trained-{width.bits}bit",
                observer=insider,
                sees=f"{_seen(width)}, were they sent",
                knows="its encoder",
                run=partial(by_decoder, knows=_trained, coding=width),
            )


def _on_features_in_the_clear(material: Material) -> Iterator[Attack]:
    yield _membership("who is given the model", "a frame and its label")
    yield from _planted_features()
    yield Attack(
        name="decoder-trained",
        observer="who is given the model",
        sees="float32 features, were they sent",
        knows="its encoder",
        run=partial(by_decoder, knows=_trained, coding=material.coding),
    )
    yield Attack(
        name="inversion-trained",
        observer="who is given the model",
        sees="float32 features, were they sent",
        knows="its encoder",
        run=partial(by_inversion, knows=_trained, coding=material.coding),
    )


def _planted_features() -> Iterator[Attack]:
    yield _planted("planted-decoder", partial(planted_features, search=False))
    yield _planted("planted-inversion", partial(planted_features, search=True))


def _on_updates() -> Iterator[Attack]:
    yield _membership("any vehicle", "a frame and its label")
    yield _planted("planted-gradient", planted_gradient)
    yield Attack(
        name="gradient-one-frame",
        observer="broker, cloud",
        sees="a step of one frame, were it sent",
        knows="weights before, its label",
        run=by_gradient,
    )


def _seen(coding: Coding) -> str:
    if coding.frame_bytes is not None:
        return f"features in {coding.frame_bytes:,} bytes"
    return "float32 features" if coding.bits == UNROUNDED.bits else f"{coding.bits}-bit features"
