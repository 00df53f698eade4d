"""Whether a broker runs here, or can be reached, and whether ports are free."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from fleet.doctor.certificates import check_certificate_file, check_certificate_of
from fleet.doctor.finding import Finding
from protocol.mqtt.certificates import certificates_in, common_name

_START_S = 20.0
_END_S = 5.0
_FLEET = "doctor"
_ABOUT = "broker"


def check_own_broker() -> Iterator[Finding]:
    """Start the broker that a launch would start, on a free port of the loopback interface, and see."""
    try:
        from fleet import broker
        from protocol.errors import MENDABLE
    except ImportError:
        return
    try:
        kind = broker.choose_kind()
        with tempfile.TemporaryDirectory() as folder:
            port = broker.free_port()
            process = subprocess.Popen(
                broker.broker_command(kind, port, Path(folder)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            try:
                broker.wait_ready(broker.HOST, port, _START_S)
            except MENDABLE as error:
                process.terminate()
                said = (process.stderr.read() if process.stderr else b"").decode(errors="replace").split()
                yield Finding(
                    about=_ABOUT,
                    state="wrong",
                    found=f"{kind} does not start: {' '.join(said) or error}"[:300],
                    advice="install it anew, or name your own broker with --broker",
                )
                return
            finally:
                process.terminate()
                try:
                    process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    except MENDABLE as error:
        yield Finding(
            about=_ABOUT,
            state="wrong",
            found=str(error),
            advice="sudo apt install mosquitto, or pip install amqtt",
        )
        return
    is_slow = kind == "amqtt"
    yield Finding(
        about=_ABOUT,
        state="note" if is_slow else "ok",
        found=f"{kind}{_version(kind)} starts and answers on {broker.HOST}",
        advice="a faster one: sudo apt install mosquitto" if is_slow else "",
    )


def check_broker(url: str) -> Iterator[Finding]:
    """Reach a broker of one's own as a fleet does, and look at the dates of all certificates on the way.

    Raises:
        SettingError: it is no broker URL.
    """
    try:
        from fleet.provision.names import OPERATOR, parse_common_name
        from fleet.run.reach import check_reach, check_session
        from protocol.mqtt.broker_url import parse_broker_url
    except ImportError:
        return
    from protocol.errors import MENDABLE

    parsed = parse_broker_url(url)
    whose = _whose(parsed.identity)
    parsed = parsed.as_client(whose)
    for file in dict.fromkeys(file for file in (parsed.ca, parsed.cert) if file is not None):
        yield from check_certificate_file(file)
    if parsed.tls:
        yield from check_certificate_of(parsed.host, parsed.port)
    try:
        client = parse_common_name(_named(parsed.cert)) if whose else None
        if client is None or client.name == OPERATOR:
            check_reach(url, client.fleet if client else _FLEET, _START_S)
            does = "takes messages and hands them on"
        else:
            check_session(url, whose, _START_S)
            does = f"lets {client} in"
    except MENDABLE as error:
        yield Finding(
            about=_ABOUT, state="wrong", found=str(error), advice="see to the broker, or to its URL"
        )
    else:
        yield Finding(about=_ABOUT, state="ok", found=f"{parsed} {does}")


def _whose(folder: Path | None) -> str:
    """Whose certificate of a folder is tried: the operator's, or, as on a car, the only one; else empty.

    Raises:
        SettingError: several clients have one there, and none is the operator.
    """
    from fleet.provision.names import OPERATOR
    from protocol.errors import SettingError

    if folder is None:
        return ""
    names = sorted(path.stem for path in folder.glob("*.crt") if path.name != "ca.crt")
    if len(names) == 1 or OPERATOR in names:
        return OPERATOR if OPERATOR in names else names[0]
    has = ", ".join(names[:8]) or "none"
    raise SettingError(
        f"identity={folder} must hold the operator's certificate, or one alone as on a car; it has {has}"
    )


def _named(certificate: Path | None) -> str:
    assert certificate is not None
    return common_name(certificates_in(certificate)[0])


def check_port(port: int) -> Finding:
    """Whether a port of the loopback interface is free."""
    with socket.socket() as probe:
        # As the brokers do: connections of an earlier one that linger must not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding(
                about=f"port {port}",
                state="wrong",
                found=f"can't be used: {error.strerror}",
                advice="stop what holds it (ss -ltnp says what), or choose another port",
            )
    return Finding(about=f"port {port}", state="ok", found="free")


def _version(kind: str) -> str:
    """With a space before it; empty where it does not say."""
    if kind == "amqtt":
        return f" {metadata.version(kind)}"
    from fleet.broker import find_mosquitto

    said = subprocess.run([find_mosquitto() or kind, "-h"], capture_output=True, text=True, timeout=_START_S)
    match = re.search(r"mosquitto version (\S+)", said.stdout + said.stderr)
    return f" {match.group(1)}" if match else ""
