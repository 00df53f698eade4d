"""Signatures of updates: Ed25519 (RFC 8032), made and checked by the program `openssl`, 3.0 or newer."""

from __future__ import annotations

import tempfile
from pathlib import Path

from protocol.errors import Mistake
from protocol.openssl import OpensslError, run_openssl

PRIVATE_NAME = "update.key"
PUBLIC_NAME = "update.pub"
SIGNATURE_BYTES = 64
_SCOPE = b"blackfleet update\x00"
"""What is signed begins with it, so that a signature is good for nothing else."""
_WRONG_SIGNATURE = "Signature Verification Failure"


class KeyFault(Mistake):
    """A file that holds no usable key, or no openssl to use it."""


def make_key(folder: Path) -> None:
    """A new key that signs, `update.key`, in `folder`.

    Raises:
        OpensslError: it can't be made.
    """
    run_openssl("genpkey", "-algorithm", "ed25519", "-out", PRIVATE_NAME, folder=folder)


def public_key(key: Path) -> bytes:
    """The public part of a key that signs, which every vehicle gets as `update.pub`.

    Raises:
        KeyFault: the file holds no such key, or openssl is missing.
    """
    _check(key, "", "private")
    with tempfile.TemporaryDirectory() as made:
        run_openssl("pkey", "-in", str(key.absolute()), "-pubout", "-out", PUBLIC_NAME, folder=Path(made))
        return (Path(made) / PUBLIC_NAME).read_bytes()


def check_public_key(key: Path) -> None:
    """See that a file holds a public key that updates can be checked with.

    Raises:
        KeyFault: it doesn't, or openssl is missing.
    """
    _check(key, "-pubin", "public")


def sign(key: Path, content: bytes) -> bytes:
    """The signature of `content`, 64 bytes.

    Raises:
        KeyFault: the file holds no such key, or openssl is missing or too old.
    """
    _check(key, "", "private")
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "content").write_bytes(_SCOPE + content)
        try:
            run_openssl(
                *("pkeyutl", "-sign", "-rawin", "-inkey", str(key.absolute())),
                *("-in", "content", "-out", "signature"),
                folder=Path(made),
            )
        except OpensslError as error:
            raise KeyFault(f"{error}; updates need openssl 3.0 or newer") from error
        return (Path(made) / "signature").read_bytes()


def is_signed(key: Path, content: bytes, signature: bytes) -> bool:
    """Whether `signature` of `content` was made with the private key of the public `key`.

    Raises:
        KeyFault: that can't be told: no such key, or openssl is missing or too old.
    """
    if len(signature) != SIGNATURE_BYTES:
        return False
    _check(key, "-pubin", "public")
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "content").write_bytes(_SCOPE + content)
        (Path(made) / "signature").write_bytes(signature)
        try:
            run_openssl(
                *("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(key.absolute())),
                *("-in", "content", "-sigfile", "signature"),
                folder=Path(made),
            )
        except OpensslError as error:
            if "pkeyutl failed" in str(error) and "rawin" not in str(error):
                return False
            raise KeyFault(f"{error}; updates need openssl 3.0 or newer") from error
    return True


def _check(key: Path, option: str, kind: str) -> None:
    """Only keys of this one kind: with another, `openssl` would check another kind of signature."""
    try:
        key.read_bytes()  # a file that can't be read says so itself
        arguments = ("pkey", *filter(None, [option]), "-in", str(key.absolute()), "-noout", "-text")
        said = run_openssl(*arguments, folder=Path())
    except OSError as error:
        raise KeyFault(f"can't read the key {key}: {error.strerror}") from error
    except OpensslError as error:
        if "not installed" in str(error):
            raise
        said = ""
    if "ED25519" not in said.upper():
        raise KeyFault(
            f"{key} holds no {kind} Ed25519 key; `blackfleet provision` makes {PRIVATE_NAME} and "
            f"{PUBLIC_NAME}"
        )
