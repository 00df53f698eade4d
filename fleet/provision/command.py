"""`blackfleet provision`: what is asked for, done in the order that lets one command replace a client."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from fleet.errors import OperatorError
from fleet.provision.authority import AUTHORITY_DAYS, BROKER_FOLDER, DAYS, Authority, opened, requested
from fleet.provision.names import BROKER, BROKERS, MORE_OBSERVERS, RESERVED, Identity, identity
from fleet.provision.record import RECORD_NAME, Record, read_record
from protocol.seal_files import SUFFIX
from protocol.session.topics import check_id, check_vehicle_id
from protocol.update_signature import PUBLIC_NAME

DEFAULT_HOSTS = ("localhost", "127.0.0.1")
DEFAULT_PORT = 8883
_MOST_VEHICLES = 10_000
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")
_SOON_DAYS = 30


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The command's options."""

    fleet: str | None = None
    vehicles: str | None = None
    observers: str | None = None
    hosts: Sequence[str] = ()
    port: int | None = None
    broker_folder: str | None = None
    days: int = DAYS
    sign: Sequence[Path] = ()
    renew: str | None = None
    revoke: str | None = None
    another_fleet: bool = False

    @property
    def only_looks(self) -> bool:
        """Whether nothing is to be made."""
        made = (self.vehicles, self.observers, self.port, self.broker_folder, self.renew, self.revoke)
        return not (any(each is not None for each in made) or self.hosts or self.sign or self.another_fleet)


def provision(folder: Path, wishes: Wishes, say: Callable[[str], None]) -> None:
    """Make, renew or revoke what `wishes` name, and write out what the broker reads; or say what there is.

    Raises:
        Mistake, OSError: one line that says what to do.
    """
    if not 1 <= wishes.days <= AUTHORITY_DAYS:
        raise OperatorError(f"--days must lie between 1 and {AUTHORITY_DAYS}, got {wishes.days}")
    _check_place(wishes)
    known = read_record(folder)
    if known is None and wishes.only_looks:
        raise OperatorError(
            f"{folder} holds no authority: no {RECORD_NAME}; make one with --fleet and --vehicles"
        )
    fleet = _fleet(folder, wishes, known)
    # All names are looked at before anything is made.
    observers = [f"{MORE_OBSERVERS}{name}" for name in _names(wishes.observers)]
    named = [identity(fleet, name) for name in (*vehicle_names(wishes.vehicles), *observers)]
    requests = [(path, _requester(path, fleet)) for path in wishes.sign]
    first = None
    if known is None and not wishes.only_looks:
        if not named and not requests:
            raise OperatorError(
                f"{folder} is new; name its vehicles, for instance --vehicles 3 or --vehicles car-01,car-02"
            )
        first = Record(
            fleets=(fleet,),
            hosts=tuple(wishes.hosts) or DEFAULT_HOSTS,
            port=wishes.port or DEFAULT_PORT,
            broker_folder=wishes.broker_folder,
        )
    with opened(folder, first) as authority:
        if wishes.only_looks:
            _show(authority, fleet if wishes.fleet else None, say)
            return
        revoked = [_known(authority, fleet, name) for name in _names(wishes.revoke)]
        renewed = [_known(authority, fleet, name, and_broker=True) for name in _names(wishes.renew)]
        _check_requests(authority, requests, renewed, revoked)
        _set_place(authority, fleet, wishes)
        for each in revoked:
            authority.revoke(each)
            say(f"{each} is revoked")
        always = [BROKERS, *(Identity(fleet, name) for name in RESERVED)]
        for each in dict.fromkeys([*always, *named]):
            if each not in renewed and not authority.has(each):
                _issue(authority, each, wishes.days, say)
            elif each in named and each not in renewed:
                say(f"{each} is kept, {_until(authority, each)} (--renew {each.name} makes a new one)")
        signed = [whose for _, whose in requests]
        for each in renewed:
            if each not in signed:
                _issue(authority, each, wishes.days, say)
        for path, whose in requests:
            out = authority.sign(path, whose, wishes.days)
            more = ("ca.crt", PUBLIC_NAME, f"{whose.name}{SUFFIX}")
            others = " and ".join(str(out.with_name(name)) for name in more)
            say(f"{whose} until {_day(authority, whose)}: take {out}, {others} to where its key is")
        authority.write_out()
        _say_next(authority, fleet, say)


def vehicle_names(text: str | None) -> list[str]:
    """The vehicles that an option names: `3` stands for car-01 to car-03, as in a launch.

    Raises:
        SettingError, OperatorError: none could be called so.
    """
    names = _names(text)
    if len(names) == 1 and names[0].isascii() and names[0].isdigit():
        count = int(names[0])
        if not 1 <= count <= _MOST_VEHICLES:
            raise OperatorError(f"--vehicles must lie between 1 and {_MOST_VEHICLES}, got {count}")
        width = max(2, len(names[0]))
        names = [f"car-{number:0{width}d}" for number in range(1, count + 1)]
    for name in names:
        if check_vehicle_id(name) in RESERVED or name.startswith(MORE_OBSERVERS):
            raise OperatorError(f"{name!r} is a name of those who don't drive; name the vehicle otherwise")
    return names


def _names(text: str | None) -> list[str]:
    return [] if text is None else list(dict.fromkeys(name.strip() for name in text.split(",")))


