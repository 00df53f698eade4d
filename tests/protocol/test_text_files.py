"""Text files of people: what an editor puts before the first letter makes no difference, wherever we read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cloud_server.config import read_config
from datasets.readers.camvid import CamVidFrames
from edge_client.host import read_host_config
from fleet.scenario import load_scenario
from protocol.json_files import decode_json
from protocol.text_files import decode_text

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]
CAR = '{"id": "a", "bundle": "b", "state": "s"}'
HOST = f'{{"fleet": "f", "data_root": "d", "dataset": "camvid", "vehicles": [{CAR}]}}'


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_mark_is_not_part_of_the_text(encoding: str) -> None:
    assert decode_text("é: 1\n".encode(encoding)) == "é: 1\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("text", "read"),
    [
        (
            '{"fleet": "f", "vehicles": ["a"], "algorithm": "blackfed-v1"}',
            lambda path: read_config(path).vehicles,
        ),
        (HOST, lambda path: read_host_config(path).vehicles[0].id),
        ("rounds: 3\n", lambda path: load_scenario(path, {}).rounds),
    ],
)
def test_settings_are_read_in_any_encoding_that_editors_write(
    text: str, read: Callable[[Path], object], encoding: str, tmp_path: Path
) -> None:
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    plain.write_text(text, encoding="utf-8")
    marked.write_text(text, encoding=encoding)
    assert read(marked) == read(plain)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lists_and_colours_of_camvid_are_read_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    for folder in ("segnet/train", "segnet/trainannot", "own/images", "own/labels"):
        (tmp_path / folder).mkdir(parents=True)
    for name in (
        "segnet/train/A_1.png",
        "segnet/train/A_2.png",
        "own/images/A_1.png",
        "own/labels/A_1_L.png",
    ):
        (tmp_path / name).touch()
    for number in (1, 2):
        (tmp_path / f"segnet/trainannot/A_{number}.png").touch()
    (tmp_path / "segnet/train.txt").write_text("/elsewhere/A_1.png x\n", encoding=encoding)
    (tmp_path / "own/label_colors.txt").write_text("64 128 64 Animal\n", encoding=encoding)
    assert [ref.key for ref in CamVidFrames(tmp_path / "segnet").refs] == ["A_1"]
    assert [ref.key for ref in CamVidFrames(tmp_path / "own").refs] == ["A_1"]


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', '{"b": [{"a": {}, "a": {}}]}']
)
def test_a_key_twice_in_json_is_named_wherever_it_stands(text: str) -> None:
    with pytest.raises(msgspec.DecodeError, match="has the key 'a' twice"):
        decode_json(text.encode(), dict)
