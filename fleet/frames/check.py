"""Reads all frames of a run before anything starts, and says where labels hold no pixel of any class."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from datasets.check import CheckedFrames, check_frames
from datasets.divided import owned_frames, split_keys
from datasets.frame import FrameSource
from datasets.partition import READ_LABELS
from fleet.errors import OperatorError
from fleet.frames.allocation import Share
from fleet.frames.rendering import drawn_when_read
from fleet.scenario import Scenario

_VEHICLES_NAMED = 10


def check_before_allotting(scenario: Scenario, source: FrameSource, console: Console) -> None:
    """Where frames are allotted by what they show, all of them are read, so all are checked.

    Raises:
        DatasetError: some are faulty; up to 10 are named.
    """
    if scenario.dataset.partition in READ_LABELS:
        cities = scenario.dataset.cities
        refs = owned_frames(source).refs
        keys = frozenset(ref.key for ref in refs if cities is None or ref.city in cities)
        _check(scenario, source, keys, console)


def check_shares(
    scenario: Scenario, source: FrameSource, shares: Mapping[str, Share], console: Console
) -> tuple[str, ...]:
    """Read the frames of all vehicles; returns what is to be said of labels that are void, a line each.

    Raises:
        DatasetError: some are faulty; up to 10 are named.
        OperatorError: vehicles are to learn from labels, and no train label has a pixel of any class; or no
            label of the test split has.
    """
    keys = frozenset(key for share in shares.values() for part in share.splits().values() for key in part)
    if drawn_when_read(scenario):
        return ()  # nobody has touched them: they are as they were drawn, or not yet there
    void = _check(scenario, source, keys, console).void
    tested = split_keys(source)
    if tested and void.issuperset(tested):
        raise OperatorError(
            f"all labels of the test split {scenario.dataset.test_split} are void, so there is nothing to "
            f"score (those of Cityscapes' own test split are not public); give another --test-split"
        )
    remarks = []
    blank = {
        part: [vehicle for vehicle, share in shares.items() if void.issuperset(getattr(share, part))]
        for part in ("train", "test")
    }
    if scenario.adaptation.objective == "labels" and len(blank["train"]) == len(shares):
        raise OperatorError(
            f"all train labels are void: none has a pixel of a {source.label_space.name} class, so there is "
            f"nothing to learn from; check the labels in {scenario.dataset.root or 'the run folder'}"
        )
    if blank["train"] and scenario.adaptation.objective == "labels":
        remarks.append(f"all train labels are void of {_named(blank['train'])}: nothing is learnt from them")
    if blank["test"]:
        remarks.append(f"all test labels are void of {_named(blank['test'])}: no score, shown as a dash")
    return tuple(remarks)


def _check(scenario: Scenario, source: FrameSource, keys: frozenset[str], console: Console) -> CheckedFrames:
    refs = [ref for ref in source.refs if ref.key in keys]
    with console.status("checking frames") as status:
        return check_frames(
            source,
            refs,
            # Rendered frames are new in each run folder, and few: nothing would be gained by remembering.
            remember=not scenario.dataset.is_rendered,
            workers=scenario.core_count,
            progress=lambda done, total: status.update(f"checking frames {done}/{total}"),
        )


def _named(vehicles: list[str]) -> str:
    rest = len(vehicles) - _VEHICLES_NAMED
    return ", ".join(vehicles[:_VEHICLES_NAMED]) + (f" and {rest} more" if rest > 0 else "")