def _fleet(folder: Path, wishes: Wishes, known: Record | None) -> str:
    there = known.fleets if known is not None else ()
    if wishes.fleet is None:
        if len(there) == 1 or (there and wishes.only_looks):
            return there[0]
        raise OperatorError(f"which fleet? --fleet {' or '.join(there) or 'NAME'}")
    if check_id(wishes.fleet, "fleet id") == BROKER:
        raise OperatorError(f"{BROKER!r} is the broker's own name; name the fleet otherwise")
    if there and wishes.fleet not in there and not wishes.another_fleet:
        raise OperatorError(
            f"{folder} is the authority of fleet {' and '.join(there)}, not of {wishes.fleet!r}; choose "
            "another folder, or add --another-fleet for one more on the same broker"
        )
    return wishes.fleet


def _check_place(wishes: Wishes) -> None:
    for host in wishes.hosts:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            if not _HOST.fullmatch(host):
                raise OperatorError(
                    f"--broker-host must be a host's name or address, as broker.example, got {host!r}"
                ) from None
    if wishes.port is not None and not 0 < wishes.port < 65536:
        raise OperatorError(f"--port must lie between 1 and 65535, got {wishes.port}")
    where = wishes.broker_folder
    if where is not None and (not Path(where).is_absolute() or re.search(r"\s", where)):
        raise OperatorError(f"--broker-folder must be an absolute path without blanks, got {where!r}")


def _requester(request: Path, fleet: str) -> Identity:
    whose = requested(request)
    if whose.fleet != fleet:
        raise OperatorError(f"{request} asks for {whose}, which is no name of fleet {fleet}")
    if whose.role != "vehicle":
        raise OperatorError(f"{request} asks to be {whose}: by request, certificates are for vehicles alone")
    return whose


def _check_requests(
    authority: Authority,
    requests: Sequence[tuple[Path, Identity]],
    renewed: Sequence[Identity],
    revoked: Sequence[Identity],
) -> None:
    asking = {whose for _, whose in requests}
    for path, whose in requests:
        if authority.has(whose) and whose not in renewed and whose not in revoked:
            raise OperatorError(
                f"{path} asks for {whose}, which has a certificate until {_day(authority, whose)}; "
                f"add --renew {whose.name} to replace it"
            )
    for whose in renewed:
        if whose not in asking and authority.keeps_its_key(whose):
            raise OperatorError(
                f"the key of {whose} was not made here; renew it by a request made with it: --sign FILE"
            )


def _known(authority: Authority, fleet: str, name: str, *, and_broker: bool = False) -> Identity:
    if and_broker and name == BROKER:
        return BROKERS
    known = authority.record.known(fleet)
    for each in known:
        if each.name == name:
            return each
    names = ", ".join(each.name for each in known[:8]) + (", …" if len(known) > 8 else "")
    raise OperatorError(f"fleet {fleet} has no {name!r} with a certificate; it has {names}")


def _set_place(authority: Authority, fleet: str, wishes: Wishes) -> None:
    before = authority.record
    fleets = before.fleets if fleet in before.fleets else (*before.fleets, fleet)
    record = msgspec.structs.replace(
        before,
        fleets=fleets,
        hosts=tuple(wishes.hosts) or before.hosts,
        port=wishes.port or before.port,
        broker_folder=wishes.broker_folder or before.broker_folder,
    )
    if record.hosts != before.hosts:
        record = record.with_revoked(BROKERS)  # its certificate names the hosts
    if record != before:
        authority.change(record)


def _issue(authority: Authority, whose: Identity, days: int, say: Callable[[str], None]) -> None:
    authority.issue(whose, days)
    say(f"{whose} until {_day(authority, whose)}")


def _day(authority: Authority, whose: Identity) -> str:
    latest = authority.record.latest(whose)
    return f"{latest.until:%Y-%m-%d}" if latest is not None else "?"


def _until(authority: Authority, whose: Identity) -> str:
    """`until 2027-11-26`, or that it has ended, or how soon."""
    latest = authority.record.latest(whose)
    if latest is None:
        return "revoked"
    days = (latest.until - datetime.now(timezone.utc)).days
    soon = f" ({days} days left)" if 0 <= days < _SOON_DAYS else ""
    return f"{'ended on' if days < 0 else 'until'} {latest.until:%Y-%m-%d}{soon}"


def _show(authority: Authority, fleet: str | None, say: Callable[[str], None]) -> None:
    say(f"authority of {', '.join(authority.record.fleets)}, until {authority.until:%Y-%m-%d}")
    for whose in dict.fromkeys(each.identity for each in authority.record.issued):
        if fleet is None or whose.fleet in (fleet, ""):
            say(f"{whose}: {_until(authority, whose)}")


def _say_next(authority: Authority, fleet: str, say: Callable[[str], None]) -> None:
    record, broker = authority.record, authority.folder / BROKER_FOLDER
    configuration = shlex.quote(str(broker / "mosquitto.conf"))
    url = f"mqtts://{record.hosts[0]}:{record.port}?identity={authority.fleet_folder(fleet)}"
    if record.broker_folder is not None:
        say(f"broker: copy {broker} to {record.broker_folder} of its machine, readable by mosquitto's user")
    else:
        say(f"broker: mosquitto -c {configuration}; one that runs reads its files again at kill -HUP")
    say(
        f"clients: --broker {shlex.quote(url)}; a car needs its own .crt, .key and {SUFFIX}, ca.crt and "
        f"{PUBLIC_NAME} in a folder"
    )
