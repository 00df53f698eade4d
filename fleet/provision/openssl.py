"""What the program `openssl` does for an authority: keys, requests, certificates, lists of revoked ones.

Keys are of the curve P-256: made in milliseconds, on a Jetson, too, and known to every broker.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from fleet.errors import OperatorError
from protocol.openssl import OpensslError, run_openssl

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_CLIENT = (
    "basicConstraints=critical,CA:FALSE",
    "keyUsage=critical,digitalSignature",
    "extendedKeyUsage=clientAuth",
    "subjectKeyIdentifier=hash",
    "authorityKeyIdentifier=keyid",
)
_SERVER = tuple(line.replace("clientAuth", "serverAuth") for line in _CLIENT)
"""Who has a client's certificate can't pass for the broker, nor the broker for a client."""
_NEVER = "99991231235959Z"


def make_authority(folder: Path, name: str, days: int) -> None:
    """`ca.key` and `ca.crt` in `folder`: an authority that signs clients and brokers, and no other one."""
    _run(
        *("req", "-x509", *NEW_KEY, "-days", str(days), "-subj", f"/CN={name}", "-config", "-"),
        *("-keyout", "ca.key", "-out", "ca.crt"),
        folder=folder,
        # A configuration of its own: the system's adds extensions of its own.
        text="[req]\ndistinguished_name=name\nx509_extensions=authority\n[name]\n[authority]\n"
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier=hash\n",
    )


def make_request(folder: Path, name: str) -> None:
    """A new key, `NAME.key`, and `NAME.csr`, which asks for a certificate for it."""
    _run(
        *("req", "-new", *NEW_KEY, "-subj", f"/CN={name}", "-config", "-"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        folder=folder,
        text="[req]\ndistinguished_name=name\n[name]\n",
    )


def sign(
    authority: Path, request: Path, certificate: Path, *, serial: int, days: int, hosts: Sequence[str] = ()
) -> None:
    """Write `certificate` for `request`, by the authority in a folder; a broker's where there are `hosts`."""
    lines = [*_SERVER, _alternative_names(hosts)] if hosts else list(_CLIENT)
    with tempfile.NamedTemporaryFile("w", suffix=".ext") as extensions:
        extensions.write("\n".join(lines) + "\n")
        extensions.flush()
        _run(
            *("x509", "-req", "-in", str(request.absolute()), "-CA", "ca.crt", "-CAkey", "ca.key", "-sha256"),
            *("-set_serial", str(serial), "-days", str(days), "-extfile", extensions.name),
            *("-out", str(certificate.absolute())),
            folder=authority,
        )


def requested_name(request: Path) -> str:
    """The common name that a request asks for.

    Raises:
        OperatorError: it is no request, or was not signed with the key that it is about.
    """
    try:
        request.read_bytes()  # a file that can't be read says so itself
        said = _run("req", "-in", str(request.absolute()), "-verify", "-noout", "-subject", folder=Path())
    except OperatorError as error:
        raise OperatorError(f"{request} is no sound certificate request: {_reason(error)}") from error
    match = re.search(r"^subject=\s*(.*)$", said, re.MULTILINE)
    names = re.fullmatch(r"/?CN\s*=\s*([^,/+=]*)", match.group(1).strip()) if match else None
    if names is None:
        asked = match.group(1) if match else "no name"
        raise OperatorError(f"{request} asks for {asked!r}; its subject must be /CN=FLEET.VEHICLE")
    return names.group(1).strip()


def make_revoked_list(
    authority: Path, out: Path, revoked: Sequence[tuple[int, datetime, str]], days: int
) -> None:
    """Write the list of revoked certificates: (serial number, since when, common name) of each."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index")
        index.write_text(
            "".join(
                f"R\t{_NEVER}\t{since.astimezone(timezone.utc):%y%m%d%H%M%SZ}\t{_hex(serial)}\tunknown\t/CN={name}\n"
                for serial, since, name in revoked
            )
        )
        Path(folder, "number").write_text(_hex(int(datetime.now(timezone.utc).timestamp())) + "\n")
        Path(folder, "config").write_text(
            f"[ca]\ndefault_ca=ours\n[ours]\ndatabase={index}\ncrlnumber={folder}/number\ndefault_md=sha256\n"
        )
        _run(
            *(
                "ca",
                "-gencrl",
                "-config",
                str(Path(folder, "config")),
                "-keyfile",
                "ca.key",
                "-cert",
                "ca.crt",
            ),
            *("-crldays", str(days), "-out", str(out.absolute())),
            folder=authority,
        )


def _alternative_names(hosts: Sequence[str]) -> str:
    kinds = ("IP" if re.fullmatch(r"[0-9.]+|.*:.*", host) else "DNS" for host in hosts)
    return "subjectAltName=" + ",".join(f"{kind}:{host}" for kind, host in zip(kinds, hosts, strict=True))


def _hex(number: int) -> str:
    digits = f"{number:X}"
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def _run(*arguments: str, folder: Path, text: str = "") -> str:
    """Both outputs of the program, run in `folder`.

    Raises:
        OperatorError: it is not installed, or says no.
    """
    try:
        return run_openssl(*arguments, folder=folder, text=text)
    except OpensslError as error:
        raise OperatorError(str(error)) from error


def _reason(error: OperatorError) -> str:
    return str(error).partition(": ")[2] or str(error)
