"""`--set section.key=value`: any setting of a scenario on the command line, checked as a scenario file is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import msgspec

from cloud_server.unknown_keys import explain, unknown_key
from datasets.yaml_files import YamlFault, load_yaml
from fleet.errors import OperatorError
from fleet.scenario import Scenario
from fleet.scenario_file import put


def parse_settings(texts: Sequence[str], *, taken: Mapping[str, str]) -> dict[str, Any]:
    """The table of keys, as a scenario file would hold it, of `first_order.rate=1e-3`, `seed=2`, …

    Values are YAML: `null`, `true`, `[a, b]`. `taken`: dotted keys that can't be set here, and why not.

    Raises:
        OperatorError: one is no KEY=VALUE, names a key that is unknown, taken or given twice, or has a value
            of the wrong type; the message names it. Ranges are checked with the scenario.
    """
    content: dict[str, Any] = {}
    refused = dict(taken)
    for text in texts:
        key, equals, written = text.partition("=")
        if not (equals and all(key.split("."))):
            raise OperatorError(f"--set must be KEY=VALUE such as first_order.rate=1e-3, got {text!r}")
        for other, reason in refused.items():
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise OperatorError(f"--set {text}: {reason}")
        refused[key] = f"another --set gives {key}, too; keep one of them"
        try:
            value = load_yaml(written.encode())
        except YamlFault as error:
            raise OperatorError(f"--set {text}: the value {error}") from error
        kind = _type_of(key, text)
        if not isinstance(value, dict):  # a table is a part of a section, checked with all of it
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                raise OperatorError(f"--set {text}: {explain(str(error), Scenario)}") from error
        put(content, key, value)
    return content


def _type_of(key: str, text: str) -> Any:
    """The type of the setting with this dotted key."""
    part: Any = Scenario
    place = ""
    for name in key.split("."):
        tables = [kind for kind in (part, *get_args(part)) if get_origin(kind) is dict]
        if tables:
            part = get_args(tables[0])[1]
        elif isinstance(part, type) and issubclass(part, msgspec.Struct):
            fields = {field.name: field.type for field in msgspec.structs.fields(part)}
            if name not in fields:
                raise OperatorError(f"--set {text}: {unknown_key(name, place, Scenario)}")
            part = fields[name]
        else:
            raise OperatorError(f"--set {text}: {place} is a single value and has no {name!r}")
        place = f"{place}.{name}" if place else name
    return part
