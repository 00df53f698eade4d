"""The container of updates: nothing but what was signed comes out of it, and nothing outside its folder."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.update_file import (
    Manifest,
    UpdateError,
    encode_manifest,
    pack,
    packed_file,
    read_update,
    unpack,
)
from protocol.update_signature import (
    PRIVATE_NAME,
    PUBLIC_NAME,
    KeyFault,
    check_public_key,
    is_signed,
    make_key,
    public_key,
    sign,
)

CONTENTS = {"encoder.json": b"{}", "forward.onnx": bytes(range(256)) * 5, "empty.f32": b""}


def manifest(**changes: object) -> Manifest:
    fields = {"kind": "bundle", "name": "fog", "version": 3, "fleet": "demo"}
    files = tuple(packed_file(name, content) for name, content in CONTENTS.items())
    return Manifest(**{**fields, "files": files, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bytes]]:
    """A folder with keys, and a sound container."""
    folder = tmp_path_factory.mktemp("signed")
    make_key(folder)
    (folder / PUBLIC_NAME).write_bytes(public_key(folder / PRIVATE_NAME))
    content = encode_manifest(manifest())
    yield folder, pack(content, sign(folder / PRIVATE_NAME, content), CONTENTS)


def taken(data: bytes, key: Path) -> dict[str, bytes] | None:
    """The files that come out of a container, as a vehicle takes it; None: it is refused."""
    with tempfile.TemporaryDirectory() as made:
        path, out = Path(made, "update.bfu"), Path(made, "a", "out")
        path.write_bytes(data)
        out.mkdir(parents=True)
        try:
            update = read_update(path)
            unpack(update, out)
            # The signature last: what is refused without it need not ask openssl.
            is_taken = is_signed(key, update.signed, update.signature)
        except UpdateError:
            is_taken = False
        found = {each.name: each.read_bytes() for each in out.iterdir()}
        others = {each.name for each in Path(made).rglob("*") if each.is_file() and each.parent != out}
        assert others == {"update.bfu"}
        return found if is_taken else None


def test_what_was_signed_comes_out(signed: tuple[Path, bytes]) -> None:
    folder, data = signed
    assert taken(data, folder / PUBLIC_NAME) == CONTENTS


@settings(max_examples=60)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_no_byte_may_be_another(signed: tuple[Path, bytes], place: int, flip: int) -> None:
    folder, data = signed
    changed = bytearray(data)
    changed[place % len(data)] ^= flip
    assert taken(bytes(changed), folder / PUBLIC_NAME) is None


@settings(max_examples=60)
@given(start=st.integers(0, 3000), removed=st.integers(0, 50), added=st.binary(max_size=50))
def test_no_byte_may_be_missing_or_too_much(
    signed: tuple[Path, bytes], start: int, removed: int, added: bytes
) -> None:
    folder, data = signed
    changed = data[:start] + added + data[start + removed :]
    if changed != data:
        assert taken(changed, folder / PUBLIC_NAME) is None


@settings(max_examples=60)
@given(name=st.one_of(st.text(max_size=80), st.from_regex(r"(\.{0,2}/?[a-z.\\]{0,9}){1,4}", fullmatch=True)))
def test_names_lead_nowhere_else(name: str) -> None:
    """Whoever holds the key could sign anything: a name is a file of the folder, or there is no manifest."""
    content = b"x"
    raw = msgspec.to_builtins(manifest(files=(packed_file("x", content),)))
    raw["files"][0]["name"] = name
    encoded = msgspec.json.encode(raw)
    data = struct.pack("<8sIH", b"BFUPDATE", len(encoded), 0) + encoded + content
    with tempfile.TemporaryDirectory() as made:
        path, out = Path(made, "u"), Path(made, "a", "out")
        path.write_bytes(data)
        out.mkdir(parents=True)
        try:
            unpack(read_update(path), out)
        except UpdateError:
            assert list(out.iterdir()) == []
        else:
            assert [each.name for each in out.iterdir()] == [name]
            assert not {"/", "\\", "\0"} & set(name) and not name.startswith(".")
        assert {each.name for each in Path(made).iterdir()} == {"u", "a"}


def test_two_files_of_one_name_are_none() -> None:
    twice = (packed_file("a", b"1"), packed_file("A", b"2"))
    with pytest.raises(ValueError, match="two files of the same name"):
        manifest(files=twice)


def test_signature_is_of_its_key_and_content(signed: tuple[Path, bytes], tmp_path: Path) -> None:
    folder, _ = signed
    make_key(tmp_path)
    (tmp_path / PUBLIC_NAME).write_bytes(public_key(tmp_path / PRIVATE_NAME))
    made = sign(folder / PRIVATE_NAME, b"content")
    assert is_signed(folder / PUBLIC_NAME, b"content", made)
    assert not is_signed(folder / PUBLIC_NAME, b"Content", made)
    assert not is_signed(folder / PUBLIC_NAME, b"content", b"")
    assert not is_signed(tmp_path / PUBLIC_NAME, b"content", made)


def test_what_is_no_key_is_said(signed: tuple[Path, bytes], tmp_path: Path) -> None:
    folder, _ = signed
    (tmp_path / "none.pub").write_text("no key")
    with pytest.raises(KeyFault, match=r"none.pub holds no public Ed25519 key"):
        check_public_key(tmp_path / "none.pub")
    with pytest.raises(KeyFault, match=r"can't read the key .*: No such file"):
        check_public_key(tmp_path / "missing.pub")
    with pytest.raises(KeyFault, match="holds no private Ed25519 key"):
        sign(folder / PUBLIC_NAME, b"content")
