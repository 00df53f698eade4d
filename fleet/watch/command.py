"""`blackfleet watch`: shows a run, or a fleet at its broker, until somebody stops it."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from rich.console import Console

from cloud_server.storage.recorders import LOG_NAME
from fleet.errors import OperatorError
from fleet.run.folder import SCENARIO_NAME
from fleet.watch.guard import is_loopback
from fleet.watch.observer import Observer
from fleet.watch.server import WatchServer
from protocol.mqtt.broker_url import BROKER_VARIABLE, parse_broker_url
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.noise import derive_seed
from protocol.session.observing import OBSERVER_NAME, ObserverLink
from protocol.session.topics import (
    STATUS,
    certificate_name,
    check_id,
    client_id,
    topic_filter,
)

_CONNECT_S = 8.0
_WORD_S = 5.0
"""After so long without a word of the fleet, those are named of which there is one."""
_OTHERS_S = 2.0
_EXAMPLE = "mqtt://broker.example:1883/FLEET"


def watch(target: str | None, fleet: str | None, *, host: str, port: int, console: Console) -> None:
    """Show what `target` names, a run's folder or a fleet at a broker; None: the broker of the environment.

    Raises:
        Mistake: it names neither, or can't be shown.
        Interrupted: somebody wants it to stop.
    """
    if target is not None and "://" not in target:
        if fleet is not None:
            raise OperatorError(f"--fleet is for a broker's URL, and {target!r} is a folder; leave it out")
        return watch_run(Path(target), host=host, port=port, console=console)
    url = os.environ.get(BROKER_VARIABLE) if target is None else target
    if url is None:
        raise OperatorError(
            f"nothing to watch; name a run's folder, or a fleet at its broker as {_EXAMPLE} "
            f"(or --fleet with the broker's URL in ${BROKER_VARIABLE})"
        )
    broker_url, fleet = fleet_at(url, fleet)
    watch_fleet(broker_url, fleet, host=host, port=port, console=console)


def fleet_at(url: str, fleet: str | None) -> tuple[str, str]:
    """(the broker's URL, the fleet's name), which is the last level of `url`'s path where it is not given.

    Raises:
        SettingError, OperatorError: it is no broker's URL, or names no fleet.
    """
    broker, parts = parse_broker_url(url), urlsplit(url)
    if fleet is not None:
        if not broker.websocket and parts.path not in ("", "/", f"/{fleet}"):
            raise OperatorError(f"--fleet is {fleet!r}, but the URL ends with {parts.path!r}; leave one out")
        return url, check_id(fleet, "fleet id")
    path, _, fleet = parts.path.rpartition("/")
    if not fleet or (path and not broker.websocket):
        raise OperatorError(f"which fleet is to be watched? End the broker's URL with its name: {_EXAMPLE}")
    return urlunsplit(parts._replace(path=path)), check_id(fleet, "fleet id")


def watch_fleet(broker_url: str, fleet: str, *, host: str, port: int, console: Console) -> None:
    """Listen at a broker, print the page's address and serve it for ever.

    Raises:
        Mistake: the broker can't be reached or refuses this observer, or the address can't be had.
        Interrupted: somebody wants it to stop.
    """
    broker = parse_broker_url(broker_url)
    with NetworkLoop() as loop, tempfile.TemporaryDirectory(prefix="blackfleet-watch-") as folder:
        transport = _listener(broker_url, fleet, loop)
        link = ObserverLink(transport, fleet)
        try:
            link.open(_CONNECT_S)
            said = partial(console.print, soft_wrap=True)
            with (
                Observer(link, Path(folder), said=said) as observer,
                WatchServer(
                    Path(folder), host=host, port=port, title=f"{fleet} at {broker}", has_frames=False
                ) as server,
            ):
                _print_address(server, host, console)
                threading.Event().wait(_WORD_S)
                if not observer.heard_of:
                    # That it is the fleet's name says a certificate of it.
                    said(f"no word of fleet {fleet!r} yet" if broker.identity else no_word(link))
                threading.Event().wait()
        finally:
            transport.close()


def _listener(broker_url: str, fleet: str, loop: NetworkLoop) -> MqttTransport:
    """A session that leaves no will."""
    name = client_id(fleet, OBSERVER_NAME, secrets.token_hex(8))
    seed = derive_seed(name) % 2**32
    parse_broker_url(broker_url).check_is_of(certificate_name(fleet, OBSERVER_NAME))
    return MqttTransport(broker_url, name, loop=loop, identity=OBSERVER_NAME, reconnect_seed=seed)


def no_word(link: ObserverLink) -> str:
    """Why nothing may be heard of a fleet: names the fleets that are there, as far as this user may know."""
    link.listen_for_fleets()
    threading.Event().wait(_OTHERS_S)
    known = f"; fleets that are known there: {', '.join(sorted(link.fleets)[:8])}" if link.fleets else ""
    return (
        f"no word of fleet {link.fleet!r} yet{known}. Is that its name, and may this user read "
        f"{topic_filter(STATUS, link.fleet)}?"
    )


def watch_run(run_folder: Path, *, host: str, port: int, console: Console) -> None:
    """Print the page's address and serve it for ever.

    Raises:
        OperatorError: the folder holds no run, or the address can't be had.
        Interrupted: somebody wants it to stop.
    """
    if not any((run_folder / name).is_file() for name in (LOG_NAME, SCENARIO_NAME)):
        raise OperatorError(f"{run_folder} holds no run: neither {LOG_NAME} nor {SCENARIO_NAME} is there")
    with WatchServer(run_folder, host=host, port=port) as server:
        _print_address(server, host, console)
        threading.Event().wait()


def _print_address(server: WatchServer, host: str, console: Console) -> None:
    if not is_loopback(host):
        console.print(
            "other hosts can reach this page; whoever has its address sees the run's frames, and it "
            "crosses the network in the clear (an SSH tunnel to the loopback would not)",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"watch at {server.address}", soft_wrap=True)
