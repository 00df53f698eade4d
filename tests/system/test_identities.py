"""A fleet in which everybody has a certificate: what another certificate can't do, and new ones meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import pytest
from brokers import skip_without
from process_fixtures import Launch, learnt, wait_for

from fleet import broker
from fleet.provision import openssl
from fleet.provision.command import Wishes, provision
from protocol import messages
from protocol.session import topics
from protocol.session.parts import whole_message
from protocol.session.seal import without_seal

pytestmark = pytest.mark.timeout(300)

TOPICS = "blackfleet/v1"


class Client:
    """What anybody can write with a library, who has a certificate."""

    def __init__(self, port: int, folder: Path, name: str, client_id: str = "") -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.up = False
        self._settled = threading.Event()
        self._acknowledged = threading.Semaphore(0)
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id)
        certificate = folder / f"{name}.crt" if name else None
        self._client.tls_set(folder / "ca.crt", certificate, certificate and certificate.with_suffix(".key"))
        self._client.on_message = lambda _c, _d, message: self.heard.append((message.topic, message.payload))
        self._client.on_connect = lambda *_: self._settle(True)
        self._client.on_disconnect = lambda *_: self._settle(False)
        self._client.on_publish = lambda *_: self._acknowledged.release()
        self._client.on_subscribe = lambda *_: self._acknowledged.release()
        self._client.connect("localhost", port)
        self._client.loop_start()
        # A broker that wants none of it says so after the handshake, in TLS 1.3.
        assert self._settled.wait(20)

    def _settle(self, up: bool) -> None:
        self.up = up
        self._settled.set()

    def subscribe(self, *filters: str) -> None:
        for each in filters:
            self._client.subscribe(each, 1)
            assert self._acknowledged.acquire(timeout=20)

    def publish(self, topic: str, payload: bytes) -> None:
        """Returns when the broker has it, which says nothing of whom it gives it to."""
        self._client.publish(topic, payload, 1)
        assert self._acknowledged.acquire(timeout=20)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def connects(port: int, folder: Path, name: str) -> bool:
    """Whether a broker lets somebody in."""
    try:
        client = Client(port, folder, name)
    except (ssl.SSLError, ConnectionError):
        return False
    try:
        return client.up
    finally:
        client.close()


def days_told(witness: Client) -> set[int | None]:
    """What the statuses of car-01 have told of its certificate's end."""
    decode = msgspec.msgpack.Decoder(messages.Status).decode
    heard = [payload for topic, payload in witness.heard if topic == f"{TOPICS}/demo/car-01/status"]
    told = (whole for whole in map(whole_message, heard) if whole is not None)
    return {decode(without_seal(topics.STATUS, "car-01", whole)).certificate_days for whole in told}


