"""Seals: what proves that a message comes from the run's own cloud, or from the vehicle that it names.

`0xC1 kind code(16) message`: 0xC1 begins nothing in MessagePack; the code is the beginning of HMAC-SHA256
over where and between whom the message is said, the kind, and the message. A run's cloud has one key, of
which those of its vehicles are made: a vehicle can check its cloud, and speak for no other vehicle. Where
nobody has a key nothing is sealed, and who has none passes over seals.

Old words are no new ones: what is said to or by a cloud is bound to one process of it by its session, a
turn to one process of its vehicle, too. Within these, the protocol itself takes each thing once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Protocol

from protocol.errors import WireError
from protocol.session import topics
from protocol.session.topics import CLOUD_ID, Channel

KEY_BYTES = 32
_MARK = 0xC1
_CODE_BYTES = 16
_HEAD_BYTES = 2 + _CODE_BYTES
_UNSEALED = {topics.EVENTS.name}
"""For observers, who have no key."""


class SealError(WireError):
    """A message whose seal is missing or another one's."""


class _For(IntEnum):
    """Whom a sealed message is for."""

    ANY = 0
    """Whatever process of the receiver."""
    SESSION = 1
    """The one that its sender knows."""


class Seal(Protocol):
    """One end's keys."""

    def close(
        self, channel: Channel, vehicle: str, pieces: Sequence[bytes], *, is_for_session: bool
    ) -> list[bytes]:
        """A message that this end sends, with its seal."""

    def open(self, channel: Channel, vehicle: str, message: bytes) -> bytes:
        """What is in a sealed message that has arrived.

        Raises:
            SealError: nobody who has the key has said that here and now.
        """


def vehicle_key(run_key: bytes, fleet: str, vehicle: str) -> bytes:
    """The key of one vehicle's seals, both ways; that of the cloud's own status under the name `cloud`."""
    return hmac.digest(run_key, f"blackfleet seal\0{fleet}\0{vehicle}".encode(), "sha256")


def without_seal(channel: Channel, vehicle: str, message: bytes) -> bytes:
    """What is in a message, for who can't check its seal."""
    del channel, vehicle
    return message[_HEAD_BYTES:] if message[:1] == bytes([_MARK]) else message


class _Sealing:
    """What both ends do alike."""

    def __init__(self) -> None:
        self._begun: dict[tuple[bytes, bytes], hmac.HMAC] = {}

    def _close(self, key: bytes, scope: bytes, kind: _For, pieces: Sequence[bytes]) -> list[bytes]:
        return [bytes([_MARK, kind]) + self._code(key, kind, scope, pieces), *pieces]

    def _open(self, key: bytes, scopes: Mapping[_For, bytes], message: bytes) -> bytes:
        if len(message) < _HEAD_BYTES or message[0] != _MARK or message[1] not in (_For.ANY, _For.SESSION):
            raise SealError("not sealed: this run has a key, give its sender the key's folder (--seals)")
        kind = _For(message[1])
        body = memoryview(message)[_HEAD_BYTES:]
        code = self._code(key, kind, scopes[kind], [body])
        if not hmac.compare_digest(code, message[2:_HEAD_BYTES]):
            raise SealError("sealed with another key, or for another process or run")
        return bytes(body)

    def _code(self, key: bytes, kind: _For, scope: bytes, pieces: Sequence[bytes | memoryview]) -> bytes:
        begun = self._begun.get((key, scope))
        if begun is None:
            if len(self._begun) > 4096:
                self._begun.clear()
            begun = self._begun[key, scope] = hmac.new(key, scope, hashlib.sha256)
        code = begun.copy()
        code.update(bytes([kind]))
        for piece in pieces:
            code.update(piece)
        return code.digest()[:_CODE_BYTES]


class CloudSeal(_Sealing):
    """The cloud's: it has the key of the run."""

    def __init__(self, run_key: bytes, fleet: str, session: str) -> None:
        super().__init__()
        self._run_key, self._fleet, self._session = run_key, fleet, session
        self._keys: dict[str, bytes] = {}
        self.sessions: dict[str, str] = {}
        """By vehicle: its process that has been taken in."""

    def close(
        self, channel: Channel, vehicle: str, pieces: Sequence[bytes], *, is_for_session: bool = False
    ) -> list[bytes]:
        if channel.name in _UNSEALED:
            return list(pieces)
        kind = _For.SESSION if is_for_session else _For.ANY
        session = self.sessions.get(vehicle, "") if is_for_session else ""
        return self._close(self._key(vehicle), self._scope(channel, vehicle, session), kind, pieces)

    def open(self, channel: Channel, vehicle: str, message: bytes) -> bytes:
        scopes = {kind: self._scope(channel, vehicle, "") for kind in _For}
        return self._open(self._key(vehicle), scopes, message)

    def _key(self, vehicle: str) -> bytes:
        if vehicle not in self._keys:
            if len(self._keys) > 4096:
                self._keys.clear()
            self._keys[vehicle] = vehicle_key(self._run_key, self._fleet, vehicle)
        return self._keys[vehicle]

    def _scope(self, channel: Channel, vehicle: str, vehicle_session: str) -> bytes:
        return _scope(channel, vehicle, self._session, vehicle_session)


class VehicleSeal(_Sealing):
    """A vehicle's: it has its own key, and that of the cloud's status."""

    def __init__(self, own_key: bytes, cloud_key: bytes, session: str) -> None:
        super().__init__()
        self._own_key, self._cloud_key, self._session = own_key, cloud_key, session
        self.cloud_session = ""
        """Of the cloud that the vehicle speaks to."""

    def close(
        self, channel: Channel, vehicle: str, pieces: Sequence[bytes], *, is_for_session: bool = False
    ) -> list[bytes]:
        del is_for_session
        scope = _scope(channel, vehicle, self.cloud_session, "")
        return self._close(self._own_key, scope, _For.ANY, pieces)

    def open(self, channel: Channel, vehicle: str, message: bytes) -> bytes:
        scopes = {
            _For.ANY: _scope(channel, vehicle, self.cloud_session, ""),
            _For.SESSION: _scope(channel, vehicle, self.cloud_session, self._session),
        }
        return self._open(self._cloud_key if vehicle == CLOUD_ID else self._own_key, scopes, message)


def _scope(channel: Channel, vehicle: str, cloud_session: str, vehicle_session: str) -> bytes:
    """Where and between whom something is said; a status is for whoever comes, whatever their sessions."""
    if channel is topics.STATUS:
        cloud_session = vehicle_session = ""
    return f"{channel.name}\0{vehicle}\0{cloud_session}\0{vehicle_session}\0".encode()
