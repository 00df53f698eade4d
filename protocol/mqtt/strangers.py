"""Whether a broker lets strangers speak: then anybody who reaches it can end vehicles and runs."""

from __future__ import annotations

import ipaddress
import secrets
import threading
from dataclasses import replace

from protocol.errors import SettingError
from protocol.mqtt.broker_url import parse_broker_url
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session import topics
from protocol.session.transport import BrokerUnreachable

_CONNECT_S, _ECHO_S = 2.0, 1.0


def warning_of_strangers(url: str, fleet: str, loop: NetworkLoop, *, are_sealed: bool = False) -> str:
    """What to tell whoever starts a fleet at this broker; empty where strangers may not speak, or only those
    who are on this machine. Where messages `are_sealed` they can speak, and nobody heeds them."""
    parsed = parse_broker_url(url)
    if _is_loopback(parsed.host) or not lets_strangers_speak(url, fleet, loop):
        return ""
    if are_sealed:
        return (
            f"{parsed} lets anybody listen and speak: who reaches it reads features and labels, and can keep "
            f"vehicles from being heard; give it certificates and an access list (blackfleet provision)"
        )
    return (
        f"{parsed} lets anybody speak in the name of cloud and vehicles: who reaches it can end them, and "
        f"reads features and labels; give it certificates and an access list (blackfleet provision)"
    )


def lets_strangers_speak(url: str, fleet: str, loop: NetworkLoop) -> bool:
    """Whether who has neither login nor certificate hears what he says in the name of a vehicle.

    The name is of no fleet's vehicle, and what is said is empty and not kept.
    """
    stranger = replace(
        parse_broker_url(url), username=None, password=None, identity=None, cert=None, key=None
    ).without_login()
    name = f"stranger-{secrets.token_hex(4)}"
    topic, heard = topics.topic(topics.DOWN, fleet, name), threading.Event()
    transport = MqttTransport(stranger, topics.client_id(fleet, name, secrets.token_hex(8)), loop=loop)
    try:
        transport.subscribe(topic, lambda delivery: heard.set())
        transport.connect(_CONNECT_S)
        transport.publish(topic, b"")
        return heard.wait(_ECHO_S)
    except (BrokerUnreachable, SettingError):
        return False
    finally:
        transport.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
