"""What a teacher's classes are called in the fleet: a YAML table of its ids, one a line.

    0: road
    1: pavement
    8: 5          # or the fleet's label id
    9: void

What is not in the table is void.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.labels import UNKNOWN_ID, VOID, LabelSpace
from datasets.yaml_files import YamlFault, load_yaml
from fleet.errors import OperatorError


def read_class_map(path: Path, label_space: LabelSpace) -> NDArray[np.uint8]:
    """uint8 [256]: the fleet's trainId of each id of the teacher, `VOID` for those that it has not.

    Raises:
        OperatorError: the file can't be read, or names an id or a class that there is not.
    """
    try:
        content = load_yaml(path.read_bytes())
    except OSError as error:
        raise OperatorError(f"can't read the table of classes {path}: {error.strerror}") from error
    except YamlFault as fault:
        raise OperatorError(f"{path} {fault}") from fault
    if not isinstance(content, dict) or not content:
        raise OperatorError(
            f"{path} holds no table: expected a line like `0: road` for each of the teacher's ids"
        )
    table = np.full(256, VOID, np.uint8)
    for teacher_id, meant in content.items():
        if isinstance(teacher_id, bool) or not isinstance(teacher_id, int) or not 0 <= teacher_id <= 255:
            raise OperatorError(f"{path}: the teacher's ids must be 0 to 255, got {teacher_id!r}")
        table[teacher_id] = _train_id(path, meant, label_space)
    if (table == VOID).all():
        raise OperatorError(f"{path} makes all of the teacher's classes void; give at least one a class")
    return table


def _train_id(path: Path, meant: object, label_space: LabelSpace) -> int:
    if meant == "void" or meant is None:
        return VOID
    if isinstance(meant, int) and not isinstance(meant, bool) and 0 <= meant <= 255:
        train_id = int(label_space.id_to_train_id[meant])
        if train_id != UNKNOWN_ID:
            return train_id
    elif isinstance(meant, str):
        for row in label_space.classes:
            if row.name == meant:
                return row.train_id
    raise OperatorError(
        f"{path}: {label_space.name} has no class {meant!r}; expected a label id, void, or one of "
        f"{', '.join(label_space.train_names)}"
    )
