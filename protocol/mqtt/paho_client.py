"""A client of the paho library, as `protocol.mqtt.transport` wants it."""

from __future__ import annotations

from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from protocol.mqtt.credentials import Credentials
from protocol.mqtt.sockets import prepare_socket
from protocol.session.transport import Will

_CONNECTION_TIMEOUT_S = 4.0
_SESSION_KEPT_S = 600


def make_client(
    credentials: Credentials,
    client_id: str,
    will: Will | None,
    keepalive_s: float,
    max_in_flight: int,
) -> paho.Client:
    """A client that neither reconnects nor writes by itself; nothing is sent before its `reconnect`."""
    url = credentials.url
    mqtt_5 = url.version == "5"
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if mqtt_5 else True,
        protocol=MQTTProtocolVersion.MQTTv5 if mqtt_5 else MQTTProtocolVersion.MQTTv311,
        transport="websockets" if url.websocket else "tcp",
        reconnect_on_failure=False,  # when a broker refuses 3.1.1, paho would reconnect and block the loop
    )
    if url.websocket:
        client.ws_set_options(path=url.path)
    if credentials.context is not None:
        client.tls_set_context(credentials.context)
    if url.username is not None:
        client.username_pw_set(url.username, url.password)
    if will is not None:
        client.will_set(will.topic, will.payload, will.qos, will.retain)
    client.max_inflight_messages_set(max_in_flight)
    client.connect_timeout = _CONNECTION_TIMEOUT_S

    def opened(_client: object, _data: object, sock: Any) -> None:
        prepare_socket(sock)
        credentials.note_broker(sock)

    client.on_socket_open = opened
    # Without it, paho writes in whatever thread publishes.
    client.on_socket_register_write = lambda *_: None
    client.connect_async(
        url.host,
        url.port,
        round(keepalive_s),
        clean_start=paho.MQTT_CLEAN_START_FIRST_ONLY,
        properties=session_kept_for(_SESSION_KEPT_S) if mqtt_5 else None,
    )
    return client


def session_kept_for(seconds: int) -> Properties:
    """For how long the broker keeps what this client misses while it is away; MQTT 3.1.1 can't say."""
    # What another process has left is never found: client ids hold the session.
    kind = PacketTypes.CONNECT if seconds else PacketTypes.DISCONNECT
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = seconds
    return properties
