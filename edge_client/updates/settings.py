"""Settings of a vehicle that an update may change."""

from __future__ import annotations

from pathlib import Path

import msgspec

from protocol.update_file import UpdateError

SETTINGS_NAME = "settings.json"


class SettingsUpdate(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """`settings.json`: fields of `HostConfig` of the same names; those that are absent stay.

    None of them decides whether the vehicle can speak with the cloud: it could not be told of a better one.
    """

    threads: int | None = None
    provider: str | None = None
    encoder_mode: str | None = None
    allowed_learners: tuple[str, ...] | None = None
    retry_s: float | None = None
    step_s: float | None = None

    def changes(self) -> dict[str, object]:
        """The fields that are there."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


def read_settings(folder: Path) -> SettingsUpdate:
    """The settings of an unpacked update.

    Raises:
        UpdateError: they are no settings that an update may change.
        OSError: the file can't be read.
    """
    try:
        return msgspec.json.decode((folder / SETTINGS_NAME).read_bytes(), type=SettingsUpdate)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        names = ", ".join(field.name for field in msgspec.structs.fields(SettingsUpdate))
        raise UpdateError(f"{SETTINGS_NAME}: {error}; an update may set {names}") from error
