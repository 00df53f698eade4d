"""What a shell completes values to; the commands and options themselves are Typer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from fleet.scenario import Scenario


def completing(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Completes to some of the names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in choices if name.startswith(incomplete)]

    return complete


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Completes to the dotted key of a setting, and what it is, which some shells show beside it."""
    from fleet.cli.setting_docs import setting_text

    found = []
    for field in msgspec.structs.fields(Scenario):
        is_section = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        part = field.type if is_section else Scenario
        for name in part.__struct_fields__ if is_section else (field.name,):
            key = f"{field.name}.{name}" if is_section else name
            if key.startswith(incomplete):
                found.append((f"{key}=", setting_text(part, name, key)))
    return found
