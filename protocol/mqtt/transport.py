"""MQTT sessions by paho-mqtt.

A paho client belongs to a helper thread while it connects (names, TLS and handshakes block) and to the
network loop otherwise. From other threads only `publish` reaches it, and only while the session is up.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial

import paho.mqtt.client as paho
from paho.mqtt.reasoncodes import ReasonCode

from protocol.mqtt.backoff import Backoff
from protocol.mqtt.broker_url import parse_broker_url
from protocol.mqtt.credentials import Credentials
from protocol.mqtt.network_loop import NetworkLoop as NetworkLoop
from protocol.mqtt.paho_client import make_client, session_kept_for
from protocol.mqtt.pump import SocketPump
from protocol.mqtt.sockets import State, cut, describe_problem
from protocol.mqtt.subscriptions import Subscriptions
from protocol.session.outbox import Outbox, Waiting
from protocol.session.transport import (
    BrokerUnreachable,
    Delivery,
    Handler,
    Traffic,
    Transport,
    Will,
    call_guarded,
    check_topic,
    publish_packet_bytes,
)

log = logging.getLogger(__name__)

_HANDSHAKE_TIMEOUT_S = 6.0
_STOP_POLL_S = 0.2
_DRAIN_TIMEOUT_S = 3.0
_GOODBYE_TIMEOUT_S = 1.0
_HOUSEKEEPING_S = 1.0
_STABLE_SESSION_S = 5.0
_SAY_AFTER_S = 1.0

_MQTT_5_IN_FLIGHT = 20  # paho ignores the broker's receive maximum; this is mosquitto's
_TRANSIENT_REFUSALS = {0x88, 0x89, 0x97, 0x9F}  # server unavailable, busy, quota or connection rate exceeded


class MqttTransport(Transport):
    """One client's MQTT session, made anew whenever it is lost, until `close`."""

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        loop: NetworkLoop,
        identity: str = "",
        will: Will | None = None,
        on_connect: Callable[[], None] | None = None,
        keepalive_s: float = 15.0,
        reconnect_seed: int = 0,
        max_queued: int = 2000,
        max_in_flight: int = 100,
    ) -> None:
        """`on_connect` runs on the network thread after each (re)connect, when subscriptions are answered.

        `identity` is whose certificate is taken where the URL names a folder of several.
        `max_queued` QoS 1 messages may be unacknowledged, `max_in_flight` of them sent; more are dropped.
        Raises SettingError for a bad `url` (see `protocol.mqtt.broker_url`).
        """
        self._url = parse_broker_url(url).as_client(identity)
        self._client_id = client_id
        self._credentials = Credentials(self._url, client_id)
        self._loop = loop
        self._on_connect = on_connect
        self._backoff = Backoff(client_id, reconnect_seed)
        self._max_in_flight = _MQTT_5_IN_FLIGHT if self._url.version == "5" else max_in_flight
        self._traffic = Traffic()
        self._outbox = Outbox(client_id, self._traffic, max_queued)
        self._subscriptions = Subscriptions()
        self._closed = False
        self._over = threading.Event()
        """Set when the client is closed and no connection is left."""

        # Changed under the lock, as is the outbox; it also covers calls of paho's publish. `_on_paho_publish`
        # must not take it: paho calls that with a lock of its own held, for which publish waits.
        self._changed = threading.Condition()
        self._ready = False
        self._refusal: str | None = None
        self._problem = "no answer yet"
        self._lost_at: float | None = None
        self._packet_limit_bytes: int | None = None

        # Belong to the loop's thread.
        self._state = State.IDLE
        self._wanted = False
        self._session = 0
        self._ready_since = 0.0
        self._cause: str | None = None
        self._awaited_subacks: dict[int, list[str]] = {}
        self._settle_due = False
        self._housekeeping_s, keepalive_s = map(loop.at_leisure, (_HOUSEKEEPING_S, keepalive_s))
        self._client = make_client(self._credentials, client_id, will, keepalive_s, self._max_in_flight)
        self._pump = SocketPump(self._client, loop, on_nonsense=self._nonsense)
        self._client.on_connect = self._on_paho_connect
        self._client.on_subscribe = self._on_paho_subscribe
        self._client.on_disconnect = self._on_paho_disconnect
        self._client.on_message = self._on_paho_message
        self._client.on_publish = self._on_paho_publish

    # Any thread -------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._ready

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def packet_limit_bytes(self) -> int | None:
        return self._packet_limit_bytes

    def seconds_disconnected(self) -> float:
        with self._changed:
            return 0.0 if self._lost_at is None else time.monotonic() - self._lost_at

    def connect(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        assert not self._closed, f"client {self._client_id} was closed"
        assert not self._loop.in_thread, "connect waits for the loop's thread and can't run on it"
        with self._changed:
            self._refusal = None
            if not self._ready:
                self._lost_at = time.monotonic()
        assert self._loop.call(self._start), "the network loop was closed"
        deadline, warned = time.monotonic() + timeout_s, False
        with self._changed:
            while not (self._ready or self._refusal or (stop is not None and stop.is_set())):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                if not warned and left_s < timeout_s - _SAY_AFTER_S:
                    warned = True
                    words = "no MQTT session with %s yet: %s; trying for %g s"
                    log.warning(words, self._url, self._problem, timeout_s)
                self._changed.wait(min(left_s, _STOP_POLL_S))
            if self._ready:
                return
            reason = self._refusal or f"none within {timeout_s:g} s ({self._problem})"
            if not (self._refusal or "refused" in self._problem or "before an answer" in self._problem):
                reason += f"; {self._url.question}?"
        self._loop.call(self._give_up)
        raise BrokerUnreachable(
            f"no MQTT session with {self._url}: {reason}; start a broker there or give another broker URL"
        )

    def subscribe(self, topic_filter: str, handler: Handler, qos: int = 1) -> None:
        self._subscriptions.add(topic_filter, handler, qos)
        self._loop.call(partial(self._send_subscribe, topic_filter))

    def unsubscribe(self, topic_filter: str) -> None:
        self._subscriptions.remove(topic_filter)
        self._loop.call(partial(self._send_subscribe, topic_filter))

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        on_acknowledged: Callable[[], None] | None = None,
    ) -> None:
        check_topic(topic)
        message = Waiting(topic, payload, retain, on_acknowledged)
        with self._changed:
            if self._closed or (qos == 0 and not self._ready):
                self._outbox.drop("not connected")
            elif qos and self._outbox.full:
                self._outbox.drop("queue full")
            elif self._ready:
                self._hand_over(message, qos)
            else:
                # paho would take it, but might then send it before its CONNECT packet.
                self._outbox.waiting.append(message)

    def close(self) -> None:
        if self._ready and not self._loop.in_thread:
            deadline = time.monotonic() + _DRAIN_TIMEOUT_S
            while self._ready and self._outbox.unacknowledged and time.monotonic() < deadline:
                time.sleep(0.002)
        with self._changed:
            self._closed = True
        if not self._loop.call(self._finish):
            self._over.set()
        elif not self._loop.in_thread:
            self._over.wait(2 * _GOODBYE_TIMEOUT_S)

    def _hand_over(self, message: Waiting, qos: int) -> None:
        """Give a message to paho. Call with the lock held."""
        info = self._client.publish(message.topic, message.payload, qos, message.retain)
        cost = self._packet_bytes(message.topic, message.payload, qos)
        self._outbox.sent(info.mid if qos else None, cost, message.on_acknowledged)
        self._pump.flush_soon()

    def _packet_bytes(self, topic: str, payload: bytes, qos: int) -> int:
        # An MQTT 5 packet has one more byte: the length of its properties, which are empty.
        return publish_packet_bytes(topic, len(payload) + (self._url.version == "5"), qos)

    # The loop's thread: connections -----------------------------------------------------------------------

    def _start(self) -> None:
        self._wanted = True
        if self._state is State.IDLE:
            self._open()

    def _give_up(self) -> None:
        if not self._ready:
            self._wanted = False
            self._hang_up()

    def _finish(self) -> None:
        self._wanted = False
        if self._state is State.OPEN:
            self._client.disconnect(properties=session_kept_for(0) if self._url.version == "5" else None)
            self._loop.events.call_later(_GOODBYE_TIMEOUT_S, self._hang_up)
            self._pump.flush()
        else:
            self._over.set()

    def _open(self) -> None:
        if not self._wanted:
            self._state = State.IDLE
        elif self._state in (State.IDLE, State.WAITING):
            self._state = State.CONNECTING
            self._credentials.refresh()
            self._loop.call_blocking(self._client.reconnect, self._opened)

    def _opened(self, problem: BaseException | None) -> None:
        sock = self._client.socket()
        if problem is not None or sock is None:
            self._lost(describe_problem(problem))
            if isinstance(problem, ssl.SSLCertVerificationError):
                self._refuse(f"{problem.verify_message} (?ca=FILE in the URL names the authority to trust)")
            return
        self._state = State.OPEN
        self._session += 1
        self._pump.watch(sock)
        self._loop.events.call_later(_HANDSHAKE_TIMEOUT_S, self._check_handshake, self._session)
        self._loop.events.call_later(self._housekeeping_s, self._keep_house, self._session)
        if not self._wanted:
            self._hang_up()
        self._pump.flush()

    def _check_handshake(self, session: int) -> None:
        if session == self._session and self._state is State.OPEN and not self._ready:
            self._cause = f"connected, but no MQTT answer within {_HANDSHAKE_TIMEOUT_S:g} s"
            self._hang_up()

    def _keep_house(self, session: int) -> None:
        if session == self._session and self._state is State.OPEN:
            self._traffic.certificate_days = self._credentials.warn()
            self._client.loop_misc()
            self._pump.flush()
            self._loop.events.call_later(self._housekeeping_s, self._keep_house, session)

    def _hang_up(self) -> None:
        sock = self._client.socket() if self._state is State.OPEN else None
        if sock is not None:
            cut(sock)

    def _lost(self, problem: str) -> None:
        """There is no connection, any more or at all: try again later if that is wanted."""
        problem, self._cause = self._cause or problem, None
        self._awaited_subacks.clear()
        self._state = State.WAITING if self._wanted else State.IDLE
        with self._changed:
            was_ready, self._ready = self._ready, False
            self._problem = problem
            if was_ready:
                self._lost_at = time.monotonic()
        if self._closed:
            self._over.set()
        if not self._wanted:
            return
        if was_ready and time.monotonic() - self._ready_since > _STABLE_SESSION_S:
            self._backoff.reset()
        level = logging.WARNING if was_ready else logging.DEBUG
        log.log(level, "%s: session with %s lost: %s", self._client_id, self._url, problem)
        self._loop.events.call_later(self._backoff.next_s(), self._open)

    def _nonsense(self) -> None:
        """What arrived is no MQTT."""
        log.exception("%s: unexpected bytes from %s, connecting anew", self._client_id, self._url)
        self._hang_up()

    def _refuse(self, reason: str) -> None:
        """End a waiting `connect`: trying again would not help."""
        with self._changed:
            self._refusal = reason
            self._changed.notify_all()

    def _send_subscribe(self, *topic_filters: str) -> None:
        if self._state is not State.OPEN or not (self._ready or self._awaited_subacks):
            return  # it will be part of the first SUBSCRIBE of the session
        self._subscribe_to(list(topic_filters))
        self._pump.flush()

    def _subscribe_to(self, topic_filters: list[str]) -> None:
        wanted, gone = self._subscriptions.now(topic_filters)
        if gone:
            self._client.unsubscribe(gone)
        if wanted and (mid := self._client.subscribe(wanted)[1]) is not None:
            self._awaited_subacks[mid] = topic_filters

    def _session_up(self) -> None:
        now = time.monotonic()
        if self._ready_since and self._lost_at is not None:
            outage_s = now - self._lost_at
            log.info("%s: session with %s is back after %.1f s", self._client_id, self._url, outage_s)
        else:
            log.info("session with %s, all subscriptions granted", self._url)
        self._ready_since = now
        with self._changed:
            self._ready = True
            self._lost_at = None
            while self._outbox.waiting:
                self._hand_over(self._outbox.waiting.popleft(), qos=1)
        # Later, outside paho's callback: it may take locks that others hold while they publish.
        self._loop.events.call_soon(self._announce)

    def _announce(self) -> None:
        if self._on_connect is not None:
            call_guarded(self._on_connect, self._client_id, self._traffic)
        with self._changed:
            self._changed.notify_all()

    def _settle(self) -> None:
        self._settle_due = False
        with self._changed:
            settled = self._outbox.settle()
        for on_acknowledged in settled:
            call_guarded(on_acknowledged, self._client_id, self._traffic)

    # paho's callbacks, on the loop's thread ---------------------------------------------------------------

    def _on_paho_connect(self, _c: object, _d: object, _f: object, code: ReasonCode, p: object) -> None:
        if code.is_failure:
            self._cause = f"refused: {str(code).lower()}"
            if code.value not in _TRANSIENT_REFUSALS:
                self._refuse(self._cause)
            return
        self._packet_limit_bytes = getattr(p, "MaximumPacketSize", None)  # MQTT 5 has it
        with self._changed:
            self._outbox.resent(self._max_in_flight)  # which paho does by itself
            self._traffic.reconnects += self._ready_since > 0
        if self._subscriptions:
            self._subscribe_to(list(self._subscriptions))
        else:
            self._session_up()

    def _on_paho_subscribe(
        self, _c: object, _d: object, mid: int, codes: list[ReasonCode], _p: object
    ) -> None:
        topic_filters = self._awaited_subacks.pop(mid, [])
        for topic_filter, code in zip(topic_filters, codes, strict=False):
            if code.is_failure:
                log.error("%s: %s refuses the subscription to %s", self._client_id, self._url, topic_filter)
                if not self._ready_since:
                    self._refuse(
                        f"it refuses the subscription to {topic_filter}; let this user read that topic"
                    )
                    return
        if not self._awaited_subacks and not self._ready:
            self._session_up()

    def _on_paho_disconnect(self, _c: object, _d: object, _f: object, code: ReasonCode, _p: object) -> None:
        closed = code == "Unspecified error"
        self._lost(self._credentials.why_closed(self._ready) if closed else str(code).lower())

    def _on_paho_message(self, _c: object, _d: object, message: paho.MQTTMessage) -> None:
        payload = bytes(message.payload)
        self._traffic.received_packets += 1
        self._traffic.received_bytes += self._packet_bytes(message.topic, payload, message.qos)
        delivery = Delivery(message.topic, payload, message.retain)
        for handler in self._subscriptions.handlers(delivery.topic):
            call_guarded(partial(handler, delivery), self._client_id, self._traffic)

    def _on_paho_publish(self, _c: object, _d: object, mid: int, *_: object) -> None:
        self._outbox.acknowledge(mid)
        if not self._settle_due:
            self._settle_due = True
            self._loop.events.call_soon(self._settle)  # when paho's lock is free again
