"""Scenario files as YAML: what is read into plain tables, and how a scenario is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from datasets.yaml_files import EXPONENT_NUMBER, EXPONENT_STARTS, YamlFault, load_yaml
from fleet.errors import OperatorError

BY_VEHICLE = ("conditions", "encoders")
"""Settings whose keys are vehicles."""
_WHOLE = (*BY_VEHICLE, "class_weights")
"""Tables that are one value: another one takes the place of all of it."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT_NUMBER, EXPONENT_STARTS)


def read_table(path: Path) -> dict[str, Any]:
    """The table of keys that a scenario file holds; empty for an empty file.

    Raises:
        OperatorError: the file can't be read, is not YAML, holds no table, or has a key twice.
    """
    try:
        loaded = load_yaml(path.read_bytes())
    except OSError as error:
        raise OperatorError(f"can't read scenario {path}: {error.strerror}") from error
    except YamlFault as error:
        raise OperatorError(f"scenario {path} {error}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise OperatorError(f"scenario {path} must be a table of keys, got {type(loaded).__name__}")
    return loaded or {}


def write_table(content: Any) -> str:
    """YAML that `read_table` reads back to the same."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def put_over(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Put the given keys over those that are there; some tables are one value."""
    for key, value in given.items():
        part = content.get(key)
        if isinstance(part, dict) and isinstance(value, dict) and key not in _WHOLE:
            put_over(part, value)
        else:
            content[key] = value


def put(content: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value under its dotted key.

    Raises:
        OperatorError: a part of the key holds no table.
    """
    *parents, last = dotted.split(".")
    for parent in parents:
        child = content.setdefault(parent, {})
        if not isinstance(child, dict):
            raise OperatorError(f"scenario key {parent!r} must be a table of keys, got {child!r}")
        content = child
    content[last] = value
