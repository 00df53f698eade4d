"""Numbers about a process and what it does, for Prometheus to fetch; the only file that imports its client.

Whoever has numbers gives them as families when asked; nothing is computed while nobody asks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from protocol.errors import SettingError

PREFIX = "blackfleet_"
LOOPBACK = "127.0.0.1"
_LONGEST_LINGER_S = 60.0
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many values were at most how large."""

    buckets: Sequence[tuple[float, int]]
    """(bound, values up to it), ascending; the last bound is infinite."""
    total: float
    """Sum of all values."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One metric: its name begins with `blackfleet_` and ends with its unit, a counter's with `_total`."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"] = "gauge"
    labels: tuple[str, ...] = ()
    samples: Sequence[tuple[tuple[str, ...], float | Histogram]] = ()
    """(values of the labels, number)."""


Source = Callable[[], Iterable[Family]]
"""Gives its families as they are now, from any thread."""


def single(name: str, help: str, value: float | None, kind: Literal["counter", "gauge"] = "gauge") -> Family:
    """A metric without labels; without a value it has no series."""
    return Family(name=name, help=help, kind=kind, samples=[] if value is None else [((), value)])


def bytes_of(megabytes: int | None) -> int | None:
    """The same in the unit that Prometheus has for sizes."""
    return None if megabytes is None else megabytes * 1_000_000


def seconds_of(milliseconds: int | None) -> float | None:
    """The same in the unit that Prometheus has for times."""
    return None if milliseconds is None else milliseconds / 1000


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of `PORT` or `HOST:PORT`; the host is the loopback interface where none is named.

    Raises:
        SettingError: it is neither.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 <= int(port) < 65536):
        raise SettingError(f"--metrics-port must be PORT or HOST:PORT such as 9464, got {text!r}")
    return host.strip("[]") or LOOPBACK, int(port)


class MetricsServer:
    """Serves families over HTTP while it is entered; the loopback interface alone unless told otherwise."""

    def __init__(self, where: str, *sources: Source) -> None:
        """`where` is `PORT` or `HOST:PORT`; port 0 is a free one.

        Raises:
            SettingError: `where` is neither, or the package prometheus-client is missing.
        """
        self._host, self._port = parse_address(where)
        try:
            import prometheus_client
        except ImportError as error:
            raise SettingError(
                "--metrics-port needs the package prometheus-client: pip install 'blackfleet[metrics]'"
            ) from error
        self._client = prometheus_client
        self._sources = sources
        self._fetched: list[float] = []
        """When metrics were fetched, the last two times."""
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MetricsServer:
        """Listen.

        Raises:
            OSError: the address can't be used.
        """
        registry = self._client.CollectorRegistry()
        registry.register(_Collector(self._families))
        try:
            self._server, self._thread = self._client.start_http_server(
                self._port, addr=self._host, registry=registry
            )
        except OSError as error:
            raise OSError(
                f"metrics can't be served at {self._host}:{self._port} ({error.strerror}): stop what holds "
                f"the port, or choose another with --metrics-port"
            ) from error
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._thread is not None:
            self._thread.join()

    @property
    def address(self) -> str:
        """What Prometheus is to fetch."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_port}/metrics"

    def linger(self) -> None:
        """Wait until the last numbers were fetched once, where somebody fetches them at intervals: at most
        two of these, and a minute."""
        fetched = self._fetched
        if len(fetched) < 2:
            return
        interval_s, last = fetched[-1] - fetched[-2], fetched[-1]
        deadline = time.monotonic() + min(2 * interval_s, _LONGEST_LINGER_S)
        while self._fetched[-1] == last and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _families(self) -> Iterator[Family]:
        self._fetched = [*self._fetched[-1:], time.monotonic()]
        for source in self._sources:
            yield from source()


class _Collector:
    """Families as the client's library has them."""

    def __init__(self, families: Source) -> None:
        self._families = families

    def collect(self) -> Iterator[Any]:
        """What the library asks for at each fetch."""
        from prometheus_client import core

        kinds = {
            "counter": core.CounterMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "histogram": core.HistogramMetricFamily,
        }
        for family in self._families():
            made = kinds[family.kind](family.name, family.help, labels=family.labels)
            for labels, value in family.samples:
                if isinstance(value, Histogram):
                    buckets = [(_bound(bound), count) for bound, count in value.buckets]
                    made.add_metric(labels, buckets, value.total)
                else:
                    made.add_metric(labels, value)
            yield made


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else f"{bound:g}"


@dataclass
class Durations:
    """A histogram that grows."""

    bounds: tuple[float, ...]
    """In seconds, ascending; a last one is added that is infinite."""
    total_s: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """One more."""
        self.total_s += seconds
        self.counts[sum(seconds > bound for bound in self.bounds)] += 1

    def histogram(self) -> Histogram:
        """As it is now."""
        sums = [sum(self.counts[: place + 1]) for place in range(len(self.counts))]
        bounds = (*self.bounds, float("inf"))
        return Histogram(buckets=list(zip(bounds, sums, strict=True)), total=self.total_s)


def process_families(ids: Mapping[str, int]) -> Iterator[Family]:
    """Processor time, memory and threads of processes by their names, as Linux counts; nothing elsewhere."""
    found = {name: read for name, pid in ids.items() if (read := read_process(pid)) is not None}

    def family(name: str, help: str, place: int, kind: Literal["counter", "gauge"] = "gauge") -> Family:
        samples = [((process,), numbers[place]) for process, numbers in found.items()]
        return Family(
            name=f"{PREFIX}process_{name}", help=help, kind=kind, labels=("process",), samples=samples
        )

    yield family("cpu_seconds_total", "Processor time that a process of the run has taken.", 0, "counter")
    yield family("resident_memory_bytes", "Memory of a process of the run.", 1)
    yield family("threads", "Threads of a process of the run.", 2)


class ProcessNow(NamedTuple):
    """What a process has taken and holds."""

    cpu_s: float
    memory_bytes: float
    threads: float


def read_process(pid: int) -> ProcessNow | None:
    """As Linux counts (proc(5)); None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    words = text.rpartition(")")[2].split()  # the name before it may hold anything
    ticks = int(words[11]) + int(words[12])
    memory = int(words[21]) * os.sysconf("SC_PAGE_SIZE")
    return ProcessNow(ticks / os.sysconf("SC_CLK_TCK"), float(memory), float(words[17]))


def read_memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """(bytes in all, of them free for processes) of this machine, as Linux estimates; None elsewhere.

    `root`: where `proc` lies.
    """
    try:
        lines = (root / "proc" / "meminfo").read_text().splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return 1024 * kilobytes["MemTotal"], 1024 * kilobytes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
