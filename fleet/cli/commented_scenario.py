"""A scenario file that explains itself: every setting, and above it what it is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fleet.cli.options import SCENARIO_OPTIONS
from fleet.cli.setting_docs import section_text, setting_text
from fleet.errors import OperatorError
from fleet.run.folder import readable_by_owner_alone
from fleet.scenario import Scenario
from fleet.scenario_file import write_table
from protocol.atomic import write_bytes_atomic

_COLUMNS = 100
_HEAD = (
    "A scenario: every setting of a run. What is left out has its default, so delete what you don't change. "
    "Options, and --set section.key=value, override what stands here."
)


def commented(scenario: Scenario) -> str:
    """The scenario as YAML that `load_scenario` reads back to the same, with a comment for each setting."""
    return "\n".join(_lines(scenario)) + "\n"


def _lines(scenario: Scenario) -> Iterator[str]:
    yield from _comment(_HEAD)
    fields = sorted(msgspec.structs.fields(Scenario), key=lambda field: _place(field.name))
    values = [(field.name, getattr(scenario, field.name)) for field in fields]
    for name, value in values:
        if not isinstance(value, msgspec.Struct):
            yield ""
            yield from _setting(Scenario, name, value, name)
    for name, section in values:
        if isinstance(section, msgspec.Struct):
            yield ""
            yield from _comment(section_text(type(section)))
            yield f"{name}:"
            for field in section.__struct_fields__:
                for line in _setting(type(section), field, getattr(section, field), f"{name}.{field}"):
                    yield f"  {line}"


def _setting(struct: type[msgspec.Struct], name: str, value: Any, key: str) -> Iterator[str]:
    yield from _comment(setting_text(struct, name, key))
    yield from write_table({name: msgspec.to_builtins(value)}).splitlines()


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, _COLUMNS, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def _place(name: str) -> int:
    """Where a setting or section stands: as its options do in the help, the others behind."""
    keys = [option.key.partition(".")[0] for option in SCENARIO_OPTIONS]
    return keys.index(name) if name in keys else len(keys)


def write_commented(scenario: Scenario, file: Path) -> None:
    """Write it to a new file, for its owner alone: a broker's URL may hold a password.

    Raises:
        OperatorError: the file is there already.
        OSError: its folder is missing, unwritable or full.
    """
    if file.exists():
        raise OperatorError(f"{file} is there already; name another file, or remove it")
    with readable_by_owner_alone():
        write_bytes_atomic(file, commented(scenario).encode())
