"""A key that has moved is named with its new place, in a scenario and in the cloud's own file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_server.config import CloudConfig, read_config
from cloud_server.errors import CloudError
from cloud_server.unknown_keys import MOVED
from fleet.errors import OperatorError
from fleet.scenario import Scenario, load_scenario


def keys_of(settings: type, prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(settings):
        yield prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys_of(field.type, f"{prefix}{field.name}.")


def nested(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_moved_key_is_told_where_it_is_now(old: str, new: str, tmp_path: Path) -> None:
    assert new in set(keys_of(Scenario)) & set(keys_of(CloudConfig))
    assert old not in set(keys_of(Scenario)) | set(keys_of(CloudConfig))
    with pytest.raises(OperatorError, match=rf"unknown key {old}; it is now {new}$"):
        load_scenario(None, {old: 1})
    file = tmp_path / "cloud.json"
    file.write_bytes(msgspec.json.encode({"fleet": "f", "vehicles": ["a"], **nested(old, 1)}))
    with pytest.raises(CloudError, match=rf"cloud.json: unknown key {old}; it is now {new}$"):
        read_config(file)


def test_an_unknown_key_of_the_cloud_is_answered_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "cloud.json"
    file.write_text('{"fleet": "f", "vehicles": ["a"], "local_loss": {"epoch": 2}}')
    with pytest.raises(CloudError, match=r"unknown key local_loss.epoch; did you mean 'epochs'\?"):
        read_config(file)
