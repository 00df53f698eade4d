"""Vehicles behind a slow, late, breaking line before a real broker: the same run, and no request twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from brokers import skip_without
from process_fixtures import Launch

from benchmarks.slow_link import compare, run_behind_a_line

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(("kind", "cut_s"), [("mosquitto", 6.0), ("amqtt", None)])
def test_run_behind_a_slow_line_is_the_same_run(
    kind: str, cut_s: float | None, reference: Launch, tmp_path: Path
) -> None:
    skip_without(kind)
    counted = run_behind_a_line(
        reference.run_folder, tmp_path, bytes_per_s=4000, delay_s=0.1, cut_s=cut_s, kind=kind
    )
    row = compare(reference.run_folder, tmp_path, counted)
    assert row["same_bits"]
    assert counted["requests"] > 20
    if cut_s is None:
        assert counted["requests_sent"] == counted["requests"]
    else:
        assert counted["cuts"] >= 2
        # Only what had arrived and whose acknowledgement was lost with the connection comes again.
        assert counted["requests_sent"] - counted["requests"] <= counted["cuts"]
    wanted, result = (
        json.loads((folder / "result.json").read_text()) for folder in (reference.run_folder, tmp_path)
    )
    for vehicle, entry in result["vehicles"].items():
        # Patience is a fraction of a second here, and a hello before the cloud is heard has no seal for it.
        timed = {"status", "recall", "hello", "malformed"}
        own = wanted["vehicles"][vehicle]["uplink_bytes_by_type"]
        assert {kind: cost for kind, cost in entry["uplink_bytes_by_type"].items() if kind not in timed} == {
            kind: cost for kind, cost in own.items() if kind not in timed
        }
