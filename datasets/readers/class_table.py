"""The table of classes that somebody writes for a data set of their own.

    name: yard                # what results call the classes; default: folder
    labels: ids               # label images hold ids (the default), or colors
    classes:
      - {name: ground, id: 1, color: [120, 90, 60]}
      - {name: crate, id: 2, color: [250, 200, 0], category: things}
    ignore: [255]             # ids, or colours, of pixels that nobody learns or is scored on

Classes are counted (trainIds) in the order of the table. A class whose id or colour is among the ignored is
void. With `labels: colors`, ids are what predictions are written with; left out, they count from 0.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from datasets.frame import DatasetError
from datasets.labels import UNKNOWN_ID, VOID, LabelClass, LabelSpace, Rgb
from datasets.readers.colours import ColourTable
from datasets.yaml_files import YamlFault, load_yaml

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VOID_NAME = "void"
_BLACK: Rgb = (0, 0, 0)
_VOID_ID = 255


@dataclass(frozen=True)
class ClassTable:
    """A table that has been read and checked."""

    label_space: LabelSpace
    colours: ColourTable | None
    """What the colours of label images stand for; None: they hold ids."""


class _Class(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    color: tuple[int, int, int]
    id: int | None = None
    category: str | None = None


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    classes: tuple[_Class, ...]
    name: str = "folder"
    labels: Literal["ids", "colors"] = "ids"
    ignore: tuple[int | tuple[int, int, int], ...] | None = None


class _Fault(Exception):
    """What is wrong with a table; goes on after the name of the file and a colon."""


def read_class_table(path: Path) -> ClassTable:
    """Read the file.

    Raises:
        DatasetError: it is missing, no YAML, or no table of classes; the message names the entry.
    """
    try:
        content = load_yaml(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"can't read the table of classes {path}: {error.strerror}") from error
    except YamlFault as fault:
        raise DatasetError(f"{path} {fault}") from None
    try:
        return _build(msgspec.convert(content, _Table))
    except msgspec.ValidationError as error:
        raise DatasetError(f"{path}: {_placed(str(error), content)}") from None
    except _Fault as fault:
        raise DatasetError(f"{path}: {fault}") from None
    except UnicodeEncodeError:  # half a character, which YAML's escapes allow
        raise DatasetError(f"{path}: holds characters that are no text") from None


def _placed(message: str, content: Any) -> str:
    """msgspec's message, with the name of the class that it is about."""
    told, _, place = message.partition(" - at ")
    place = place.strip("`").removeprefix("$").removeprefix(".")
    number = re.match(r"classes\[(\d+)\]", place)
    if number:
        entry = content["classes"][int(number.group(1))]
        name = entry.get("name") if isinstance(entry, dict) else None
        place += f" ({name})" if isinstance(name, str) else ""
    told = told[:1].lower() + told[1:]
    return f"{place}: {told}" if place else f"a table of classes is needed: {told}"


def _build(table: _Table) -> ClassTable:
    if not _NAME.fullmatch(table.name):
        raise _Fault(f"name must be made of letters, digits, '_' and '-', 64 at most, got {table.name!r}")
    _check_once("name", [c.name for c in table.classes], table.classes)
    _check_once("color", [c.color for c in table.classes], table.classes)
    for c in table.classes:
        _check_colour(c.color, f"the color of {c.name}")
    ignored = _ignored(table)
    ids = _ids(table)
    void = [_is_void(c, number, ignored) for c, number in zip(table.classes, ids, strict=True)]
    rows = list(_rows(table, ids, void, ignored))
    trained = [row for row in rows if row.train_id != VOID]
    if not 2 <= len(trained) < UNKNOWN_ID:
        raise _Fault(f"2 to {UNKNOWN_ID - 1} classes that are not ignored are needed, got {len(trained)}")
    label_space = LabelSpace(f"{table.name}-{_digest(rows)}", tuple(rows))
    if table.labels == "ids":
        return ClassTable(label_space, None)
    meanings = {
        c.color: VOID if is_void else label_space.by_name(c.name).train_id
        for c, is_void in zip(table.classes, void, strict=True)
    }
    meanings |= {colour: VOID for colour in ignored if isinstance(colour, tuple)}
    return ClassTable(label_space, ColourTable(meanings, table.name))


