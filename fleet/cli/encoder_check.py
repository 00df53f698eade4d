"""`blackfleet encoder check`: what an encoder costs, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from fleet.export.examine import Examination
from fleet.show.progress import format_bytes
from protocol.plans import ESTIMATORS

_WITHOUT_VJP = "learns by --estimator " + " or ".join(
    name for name, plan in ESTIMATORS.items() if not plan().needs_way_back
)


def as_json(found: Examination) -> str:
    """One line."""
    return json.dumps(dataclasses.asdict(found))


def as_text(found: Examination) -> str:
    """A line for each thing that was asked."""
    width, height = found.image_size
    way_back = found.graph_bytes.keys() - {"forward", "forward_bound"}
    graphs = f"forward {format_bytes(found.graph_bytes['forward'])}"
    if way_back:
        graphs += f", way back {format_bytes(sum(found.graph_bytes[name] for name in way_back))}"
    frames = ", ".join(
        f"{1e3 * seconds:.2f} ms for {count} frame{'s' if count > 1 else ''}"
        for count, seconds in found.forward_s.items()
    )
    sent = ", ".join(f"{format_bytes(count)} at {bits}" for bits, count in found.feature_bytes.items())
    lines = {
        "parameters": f"{found.parameters:,}: θ of {format_bytes(found.theta_bytes)}",
        "graphs": graphs,
        "multiply-adds": f"{found.multiply_adds / 1e6:.1f} million a frame",
        "forward": f"{frames}; on this CPU, one thread",
        "features": f"{'x'.join(map(str, found.feature_shape))}; {sent} bits a frame, before entropy coding",
        "VJP": "yes" if found.no_way_back is None else f"no: {found.no_way_back}; {_WITHOUT_VJP}",
    }
    for name, cost in found.subspaces.items():
        back = (
            "" if cost.way_back_forwards is None else f", the way back {cost.way_back_forwards:.1f} forwards"
        )
        default = " (default)" if name == found.learns else ""
        lines[f"subspace {name}"] = f"{cost.numbers:,} numbers{back}{default}"
    return "\n".join([f"{found.encoder} at {width}x{height}", *_aligned(lines)])


def _aligned(lines: Mapping[str, str]) -> list[str]:
    widest = max(map(len, lines))
    return [f"  {name:<{widest}}  {text}" for name, text in lines.items()]
