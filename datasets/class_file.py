"""Files of classes: a table that somebody writes, and what a run keeps of the classes that it is about.

A table is YAML (`datasets.readers.class_table`); what a run keeps is a `LabelSpace` as JSON, word for word.
msgspec is imported where a file is read: other classes are known without it.
"""

from __future__ import annotations

from pathlib import Path

from datasets.frame import DatasetError
from datasets.labels import LabelSpace
from protocol.atomic import write_bytes_atomic
from protocol.errors import SettingError

CLASSES_NAME = "classes.json"
"""The file in the folder of a run."""
_TABLE_ENDS = (".yaml", ".yml")
CLASS_FILE_ENDS = (*_TABLE_ENDS, ".json")
"""How the names of such files end; no name of a label table does."""


def is_class_file(name: str) -> bool:
    """Whether a name of classes is the path of a file."""
    return name.endswith(CLASS_FILE_ENDS)


def read_class_file(path: Path) -> LabelSpace:
    """The classes in a file of either kind.

    Raises:
        DatasetError: it is missing, or holds no classes.
    """
    import msgspec

    from datasets.readers.class_table import read_class_table

    if path.name.endswith(_TABLE_ENDS):
        return read_class_table(path).label_space
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabelSpace)
    except OSError as error:
        raise DatasetError(f"can't read the classes {path}: {error.strerror}") from error
    except (msgspec.DecodeError, SettingError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} holds no classes as a run keeps them: {error}") from error


def write_class_file(path: Path, classes: LabelSpace) -> None:
    """Write what `read_class_file` reads back to the same.

    Raises:
        OSError: the file can't be written.
    """
    import msgspec

    write_bytes_atomic(path, msgspec.json.format(msgspec.json.encode(classes)))
