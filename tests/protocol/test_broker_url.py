"""Broker URLs whose password was written as it is."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import SettingError
from protocol.mqtt.broker_url import parse_broker_url

SPECIAL = st.text(alphabet="abcXYZ0189@/:#?%[]&=+ü", min_size=1, max_size=12)


@pytest.mark.parametrize("character", "/#")
@pytest.mark.parametrize("password", ["sec{}ret", "{}secret", "12{}34", "secret{}", "a@b{}c"])
def test_password_that_must_be_percent_encoded_is_refused_with_how_to(password: str, character: str) -> None:
    secret = password.format(character)
    with pytest.raises(SettingError, match="must be percent-encoded") as refusal:
        parse_broker_url(f"mqtt://car:{secret}@broker.example:1883")
    assert secret not in str(refusal.value)


@given(SPECIAL)
@example("12?34")
@example("a[b")
@example("p@ss:w")
def test_password_is_understood_or_refused_and_never_shown(secret: str) -> None:
    url = f"mqtt://car:{secret}@broker.example:1883"
    try:
        broker = parse_broker_url(url)
    except SettingError as error:
        text = str(error).replace("'***@broker.example:1883'", "")
        assert "percent-encoded" in text
        assert len(secret) < 6 or secret not in text
    else:
        assert (broker.host, broker.port) == ("broker.example", 1883)
        if "%" not in secret:
            assert broker.password == secret


@given(SPECIAL)
def test_percent_encoded_password_is_taken(secret: str) -> None:
    broker = parse_broker_url(f"mqtts://car:{quote(secret, safe='')}@broker.example?ca=/home/me@work/ca.crt")
    assert (broker.password, broker.host) == (secret, "broker.example")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("localhost:1883", "must start with mqtt://"),
        ("http://localhost", "must start with mqtt://"),
        ("mqtt://", "needs a host"),
        ("mqtt://host:0", "port from 1 to 65535"),
        ("mqtt://host:99999", "port from 1 to 65535"),
        ("mqtt://host:port", "port from 1 to 65535"),
        ("mqtt://host?cafile=x", "unknown broker URL option 'cafile'"),
        ("mqtt://host?version=4", "must be 3.1.1 or 5, got '4'"),
        ("mqtt://host?ca=x", "need mqtts:// or wss://"),
    ],
)
def test_bad_broker_url_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_broker_url(text)


def test_broker_url_parts_and_defaults() -> None:
    parsed = parse_broker_url("wss://us%40er:p%2Fw@[::1]:444/broker?ca=a.pem&cert=b.pem&key=c.pem&insecure")
    assert (parsed.host, parsed.port, parsed.path) == ("::1", 444, "/broker")
    assert (parsed.username, parsed.password) == ("us@er", "p/w")
    assert (parsed.ca, parsed.cert, parsed.key) == (Path("a.pem"), Path("b.pem"), Path("c.pem"))
    assert parsed.insecure and parsed.tls and parsed.websocket
    assert str(parsed) == "wss://us@er@[::1]:444/broker"
    ports = [parse_broker_url(f"{scheme}://h").port for scheme in ("mqtt", "mqtts", "ws", "wss")]
    assert ports == [1883, 8883, 80, 443]
