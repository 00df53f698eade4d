"""YAML as people write it, read into plain tables; imports PyYAML when it is asked for, and not before.

Stricter than YAML in one thing: a key that stands twice in a table is refused, for nobody can know which was
meant. Kinder in two: `1e-3` is a number, as in YAML 1.2, and a byte order mark or UTF-16 makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

from protocol.text_files import KeyTwice, decode_text, parse_json

# Not with leading zeros: CamVid's sequence 0016E5 is a name.
EXPONENT_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?[eE][-+]?[0-9]+")
EXPONENT_STARTS = list("-+0123456789")


class YamlFault(Exception):
    """Why the bytes are not read; goes on after the name of the file."""


def load_yaml(data: bytes) -> Any:
    """What a YAML file holds; None for an empty one. Without PyYAML only JSON is read, which is YAML too.

    Raises:
        YamlFault: it is not YAML, or a table has a key twice.
    """
    try:
        import yaml
    except ImportError:
        return _load_json(data)
    try:
        # Bytes, of which PyYAML itself finds out whether they are UTF-8 or UTF-16, marked or not.
        return yaml.load(data, _loader())
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        told = str(error)
        twice = told.startswith(_TWICE)
        raise YamlFault(told if twice else f"is not YAML: {' '.join(told.split())}") from error


_TWICE = "has the key "


def _load_json(data: bytes) -> Any:
    try:
        return parse_json(decode_text(data))
    except KeyTwice as error:
        raise YamlFault(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise YamlFault(
            "can't be read without PyYAML: install pyyaml, or write the file as JSON, which is YAML, too"
        ) from error


@lru_cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.value in lines:
                    raise yaml.YAMLError(
                        f"{_TWICE}{key.value!r} twice, in lines {lines[key.value]} and {line}; keep one of "
                        f"them"
                    )
                lines[str(key.value)] = line
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT_NUMBER, EXPONENT_STARTS)
    return Loader
