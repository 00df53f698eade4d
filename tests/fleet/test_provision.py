"""`blackfleet provision`: who gets a certificate, who may what, and what is refused in one line."""

from __future__ import annotations

import logging
import shutil
import stat
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from fleet.provision import openssl
from fleet.provision.access import mosquitto_access
from fleet.provision.command import Wishes, provision, vehicle_names
from fleet.provision.names import identity
from fleet.provision.record import read_record, write_record
from protocol.errors import Mistake
from protocol.mqtt.broker_url import parse_broker_url
from protocol.mqtt.certificates import certificates_in, validity
from protocol.mqtt.credentials import Credentials

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl: install it")


def _provision(folder: Path, **wishes: object) -> list[str]:
    said: list[str] = []
    provision(folder, Wishes(**wishes), said.append)  # type: ignore[arg-type]
    return said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority") / "ids"
    _provision(folder, fleet="demo", vehicles="car-01,car-011")
    return folder


@pytest.fixture
def authority(made: Path, tmp_path: Path) -> Path:
    """One with two vehicles, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "ids"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_adds_vehicles_and_replaces_nothing(authority: Path) -> None:
    before = _contents(authority / "demo")
    said = _provision(authority, fleet="demo", vehicles="car-01,car-011,car-02")
    assert sum("is kept" in line for line in said) == 2
    after = _contents(authority / "demo")
    assert {key: after[key] for key in before} == before
    assert {Path(key).name for key in set(after) - set(before)} == {"car-02.crt", "car-02.key", "car-02.seal"}
    everything = [authority, *authority.rglob("*")]
    assert [path for path in everything if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_what_a_killed_command_left_half_done_is_made_anew(authority: Path) -> None:
    folder = authority / "demo"
    old = (folder / "car-01.crt").read_bytes()
    _provision(authority, renew="car-01")
    # Killed between key and certificate.
    (folder / "car-01.crt").write_bytes(old)
    record = read_record(authority)
    assert record is not None
    latest = msgspec.structs.replace(record.issued[-1], handed_out=False)
    write_record(authority, msgspec.structs.replace(record, issued=(*record.issued[:-1], latest)))
    (authority / ".new-x").mkdir()
    assert any(line.startswith("demo.car-01 until") for line in _provision(authority, vehicles="car-01"))
    parse_broker_url(f"mqtts://host?identity={folder}").as_client("car-01").ssl_context()
    assert not list(authority.rglob(".new-*"))


def test_files_that_were_taken_to_a_car_are_not_made_again(authority: Path) -> None:
    for name in ("car-01.key", "car-01.crt", "cloud.key", "cloud.crt"):
        (authority / "demo" / name).unlink()
    said = _provision(authority, vehicles="car-01")
    assert "is kept" in said[0] and not (authority / "demo" / "cloud.crt").exists()


def test_a_key_can_stay_where_it_was_made(authority: Path, tmp_path: Path) -> None:
    openssl.make_request(tmp_path, "demo.car-05")
    request = tmp_path / "demo.car-05.csr"
    _provision(authority, sign=[request])
    assert not (authority / "demo" / "car-05.key").exists()
    shutil.copy(authority / "demo" / "car-05.crt", tmp_path)
    shutil.copy(authority / "demo" / "ca.crt", tmp_path)
    (tmp_path / "demo.car-05.key").rename(tmp_path / "car-05.key")
    parse_broker_url(f"mqtts://host?identity={tmp_path}").as_client("car-05").ssl_context()
    with pytest.raises(Mistake, match="add --renew car-05 to replace it"):
        _provision(authority, sign=[request])
    with pytest.raises(Mistake, match=r"the key of demo\.car-05 was not made here"):
        _provision(authority, renew="car-05")


def test_who_is_revoked_is_in_the_list_and_has_no_rights(authority: Path) -> None:
    _provision(authority, revoke="car-01")
    broker = authority / "broker"
    assert "user demo.car-01\n" not in (broker / "access.acl").read_text()
    assert "user demo.car-011\n" in (broker / "access.acl").read_text()
    text = subprocess.run(
        ["openssl", "crl", "-in", broker / "revoked.crl", "-noout", "-text"], capture_output=True, text=True
    ).stdout
    assert text.count("Serial Number") == 1
    assert "demo.car-01: revoked" in _provision(authority)
    with pytest.raises(Mistake, match="has no 'car-01' with a certificate; it has cloud"):
        _provision(authority, revoke="car-01")


def test_two_fleets_of_a_broker_share_no_topic(authority: Path) -> None:
    _provision(authority, fleet="other", vehicles="car-01", observers="wall", another_fleet=True)
    blocks = (authority / "broker" / "access.acl").read_text().split("\nuser ")[1:]
    assert len(blocks) == 5 + 5
    for block in blocks:
        fleet = block.partition(".")[0]
        assert all(f"/v1/{fleet}/" in line for line in block.splitlines() if line.startswith("topic"))
    assert sum("write" not in block for block in blocks) == 3, "observers only read"
    assert "+" not in mosquitto_access([identity("demo", "car-01")])


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"fleet": "other", "vehicles": "2"}, "is the authority of fleet demo, not of 'other'"),
        ({"vehicles": "car#1"}, "vehicle id must be 1 to 64 letters"),
        ({"vehicles": "+"}, "vehicle id must be 1 to 64 letters"),
        ({"vehicles": "observer"}, "is a name of those who don't drive"),
        ({"vehicles": "observer-2"}, "is a name of those who don't drive"),
        ({"vehicles": "0"}, "--vehicles must lie between 1 and"),
        ({"vehicles": "v" * 63}, "a certificate's name 64 at most"),
        ({"renew": "car-09"}, "has no 'car-09' with a certificate; it has cloud, operator, observer, car-01"),
        ({"vehicles": "x", "days": 0}, "--days must lie between 1 and 3650, got 0"),
        ({"vehicles": "x", "days": 3650}, "would outlive the authority"),
        ({"hosts": ["a_b"]}, "--broker-host must be a host's name or address"),
        ({"port": 70000}, "--port must lie between"),
        ({"broker_folder": "etc"}, "--broker-folder must be an absolute path"),
        ({"sign": [Path(__file__)]}, "is no sound certificate request"),
    ],
)
def test_what_can_not_be_is_one_line_and_changes_nothing(
    authority: Path, wishes: dict[str, object], reason: str
) -> None:
    before = _contents(authority)
    with pytest.raises(Mistake, match=reason) as refusal:
        _provision(authority, **wishes)
    assert "\n" not in str(refusal.value)
    assert _contents(authority) == before


def test_a_folder_of_other_things_and_one_without_an_authority_are_named(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="holds no authority"):
        _provision(tmp_path / "new")
    (tmp_path / "thing").touch()
    with pytest.raises(Mistake, match="holds other things"):
        _provision(tmp_path, fleet="demo", vehicles="1")


def test_an_authority_that_has_ended_signs_nothing(authority: Path) -> None:
    again = "openssl x509 -in ca.crt -signkey ca.key -days -1 -out ca.crt"
    subprocess.run(again.split(), cwd=authority, check=True, capture_output=True)
    with pytest.raises(Mistake, match=r"ca.crt ended on .*; make one in another folder"):
        _provision(authority, vehicles="car-02")


def test_numbers_are_names_as_in_a_launch() -> None:
    assert vehicle_names("2") == ["car-01", "car-02"]
    assert vehicle_names("100")[0] == "car-001"


# The vehicle's side --------------------------------------------------------------------------------------


def test_a_missing_certificate_is_named_with_those_that_are_there(authority: Path) -> None:
    url = parse_broker_url(f"mqtts://host?identity={authority / 'demo'}")
    with pytest.raises(Mistake, match=r"holds no certificate car-09.crt; it has car-01, car-011, cloud"):
        url.as_client("car-09")


@pytest.mark.parametrize(
    ("days", "words"),
    [(100, None), (9.5, "expires in 9 days"), (1.5, "expires in 1 day;"), (-0.5, "expired on ")],
)
def test_a_certificate_that_ends_is_warned_of_once_a_day(
    authority: Path, caplog: pytest.LogCaptureFixture, days: float, words: str | None
) -> None:
    url = parse_broker_url(f"mqtts://host?identity={authority / 'demo'}").as_client("car-01")
    assert url.cert is not None
    now = validity(certificates_in(url.cert)[0])[1] - timedelta(days=days)
    credentials = Credentials(url, "demo-car-01")
    with caplog.at_level(logging.WARNING):
        left = [credentials.warn(now + timedelta(hours=hours)) for hours in (0, 1, 25)]
    assert left[:2] == [None if words is None else max(0, int(days))] * 2
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (2 if words else 0)
    assert all(f"demo-car-01: certificate {url.cert} " in line for line in said)
    assert not words or words in said[0]


def test_files_that_are_half_replaced_change_nothing_until_they_fit(
    authority: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = parse_broker_url(f"mqtts://host?identity={authority / 'demo'}").as_client("car-01")
    assert url.cert is not None and url.key is not None
    credentials, old = Credentials(url, "demo-car-01"), url.cert.read_bytes()
    _provision(authority, renew="car-01")
    new = url.cert.read_bytes()
    with caplog.at_level(logging.INFO):
        credentials.refresh()
        assert "were replaced, and are in use" in caplog.text
        caplog.clear()
        url.cert.write_bytes(old)  # to a key that is new
        credentials.refresh()
        assert "going on with those that were there" in caplog.text
        caplog.clear()
        url.cert.write_bytes(new)
        credentials.refresh()
        assert "were replaced, and are in use" in caplog.text
    assert datetime.now(timezone.utc) < validity(certificates_in(url.cert)[0])[1]
