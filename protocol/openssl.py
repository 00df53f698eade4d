"""The program `openssl`, run: certificates and signatures without a library of cryptography."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from protocol.errors import Mistake

_TIMEOUT_S = 60.0


class OpensslError(Mistake):
    """The program is not installed, or says no."""


def run_openssl(*arguments: str, folder: Path, text: str = "") -> str:
    """Both outputs of the program, run in `folder`; what it writes is its owner's alone, from the start.

    Raises:
        OpensslError: it is not installed, or says no.
    """
    program = shutil.which("openssl")
    if program is None:
        raise OpensslError("the program openssl is not installed, which makes keys: sudo apt install openssl")
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_S,
        umask=0o077,
    )
    if done.returncode:
        raise OpensslError(f"openssl {arguments[0]} failed: {' '.join(done.stderr.split())[:300]}")
    return done.stdout + done.stderr