@contextlib.contextmanager
def stopped(process_id: int) -> Iterator[None]:
    """A process does nothing in the body."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGCONT)


@pytest.fixture
def identities(tmp_path: Path) -> Path:
    """An authority for three vehicles of a fleet, two of which drive, and one of another fleet."""
    skip_without("mosquitto")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: install it")
    folder = tmp_path / "ids"
    for wishes in (
        Wishes(fleet="demo", vehicles="3", port=broker.free_port()),
        Wishes(fleet="other", vehicles="car-01", another_fleet=True),
    ):
        provision(folder, wishes, lambda _: None)
    return folder


@pytest.fixture
def guarded(identities: Path) -> Iterator[Callable[[], None]]:
    """mosquitto as `identities` configures it; gives what makes it read its files again."""
    program = broker.find_mosquitto()
    assert program is not None
    process = subprocess.Popen(
        [program, "-c", identities / "broker" / "mosquitto.conf"], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: connects(port_of(identities), identities / "demo", "operator"), "the broker is up")
        yield lambda: process.send_signal(signal.SIGHUP)
    finally:
        process.kill()
        process.wait()


def port_of(identities: Path) -> int:
    [line] = [
        line
        for line in (identities / "broker" / "mosquitto.conf").read_text().splitlines()
        if line.startswith("listener")
    ]
    return int(line.split()[1])


def strangers_folder(folder: Path, trusted: Path) -> Path:
    """A certificate with the cloud's name, by an authority of one's own."""
    folder.mkdir()
    openssl.make_authority(folder, "blackfleet demo", 1)
    openssl.make_request(folder, "demo.cloud")
    openssl.sign(folder, folder / "demo.cloud.csr", folder / "cloud.crt", serial=1, days=1)
    (folder / "demo.cloud.key").rename(folder / "cloud.key")
    shutil.copy(trusted, folder / "ca.crt")
    return folder


def test_a_certificate_is_good_for_its_own_vehicle_and_new_ones_are_taken_in_the_middle_of_a_run(
    identities: Path, guarded: Callable[[], None], reference: Launch, tmp_path: Path
) -> None:
    port, demo, other = port_of(identities), identities / "demo", identities / "other"
    launch = Launch(tmp_path / "run", reference.scenario)
    with contextlib.ExitStack() as stack:
        stack.callback(launch.stop)

        def client(folder: Path, name: str, client_id: str = "") -> Client:
            made = Client(port, folder, name, client_id)
            stack.callback(made.close)
            assert made.up
            return made

        others = f"{TOPICS}/demo/car-01"

        def intruder(client_id: str) -> Client:
            """The certificate of another vehicle; listens to all that there is."""
            made = client(demo, "car-03", client_id)
            made.subscribe("#", f"{others}/down", f"{TOPICS}/demo/+/down", f"{TOPICS}/demo/+/up")
            made.subscribe(f"{TOPICS}/other/#", f"{TOPICS}/other/car-03/down")
            return made

        intruders = [intruder("demo.car-01")]
        launch.start("--broker", f"mqtts://localhost:{port}?identity={demo}", "--fleet", "demo")
        launch.until("turn", stage=1)
        # All that follows is in the middle of a turn, however fast the fleet.
        with stopped(launch.ids()["cloud"]):
            # Now: the launcher has tried the broker as operator, and one name is one session.
            witnesses = [client(demo, "operator"), client(other, "operator")]
            for witness, fleet in zip(witnesses, ("demo", "other"), strict=True):
                witness.subscribe(f"{TOPICS}/{fleet}/#")

            # As another vehicle, as the cloud, in another fleet, and whatever it calls itself.
            for client_id in ("demo.car-01", "demo.cloud"):
                intruders[-1].close()
                intruders.append(intruder(client_id))
                for topic in (
                    *(f"{others}/{channel}" for channel in ("up", "status", "down")),
                    *(f"{TOPICS}/demo/cloud/{channel}" for channel in ("status", "events")),
                    f"{TOPICS}/demo/car-03/down",
                    *(f"{TOPICS}/other/car-03/{channel}" for channel in ("up", "status", "down")),
                    f"{TOPICS}/other/cloud/status",
                ):
                    intruders[-1].publish(topic, b"forged")
            intruders[-1].publish(f"{TOPICS}/demo/car-03/up", b"last")
            # Whatever it forged would have arrived before its last word.
            wait_for(lambda: (f"{TOPICS}/demo/car-03/up", b"last") in witnesses[0].heard, "the last word")
            stranger = strangers_folder(tmp_path / "stranger", demo / "ca.crt")
            assert not connects(port, stranger, "cloud")
            assert not connects(port, demo, "")

            log = launch.run_folder / "processes" / "host-01.log"
            assert " lost: " not in log.read_text()

            # A vehicle's key is lost: its certificates are taken back, it gets a new one; so does the broker.
            lost = tmp_path / "lost"
            shutil.copytree(demo, lost)
            provision(
                identities,
                Wishes(fleet="demo", revoke="car-01,car-03", vehicles="car-01", renew="broker", days=9),
                lambda _: None,
            )
            guarded()
            wait_for(lambda: not connects(port, lost, "car-01"), "the lost certificate is refused")
            # Whoever is revoked and still connected has nothing to say any more.
            intruders[-1].publish(f"{TOPICS}/demo/car-03/up", b"forged")
            # The same client again ends the vehicle's connection, which comes back with what its files hold.
            client(demo, "car-01").close()
            wait_for(lambda: "is back after" in log.read_text(), "the vehicle is back")
            assert "files were replaced, and are in use" in log.read_text()
            # The new one ends soon, which the vehicle says in its log, and to the cloud in its status.
            wait_for(lambda: 8 in days_told(witnesses[0]), "the status tells of the end")
            for whose in (f"certificate {demo}/car-01.crt", "the broker's certificate"):
                assert f"{whose} expires in 8 days" in log.read_text()
        launch.complete()

    for witness in witnesses:
        assert [topic for topic, payload in witness.heard if payload == b"forged"] == []
    assert {topic for each in intruders for topic, _ in each.heard} == {f"{TOPICS}/demo/cloud/status"}
    said = (launch.run_folder / "processes" / "cloud.log").read_text()
    assert " lost: " not in said
    assert said.count("car-01: its certificate ends in 8 days") == 1
    assert learnt(launch.run_folder) == learnt(reference.run_folder)
