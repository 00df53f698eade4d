"""What an encoder costs a vehicle: forward, and the way back into each subspace, in forward passes.

`python -m benchmarks.encoder_cost` prints a table and one JSON line. Everything runs interleaved in one
process on one thread; what is counted is that thread's processor time, so that other work on the machine
matters less, and what is printed is the median over rounds of ratios within a round. *one forward* is ONNX
Runtime on the forward graph with θ as constants, batch by batch; *our forward* is the vehicle's, frame by
frame. *back* is what a gradient costs beyond the cheaper of the two: the tape, a forward pass that also keeps
what the way back needs, less one forward, and the product with v. Opening the session of a changed θ is not
in these ratios; it has a column of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.sessions import CPU, open_session
from edge_client.encoder.subspaces import Subspace, subspace_of
from fleet.export.bundle import export_bundle, subspaces
from fleet.scenario import parse_image_size

FORWARD_TARGET = 1.1
BACK_TARGETS = {"projection+film": 1.5, "all": 3.5}
"""In forward passes, beyond the forward."""
_ENCODERS = ("efficientnet-lite0-s8", "efficientnet-lite0-s4")
_SIZES = ("256x192", "480x360")
_BATCHES = (1, 8)
_WIDTH = 120


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder_cost", description=__doc__)
    parser.add_argument("--encoder", action="append", help=f"default: {', '.join(_ENCODERS)}")
    parser.add_argument("--image-size", action="append", help=f"width x height; default: {', '.join(_SIZES)}")
    parser.add_argument("--rounds", type=int, default=15, help="of frame by frame; batches take a third")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="blackfleet-bench-") as folder:
        for name in options.encoder or _ENCODERS:
            for size in options.image_size or _SIZES:
                bundle = export_bundle(name, Path(folder) / "e", image_size=parse_image_size(size), seed=0)
                for batch in _BATCHES:
                    rounds = options.rounds if batch == 1 else max(3, options.rounds // 3)
                    rows.append(measure(bundle, batch, rounds=rounds))
    names = sorted({name for row in rows for name in row["back"]})
    table = Table(title="cost of an encoder on one core, in forward passes")
    for column in ("encoder", "frames", "batch", "one forward, ms", "our forward", *names, "new θ, ms"):
        table.add_column(column, justify="right")
    for row in rows:
        back = [f"{row['back'][name]:.2f}" if name in row["back"] else "–" for name in names]
        numbers = (f"{row['forward_ms']:.1f}", f"{row['forward']:.2f}", *back, f"{row['session_ms']:.0f}")
        table.add_row(row["encoder"], row["image_size"], str(row["batch"]), *numbers)
    console = Console(width=_WIDTH)
    console.print(table)
    targets = ", ".join(f"{target:g} for {name}" for name, target in BACK_TARGETS.items())
    console.print(f"targets: forward at most {FORWARD_TARGET:g}; back at most {targets}")
    print(json.dumps({"benchmark": "encoder_cost", "rows": rows}))


def measure(bundle: EncoderBundle, batch: int, *, rounds: int) -> dict[str, Any]:
    """Ratios to one forward of a batch of frames; see the module's docstring."""
    encoder = Encoder(bundle, mode="rebuild", providers=[CPU])
    plain = open_session(bundle.graphs["forward"], CPU, 1)
    theta, (width, height) = bundle.theta0, bundle.spec.image_size
    random = np.random.default_rng(0)
    image_BHWC = random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    v_BCHW = random.standard_normal((batch, *bundle.spec.feature_shape)).astype(np.float32)
    ways = {name: subspace_of(name, bundle.spec, theta) for name in subspaces(bundle.spec.projection)}
    ratios: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        one_s = _seconds(lambda: plain.run(None, {"image_BHWC": image_BHWC}))
        taken = {"forward": _seconds(lambda: encoder.forward(theta, image_BHWC))}
        for name, subspace in ways.items():

            def there_and_back(way: Subspace = subspace) -> None:
                encoder.linearise(theta, image_BHWC, way).pull_back(v_BCHW)

            taken[name] = _seconds(there_and_back) - min(one_s, taken["forward"])
        if number > 0:  # the first opens sessions and takes memory
            ratios["one"].append(one_s)
            for name, seconds in taken.items():
                ratios[name].append(seconds / one_s)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    session_s = min(_seconds(lambda: open_session(bundle.graphs["tape"], CPU, 1)) for _ in range(3))
    return {
        "encoder": bundle.spec.name,
        "image_size": f"{width}x{height}",
        "batch": batch,
        "forward_ms": 1e3 * medians["one"],
        "forward": medians["forward"],
        "back": {name: medians[name] for name in ways},
        "session_ms": 1e3 * session_s,
    }


def _seconds(work: Callable[[], object]) -> float:
    """Of this thread's processor time."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
