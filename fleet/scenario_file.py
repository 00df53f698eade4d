"""Scenario files as YAML: what is read into plain tables, and how a scenario is written.

Stricter than YAML in one thing: a key that stands twice in a table is refused, for nobody can know which was
meant. Kinder in two: `1e-3` is a number, as in YAML 1.2, and a byte order mark or UTF-16 makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fleet.errors import OperatorError

# Not with leading zeros: CamVid's sequence 0016E5 is a name.
_EXPONENT_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?[eE][-+]?[0-9]+")


class _KeyTwice(yaml.YAMLError):
    """A table has a key twice; the message says which, and where."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise _KeyTwice(
                    f"has the key {key.value!r} twice, in lines {lines[key.value]} and {line}; keep one of "
                    f"them"
                )
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT_NUMBER, list("-+0123456789"))


def read_table(path: Path) -> dict[str, Any]:
    """The table of keys that a scenario file holds; empty for an empty file.

    Raises:
        OperatorError: the file can't be read, is not YAML, holds no table, or has a key twice.
    """
    try:
        # Bytes, of which PyYAML itself finds out whether they are UTF-8 or UTF-16, marked or not.
        loaded = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise OperatorError(f"can't read scenario {path}: {error.strerror}") from error
    except _KeyTwice as error:
        raise OperatorError(f"scenario {path} {error}") from error
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        raise OperatorError(f"scenario {path} is not YAML: {' '.join(str(error).split())}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise OperatorError(f"scenario {path} must be a table of keys, got {type(loaded).__name__}")
    return loaded or {}


def write_table(content: Any) -> str:
    """YAML that `read_table` reads back to the same."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