def _check_once(what: str, values: Sequence[Any], classes: Sequence[_Class]) -> None:
    first: dict[Any, int] = {}
    for number, value in enumerate(values):
        if value in first:
            raise _Fault(
                f"classes[{first[value]}] ({classes[first[value]].name}) and classes[{number}] "
                f"({classes[number].name}) have the same {what}, {_shown(value)}; give each its own"
            )
        first[value] = number


def _check_colour(colour: Rgb, what: str) -> None:
    if not all(0 <= channel <= 255 for channel in colour):
        raise _Fault(f"{what} must be [red, green, blue] from 0 to 255, got {_shown(colour)}")


def _ignored(table: _Table) -> tuple[int | Rgb, ...]:
    if table.labels == "colors":
        for colour in table.ignore or ():
            if not isinstance(colour, tuple):
                raise _Fault(f"ignore must hold colours, as labels are colors, got {colour}")
            _check_colour(colour, "a color of ignore")
        return table.ignore or ()
    ignored = (_VOID_ID,) if table.ignore is None else table.ignore
    if not ignored:
        raise _Fault("ignore is empty; name the id that pixels of no class have, or would have, such as 255")
    for number in ignored:
        if not isinstance(number, int):
            raise _Fault(f"ignore must hold ids, as labels are ids, got the colour {_shown(number)}")
        _check_id(number, "an id of ignore")
    return ignored


def _ids(table: _Table) -> list[int]:
    given = [c.id for c in table.classes]
    if table.labels == "colors" and all(number is None for number in given):
        given = list(range(len(given)))
    ids: list[int] = []
    for c, number in zip(table.classes, given, strict=True):
        if number is None:
            raise _Fault(f"class {c.name} has no id")
        _check_id(number, f"the id of {c.name}")
        ids.append(number)
    _check_once("id", ids, table.classes)
    return ids


def _check_id(number: int, what: str) -> None:
    if not 0 <= number <= 255:
        raise _Fault(f"{what} must be from 0 to 255, as label images hold 8 bits a pixel, got {number}")


def _is_void(c: _Class, number: int, ignored: Sequence[int | Rgb]) -> bool:
    return c.color in ignored or number in ignored


def _rows(
    table: _Table, ids: Sequence[int], void: Sequence[bool], ignored: Sequence[int | Rgb]
) -> Iterator[LabelClass]:
    """The classes of the table, and one void class for each ignored id that is none of them."""
    categories: dict[str, int] = {_VOID_NAME: 0}
    train_id = 0
    for c, number, is_void in zip(table.classes, ids, void, strict=True):
        category = c.category or (_VOID_NAME if is_void else c.name)
        yield LabelClass(
            name=c.name,
            label_id=number,
            train_id=VOID if is_void else train_id,
            category=category,
            category_id=categories.setdefault(category, len(categories)),
            has_instances=False,
            ignore_in_eval=is_void,
            color_rgb=c.color,
        )
        train_id += not is_void
    more = [number for number in dict.fromkeys(ignored) if isinstance(number, int) and number not in ids]
    if not any(void) and not more:
        # Labels in colours: nothing on disk has this id, but a prediction could.
        more = [next(number for number in range(_VOID_ID, -1, -1) if number not in ids)]
    names = {c.name for c in table.classes}
    for number in more:
        name = _VOID_NAME if len(more) == 1 and _VOID_NAME not in names else f"{_VOID_NAME} {number}"
        yield LabelClass(
            name=name,
            label_id=number,
            train_id=VOID,
            category=_VOID_NAME,
            category_id=0,
            has_instances=False,
            ignore_in_eval=True,
            color_rgb=_BLACK,
        )


def _digest(rows: Sequence[LabelClass]) -> str:
    """Eight digits that differ where the classes do: vehicles and cloud must speak of the same."""
    return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()[:8]


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)
