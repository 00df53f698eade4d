"""The label tables: which classes a data set has, their ids, trainIds, categories and colours.

Cityscapes: the official table (cityscapesscripts, `helpers/labels.py`). CamVid: the 11 classes of SegNet.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from protocol.errors import SettingError

VOID = 255
"""The trainId of pixels that are neither trained on nor evaluated."""

UNKNOWN_ID = 254
"""What `LabelSpace.id_to_train_id` holds for ids that the table doesn't know."""

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelClass:
    """One row of a label table."""

    name: str
    label_id: int
    """Value in label files, 0 to 255; -1 for a class that never appears in them."""
    train_id: int
    """Value in `Frame.label_HW`: 0 .. num_classes - 1, or `VOID`."""
    category: str
    category_id: int
    has_instances: bool
    """Whether single objects of this class are told apart in instance files."""
    ignore_in_eval: bool
    color_rgb: Rgb


@dataclass(frozen=True)
class LabelSpace:
    """The classes of one data set with lookups between ids, trainIds and colours (read-only arrays)."""

    name: str
    classes: tuple[LabelClass, ...]

    def __post_init__(self) -> None:
        names = Counter(c.name for c in self.classes)
        ids = Counter(c.label_id for c in self.classes if c.label_id >= 0)
        for what, counts in (("name", names), ("label id", ids)):
            for value, count in counts.items():
                if count > 1:
                    raise SettingError(f"{self.name} has the {what} {value!r} twice")
        strange = next((c for c in self.classes if not -1 <= c.label_id <= 255), None)
        if strange is not None:
            raise SettingError(
                f"{self.name} label ids must be 0 to 255, or -1, got {strange.label_id} for {strange.name}"
            )
        train_ids = [c.train_id for c in self.trained_classes]
        if train_ids != list(range(len(train_ids))) or not 2 <= len(train_ids) < UNKNOWN_ID:
            raise SettingError(
                f"{self.name} trainIds must count from 0 without a gap, 2 to {UNKNOWN_ID - 1} of them, got "
                f"{', '.join(map(str, train_ids)) or 'none'}"
            )
        if not any(c.train_id == VOID and c.label_id >= 0 for c in self.classes):
            raise SettingError(f"{self.name} needs a class of trainId {VOID}, void, with a label id")

    @cached_property
    def trained_classes(self) -> tuple[LabelClass, ...]:
        """The classes that are trained and evaluated, at the index of their trainId."""
        return tuple(sorted((c for c in self.classes if c.train_id != VOID), key=lambda c: c.train_id))

    @property
    def num_classes(self) -> int:
        """How many trainIds there are, void not counted."""
        return len(self.trained_classes)

    @property
    def train_names(self) -> tuple[str, ...]:
        """Class names by trainId."""
        return tuple(c.name for c in self.trained_classes)

    @cached_property
    def id_to_train_id(self) -> NDArray[np.uint8]:
        """uint8[256]: trainId of each label id, `VOID` for void classes, `UNKNOWN_ID` for unknown ids."""
        table = np.full(256, UNKNOWN_ID, np.uint8)
        for c in self.classes:
            if c.label_id >= 0:
                table[c.label_id] = c.train_id
        return _read_only(table)

    @cached_property
    def train_id_to_id(self) -> NDArray[np.uint8]:
        """uint8[256]: label id of each trainId; everything else gets the id of the first void class."""
        void_id = next(c.label_id for c in self.classes if c.train_id == VOID)
        table = np.full(256, void_id, np.uint8)
        for c in self.trained_classes:
            table[c.train_id] = c.label_id
        return _read_only(table)

    @cached_property
    def palette_rgb(self) -> NDArray[np.uint8]:
        """uint8[256, 3]: colour of each trainId; void and everything else is black."""
        table = np.zeros((256, 3), np.uint8)
        for c in self.trained_classes:
            table[c.train_id] = c.color_rgb
        return _read_only(table)

    def by_name(self, name: str) -> LabelClass:
        """Return the class called `name`.

        Raises:
            ValueError: there is none; the message lists the names.
        """
        for c in self.classes:
            if c.name == name:
                return c
        raise ValueError(
            f"{self.name} has no class {name!r}, expected one of: {', '.join(c.name for c in self.classes)}"
        )

    def to_train_ids(self, ids_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map label ids to trainIds.

        Raises:
            ValueError: some ids are not in the table; the message lists them.
        """
        label_HW: NDArray[np.uint8] = self.id_to_train_id[ids_HW]
        unknown = label_HW == UNKNOWN_ID
        if unknown.any():
            ids = ", ".join(str(i) for i in np.unique(ids_HW[unknown]))
            raise ValueError(f"label ids {ids} are not {self.name} ids")
        return label_HW

    def to_ids(self, label_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map trainIds to the ids of label files."""
        ids_HW: NDArray[np.uint8] = self.train_id_to_id[label_HW]
        return ids_HW

    def colorize(self, label_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map trainIds to their colours, uint8 RGB [H, W, 3]."""
        image_HWC: NDArray[np.uint8] = self.palette_rgb[label_HW]
        return image_HWC


def _read_only(table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table.flags.writeable = False
    return table


_CATEGORIES = ("void", "flat", "construction", "object", "nature", "sky", "human", "vehicle")


def _row(
    name: str, label_id: int, train_id: int, category: str, instances: bool, ignored: bool, color_rgb: Rgb
) -> LabelClass:
    return LabelClass(
        name=name,
        label_id=label_id,
        train_id=train_id,
        category=category,
        category_id=_CATEGORIES.index(category),
        has_instances=instances,
        ignore_in_eval=ignored,
        color_rgb=color_rgb,
    )


# fmt: off
CITYSCAPES = LabelSpace("cityscapes", (
    #    name                    id  trainId category     instances ignored color
    _row("unlabeled",             0, VOID, "void",         False, True,  (0, 0, 0)),
    _row("ego vehicle",           1, VOID, "void",         False, True,  (0, 0, 0)),
    _row("rectification border",  2, VOID, "void",         False, True,  (0, 0, 0)),
    _row("out of roi",            3, VOID, "void",         False, True,  (0, 0, 0)),
    _row("static",                4, VOID, "void",         False, True,  (0, 0, 0)),
    _row("dynamic",               5, VOID, "void",         False, True,  (111, 74, 0)),
    _row("ground",                6, VOID, "void",         False, True,  (81, 0, 81)),
    _row("road",                  7,    0, "flat",         False, False, (128, 64, 128)),
    _row("sidewalk",              8,    1, "flat",         False, False, (244, 35, 232)),
    _row("parking",               9, VOID, "flat",         False, True,  (250, 170, 160)),
    _row("rail track",           10, VOID, "flat",         False, True,  (230, 150, 140)),
    _row("building",             11,    2, "construction", False, False, (70, 70, 70)),
    _row("wall",                 12,    3, "construction", False, False, (102, 102, 156)),
    _row("fence",                13,    4, "construction", False, False, (190, 153, 153)),
    _row("guard rail",           14, VOID, "construction", False, True,  (180, 165, 180)),
    _row("bridge",               15, VOID, "construction", False, True,  (150, 100, 100)),
    _row("tunnel",               16, VOID, "construction", False, True,  (150, 120, 90)),
    _row("pole",                 17,    5, "object",       False, False, (153, 153, 153)),
    _row("polegroup",            18, VOID, "object",       False, True,  (153, 153, 153)),
    _row("traffic light",        19,    6, "object",       False, False, (250, 170, 30)),
    _row("traffic sign",         20,    7, "object",       False, False, (220, 220, 0)),
    _row("vegetation",           21,    8, "nature",       False, False, (107, 142, 35)),
    _row("terrain",              22,    9, "nature",       False, False, (152, 251, 152)),
    _row("sky",                  23,   10, "sky",          False, False, (70, 130, 180)),
    _row("person",               24,   11, "human",        True,  False, (220, 20, 60)),
    _row("rider",                25,   12, "human",        True,  False, (255, 0, 0)),
    _row("car",                  26,   13, "vehicle",      True,  False, (0, 0, 142)),
    _row("truck",                27,   14, "vehicle",      True,  False, (0, 0, 70)),
    _row("bus",                  28,   15, "vehicle",      True,  False, (0, 60, 100)),
    _row("caravan",              29, VOID, "vehicle",      True,  True,  (0, 0, 90)),
    _row("trailer",              30, VOID, "vehicle",      True,  True,  (0, 0, 110)),
    _row("train",                31,   16, "vehicle",      True,  False, (0, 80, 100)),
    _row("motorcycle",           32,   17, "vehicle",      True,  False, (0, 0, 230)),
    _row("bicycle",              33,   18, "vehicle",      True,  False, (119, 11, 32)),
    _row("license plate",        -1, VOID, "vehicle",      False, True,  (0, 0, 142)),
))

CAMVID = LabelSpace("camvid", (
    # Colours are those of the matching Cityscapes class, so that pictures of both read alike.
    _row("sky",         0,    0, "sky",          False, False, (70, 130, 180)),
    _row("building",    1,    1, "construction", False, False, (70, 70, 70)),
    _row("pole",        2,    2, "object",       False, False, (153, 153, 153)),
    _row("road",        3,    3, "flat",         False, False, (128, 64, 128)),
    _row("pavement",    4,    4, "flat",         False, False, (244, 35, 232)),
    _row("tree",        5,    5, "nature",       False, False, (107, 142, 35)),
    _row("sign",        6,    6, "object",       False, False, (220, 220, 0)),
    _row("fence",       7,    7, "construction", False, False, (190, 153, 153)),
    _row("car",         8,    8, "vehicle",      False, False, (0, 0, 142)),
    _row("pedestrian",  9,    9, "human",        False, False, (220, 20, 60)),
    _row("bicyclist",  10,   10, "human",        False, False, (255, 0, 0)),
    _row("void",       11, VOID, "void",         False, True,  (0, 0, 0)),
))
# fmt: on
