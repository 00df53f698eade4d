"""Whether a fleet could talk over a broker of the user's, found out before anything is started."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

from fleet.errors import OperatorError
from fleet.provision.names import OPERATOR
from protocol.mqtt.broker_url import parse_broker_url
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session.topics import DOWN, PREFIX, STATUS, UP, certificate_name, client_id, topic
from protocol.session.transport import Delivery

_CONNECT_S = 5.0
_ECHO_S = 5.0


def check_reach(url: str, fleet: str, patience_s: float, clients: Sequence[str] = ()) -> None:
    """Connect, subscribe as vehicles and cloud do, and see whether what is said on their topics comes back.

    Where a folder holds certificates, it must have one for each of `clients` and for the operator.
    What it says is empty and of a vehicle that no fleet has; nothing is kept by the broker.

    Raises:
        SettingError: a certificate is missing, or of another fleet.
        BrokerUnreachable: no session, or a subscription is refused.
        OperatorError: the broker takes messages and does not hand them on.
    """
    for client in (OPERATOR, *clients):
        parse_broker_url(url).check_is_of(certificate_name(fleet, client))
    name = f"reach-{secrets.token_hex(4)}"
    topics = {topic(channel, fleet, name): channel.name for channel in (UP, DOWN, STATUS)}
    missing, all_there = dict(topics), threading.Event()

    def hear(delivery: Delivery) -> None:
        missing.pop(delivery.topic, None)
        if not missing:
            all_there.set()

    with NetworkLoop() as loop:
        session = client_id(fleet, name, secrets.token_hex(8))
        transport = MqttTransport(url, session, loop=loop, identity=OPERATOR)
        try:
            for each in topics:
                transport.subscribe(each, hear)
            transport.connect(min(patience_s, _CONNECT_S))
            for each in topics:
                transport.publish(each, b"")
            if not all_there.wait(_ECHO_S):
                channels = ", ".join(missing.values())
                raise OperatorError(
                    f"{parse_broker_url(url)} takes messages and does not hand them on ({channels}); "
                    f"let this user write and read {PREFIX}/{fleet}/# (the broker's access list)"
                )
        finally:
            transport.close()


def check_session(url: str, identity: str, patience_s: float) -> None:
    """Connect as somebody who may not say and hear all, a vehicle for instance.

    Raises:
        SettingError, BrokerUnreachable: its certificate is missing; no session.
    """
    with NetworkLoop() as loop:
        session = client_id("reach", identity, secrets.token_hex(8))
        transport = MqttTransport(url, session, loop=loop, identity=identity)
        try:
            transport.connect(min(patience_s, _CONNECT_S))
        finally:
            transport.close()
