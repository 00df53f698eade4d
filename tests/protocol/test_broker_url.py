"""Broker URLs whose password was written as it is."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import SettingError
from protocol.session.broker_url import parse_broker_url

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
