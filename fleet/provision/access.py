"""What each client of a broker may say and hear, as mosquitto and EMQX read it.

Every client has lines of its own. Patterns (`%u`) would be shorter, but brokers read them differently: where
a name is only compared up to the end of the topic's level, as in some versions of mosquitto, `car-011` could
speak as `car-01`. So a client that is revoked loses its rights at once, too, whose connection goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from fleet.provision.names import Identity
from protocol.session.topics import CLASSES, CLOUD_ID, DOWN, PREFIX, SEEN, STATUS, UP, topic, topic_filter

Access = Literal["read", "write"]


def rights(whose: Identity) -> list[tuple[Access, str]]:
    """What a client may subscribe to and publish."""
    fleet, name = whose.fleet, whose.name
    if whose.role == "cloud":
        return [
            ("read", topic_filter(UP, fleet)),
            ("read", topic_filter(STATUS, fleet)),
            ("write", topic_filter(DOWN, fleet)),
            ("read", topic_filter(SEEN, fleet)),
            ("write", topic_filter(CLASSES, fleet)),
            ("write", f"{PREFIX}/{fleet}/{CLOUD_ID}/#"),
        ]
    if whose.role == "observer":
        return [("read", topic_filter(STATUS, fleet)), ("read", f"{PREFIX}/{fleet}/{CLOUD_ID}/#")]
    if whose.role == "operator":
        return [("read", f"{PREFIX}/{fleet}/#"), ("write", f"{PREFIX}/{fleet}/#")]
    assert whose.role == "vehicle"
    return [
        ("write", topic(UP, fleet, name)),
        ("write", topic(STATUS, fleet, name)),
        ("read", topic(DOWN, fleet, name)),
        ("write", topic(SEEN, fleet, name)),
        ("read", topic(CLASSES, fleet, name)),
        ("read", topic(STATUS, fleet, CLOUD_ID)),
    ]


_CONFIGURATION = """\
# Written by `blackfleet provision`, which writes it anew when something changes. After that, and after a
# renewed certificate of the broker, let mosquitto read it again: kill -HUP, or systemctl reload mosquitto.
listener {port}
cafile {folder}/ca.crt
certfile {folder}/broker.crt
keyfile {folder}/broker.key
# Certificates that are no longer taken.
crlfile {folder}/revoked.crl
require_certificate true
allow_anonymous false
# Who somebody is says the certificate alone: without the second line any client could take another's session.
use_identity_as_username true
use_username_as_clientid true
acl_file {folder}/access.acl

# Without it a small round trip takes 44 ms instead of 0.3 ms.
set_tcp_nodelay true
# Messages are split at 128 KiB; nothing larger belongs to a fleet.
max_packet_size 131072
# Mosquitto drops silently what exceeds its queue, by default 1000 messages a client.
max_queued_messages 20000
"""
_USER = """\
# Started by root, mosquitto becomes this user, who must be able to read the files above.
user {user}
"""


def mosquitto_configuration(folder: str, port: int, user: str | None) -> str:
    """Of a broker whose files lie in `folder`; `user` is whom it becomes when root starts it."""
    made = _CONFIGURATION.format(folder=folder, port=port)
    return f"{made}{_USER.format(user=user)}" if user else made


def mosquitto_access(clients: Iterable[Identity]) -> str:
    """The access list; who is not in it may nothing."""
    lines = ["# Written by `blackfleet provision`; a user is the common name of a certificate: FLEET.NAME."]
    for client in clients:
        lines += ["", f"user {client}", *(f"topic {access} {filter_}" for access, filter_ in rights(client))]
    return "\n".join(lines) + "\n"


def emqx_access(clients: Iterable[Identity]) -> str:
    """The same as a file of EMQX 5 for `authorization.sources` (type: file)."""
    return "\n".join(["%% Written by `blackfleet provision`.", *_emqx_rules(clients), "{deny, all}."]) + "\n"


def _emqx_rules(clients: Iterable[Identity]) -> Iterator[str]:
    words = {"read": "subscribe", "write": "publish"}
    for client in clients:
        for access, filter_ in rights(client):
            yield f'{{allow, {{user, "{client}"}}, {words[access]}, ["{filter_}"]}}.'
