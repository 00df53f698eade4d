"""From a broker's URL to the transports of a process."""

from __future__ import annotations

from collections.abc import Callable

from protocol.mqtt.broker_url import parse_broker_url
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.noise import derive_seed
from protocol.session import topics
from protocol.session.link import Connect
from protocol.session.transport import Transport, Will


def connector(url: str, loop: NetworkLoop) -> Connect:
    """A factory of MQTT transports to the broker at `url`, all driven by `loop`.

    Raises:
        SettingError: `url` is no broker URL; when it is called, the certificates are missing or of others.
    """

    def connect(client_id: str, will: Will, on_connect: Callable[[], None]) -> Transport:
        # Reconnect times differ between clients, so that a fleet doesn't storm a broker that has come back.
        address = topics.parse(will.topic)
        parse_broker_url(url).check_is_of(topics.certificate_name(address.fleet, address.vehicle))
        seed = derive_seed("reconnect", client_id) % 2**32
        return MqttTransport(
            url,
            client_id,
            loop=loop,
            identity=address.vehicle,
            will=will,
            on_connect=on_connect,
            reconnect_seed=seed,
        )

    return connect
