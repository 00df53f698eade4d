"""Numbers for Prometheus: where they are served, and as what."""

from __future__ import annotations

import os
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SettingError
from protocol.metrics import (
    Durations,
    Family,
    MetricsServer,
    parse_address,
    process_families,
    single,
)


def _families() -> Iterator[Family]:
    yield single("blackfleet_size_bytes", "A size.", 3.0)
    yield single("blackfleet_nothing", "Without a value.", None)
    yield Family(
        name="blackfleet_done_total",
        help="Done.",
        kind="counter",
        labels=("who",),
        samples=[(("a",), 2.0), (('b"\n',), 0.0)],
    )
    durations = Durations((1.0, 10.0))
    for seconds in (0.5, 1.0, 5.0, 100.0):
        durations.add(seconds)
    samples = [((), durations.histogram())]
    yield Family(name="blackfleet_took_seconds", help="Took.", kind="histogram", samples=samples)


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


def test_families_are_served_as_prometheus_reads_them() -> None:
    pytest.importorskip("prometheus_client", reason="no prometheus-client: pip install 'blackfleet[metrics]'")
    with MetricsServer("0", _families) as server:
        assert server.address.startswith("http://127.0.0.1:")
        lines = fetch(server.address).splitlines()
    assert {
        "# HELP blackfleet_size_bytes A size.",
        "# TYPE blackfleet_size_bytes gauge",
        "blackfleet_size_bytes 3.0",
        "# TYPE blackfleet_done_total counter",
        'blackfleet_done_total{who="a"} 2.0',
        'blackfleet_done_total{who="b\\"\\n"} 0.0',
        'blackfleet_took_seconds_bucket{le="1"} 2.0',
        'blackfleet_took_seconds_bucket{le="10"} 3.0',
        'blackfleet_took_seconds_bucket{le="+Inf"} 4.0',
        "blackfleet_took_seconds_sum 106.5",
    } <= set(lines)
    assert not any(line.startswith("blackfleet_nothing") for line in lines)


def test_a_port_that_is_taken_is_named() -> None:
    pytest.importorskip("prometheus_client", reason="no prometheus-client: pip install 'blackfleet[metrics]'")
    with MetricsServer("0", _families) as server:
        port = server.address.rpartition(":")[2].partition("/")[0]
        with pytest.raises(OSError, match=f"metrics can't be served at 127.0.0.1:{port}"):
            MetricsServer(port, _families).__enter__()


def test_the_last_numbers_wait_for_who_fetches_at_intervals() -> None:
    pytest.importorskip("prometheus_client", reason="no prometheus-client: pip install 'blackfleet[metrics]'")
    with MetricsServer("0", _families) as server:
        begun = time.monotonic()
        server.linger()
        assert time.monotonic() - begun < 0.1  # nobody fetches
        for _ in range(2):
            fetch(server.address)
            time.sleep(0.3)
        once_more = threading.Timer(0.2, fetch, [server.address])
        once_more.start()
        begun = time.monotonic()
        server.linger()
        assert time.monotonic() - begun > 0.15
        once_more.join()
        interval_s = server._fetched[-1] - server._fetched[-2]
        begun = time.monotonic()
        server.linger()  # who has stopped fetching is not waited for
        assert time.monotonic() - begun < 2 * interval_s + 1


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SettingError, match=r"pip install 'blackfleet\[metrics\]'"):
        MetricsServer("9464")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:80", ("::1", 80)),
        ("cloud.example:0", ("cloud.example", 0)),
    ],
)
def test_addresses_are_ports_or_hosts_and_ports(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "many", "65536", "-1", "host:", "²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--metrics-port must be PORT or HOST:PORT such as 9464, got"):
        parse_address(text)


@given(st.lists(st.floats(0, 2000)))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    durations = Durations((1.0, 30.0, 1000.0))
    for value in values:
        durations.add(value)
    histogram = durations.histogram()
    assert [count for _, count in histogram.buckets] == [
        sum(value <= bound for value in values) for bound, _ in histogram.buckets
    ]
    assert histogram.total == pytest.approx(sum(values))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are read from Linux's /proc")
def test_processes_are_measured_and_gone_ones_have_no_series() -> None:
    families = {family.name: family for family in process_families({"me": os.getpid(), "gone": 2**22 + 1})}
    for family in families.values():
        assert [labels for labels, _ in family.samples] == [("me",)]
    [(_, memory)] = families["blackfleet_process_resident_memory_bytes"].samples
    [(_, seconds)] = families["blackfleet_process_cpu_seconds_total"].samples
    assert isinstance(memory, float) and 1e7 < memory < 1e11
    assert isinstance(seconds, float) and 0 < seconds <= time.process_time() + 1
