"""A run as it goes: its events drawn as a live table or, without a terminal, as lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from cloud_server.events import Recorder
from fleet.scenario import Scenario
from fleet.show.label_makers import label_makers
from fleet.show.screen import Column, FittedTable
from fleet.show.summaries import Summaries, movers
from protocol.showing import plain

_REFRESH_PER_S = 4
_LIVE_COLUMNS = (
    Column("vehicle"),
    Column("state", 1, left=True),
    Column("loss", 2),
    Column("mIoU"),
    Column("queries", 5),
    Column("up", 3),
    Column("down", 4),
)

_MOST_UNLIKELY = 10
"""Vehicles that a table names."""
_UNLIKELY = {
    "left-out": "is left out of this turn: what it sent is unlike that of the others",
    "doubted": "sent something unlike that of the others; it counts",
    "shortened": "moved the weights farther than the bound; it counts as far as that",
}
"""What is said of a vehicle, by event."""


@dataclass
class _VehicleView:
    state: str = "starting"
    lost: bool = False
    """Whether its connection has ended; the cloud may work for it all the same."""
    loss: float | None = None
    miou: float | None = None
    queries: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0


class Progress(Recorder):
    """Shows events as they are told."""

    def __init__(self, scenario: Scenario, console: Console) -> None:
        self._console = console
        self._vehicles = {vehicle: _VehicleView() for vehicle in scenario.vehicle_ids}
        self._summaries = Summaries(scenario.vehicles)
        self._round = 0
        self._rounds = scenario.rounds
        self._kind = ""
        self._clock = _Clock()
        self._live: Live | None = None
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._task: TaskID = self._bar.add_task(
            f"{scenario.algorithm} on {scenario.dataset.name}", total=None, left=""
        )

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=_REFRESH_PER_S,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._say(*self._summaries.rest())
        if self._live is not None:
            self._live.stop()

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        self._note({"event": name, **values})

    def _note(self, event: dict[str, Any]) -> None:
        view = self._vehicles.get(event.get("vehicle", ""), _VehicleView())
        match event["event"]:
            case "run":
                self._clock.start(event["stages"], event["first"])
                self._bar.update(self._task, total=event["stages"], completed=event["first"])
            case "joined" | "back":
                view.state, view.lost = "joined", False
            case "left":
                view.lost = True
            case "turn":
                if event["round"] != self._round:
                    self._say(*self._summaries.rest())  # of vehicles that took no part
                self._round, self._kind = event["round"], event["kind"]
                view.state = "learning" if event["kind"] in ("learn", "train") else "being tested"
            case "traffic":
                view.queries = event["queries"]
                view.uplink_bytes, view.downlink_bytes = event["uplink_bytes"], event["downlink_bytes"]
            case "learning":
                # from one vehicle's uploads, or from everyone's
                for learning in [view] if "vehicle" in event else self._vehicles.values():
                    learning.state = f"cloud trains {event['done']}/{event['total']}"
                    learning.loss = event["loss"]
            case "validation":
                view.miou = event["best"]
                period = f"round {event['round']}/{self._rounds}"
                line = (
                    f"{period}  {event['vehicle']}  loss {_number(view.loss)}  "
                    f"val mIoU {_number(event['miou'])} (best {_number(event['best'])})"
                    f"  {self._clock.left()}"
                )
                self._say(*self._summaries.score(period, "val", event["miou"], line, self._tail))
            case "evaluation":
                view.miou = event["miou"]
                line = (
                    f"{event['kind']} {event['split']}  {event['vehicle']}  mIoU {_number(event['miou'])} "
                    f"on {event['frames']} frames"
                )
                self._say(*self._summaries.score(event["kind"], event["split"], event["miou"], line))
            case "turn_done":
                view.state = "waiting"
                view.queries = event["queries"]
                view.uplink_bytes, view.downlink_bytes = event["uplink_bytes"], event["downlink_bytes"]
            case "failed":
                view.state = "failed"
                self._say(f"the run goes on without {event['vehicle']}: {event['reason']}")
            case "out_of_data":
                view.state = "out of data"
                line = f"{event['vehicle']} has used its {event['budget_mb']:g} MB of this month"
                self._say(*self._summaries.incident("vehicles out of data", line))
            case "readmitted":
                view.state = "waiting"
                line = f"{event['vehicle']} is back, and takes part again from round {event['round']} on"
                self._say(*self._summaries.incident("vehicles taken back", line))
            case "awaited":
                view.state = "awaited"
                line = f"waiting for {event['vehicle']}: {event['reason']}"
                self._say(*self._summaries.incident("vehicles waited for", line))
            case "restarted":
                line = f"{event['vehicle']} came back: its turn starts over"
                self._say(*self._summaries.incident("turns that start over", line))
            case "taken_back":
                line = f"{event['vehicle']}'s turn does not count: it was for the worse"
                self._say(*self._summaries.incident("turns that do not count", line))
            case "left-out" | "doubted" | "shortened":
                line = f"{event['vehicle']} {_UNLIKELY[event['event']]}"
                self._say(*self._summaries.incident("turns unlike those of the others", line))
            case "reject":
                line = f"rejected a message of {event['vehicle']}: {event['reason']}"
                self._say(*self._summaries.incident("rejected messages", line))
            case "committed":
                self._clock.committed(event["stage"])
                self._bar.update(self._task, completed=event["stage"] + 1)

    def _say(self, *lines: str) -> None:
        for line in lines if self._live is None else ():
            self._console.print(plain(line), highlight=False, markup=False, soft_wrap=True)

    def _tail(self) -> str:
        """Of a line about all vehicles."""
        return "  ".join(filter(None, (*self._sent(), self._clock.left())))

    def _sent(self) -> tuple[str, str]:
        """What all vehicles have sent, and got."""
        up = sum(view.uplink_bytes for view in self._vehicles.values())
        down = sum(view.downlink_bytes for view in self._vehicles.values())
        return f"{format_bytes(up)} up", f"{format_bytes(down)} down"

    def _render(self) -> RenderableType:
        self._bar.update(self._task, left=self._clock.left())
        table = FittedTable(_LIVE_COLUMNS)
        shown = sorted(self._vehicles.items(), key=lambda item: item[1].state == "waiting")[:16]
        for vehicle, view in sorted(shown):
            table.add_row(
                vehicle,
                "lost" if view.lost and view.state != "failed" else view.state,
                _number(view.loss),
                _number(view.miou),
                str(view.queries),
                format_bytes(view.uplink_bytes),
                format_bytes(view.downlink_bytes),
            )
        hidden = len(self._vehicles) - len(shown)
        line = (
            f"{self._kind or 'starting'}, round {min(self._round, self._rounds)} of {self._rounds}, "
            + ", ".join(self._sent())
            + (f", {hidden} more vehicles waiting" if hidden else "")
        )
        return Group(self._bar, Text(line), table)


class _Clock:
    """Time left, from the pace of the stages committed so far."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._stages = 0
        self._first = 0
        self._done = 0

    def start(self, stages: int, first: int) -> None:
        self._began, self._stages, self._first, self._done = time.monotonic(), stages, first, 0

    def committed(self, stage: int) -> None:
        self._done = stage + 1 - self._first

    def left(self) -> str:
        """For instance `1:20 left`; empty before the pace is known."""
        if self._done < 1 or not self._stages:
            return ""
        pace_s = (time.monotonic() - self._began) / self._done
        left_s = round(pace_s * (self._stages - self._first - self._done))
        return f"{left_s // 60}:{left_s % 60:02d} left"


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    """What is said below a run's table, a line or a few each."""
    vehicles = result["vehicles"]
    if result.get("fleet_miou") is not None:
        spread = f" ± {result['fleet_miou_std']:.3f}" if result["fleet_vehicles"] > 1 else ""
        models = "1 model" if result["fleet_vehicles"] == 1 else f"{result['fleet_vehicles']} models"
        sent = result["fleet_uplink_bytes"] + result["fleet_downlink_bytes"]
        apart = f"; this evaluation's {format_bytes(sent)} are not part of up and down" if sent else ""
        yield f"fleet: on the whole test split, {result['fleet_miou']:.3f}{spread} over {models}{apart}"
    if failed := result.get("failed"):
        reasons = "\n".join(f"{vehicle}: {reason}" for vehicle, reason in failed.items())
        yield f"without what has failed (the means are of the others):\n{reasons}"
    if privacy := result.get("privacy"):
        spent = f"ε {privacy['epsilon']:.3g} at δ {privacy['delta']:g}"
        yield f"updates noised: {spent}, for {privacy['protects']}"
    if unlikely := _unlikely(vehicles):
        yield unlikely
    if result.get("scored_by") == "vehicles":
        yield "each vehicle has scored itself: the cloud has no frame of its own to check it by"
    if out := [
        f"{name} ({entry['budget_mb']:g} MB)" for name, entry in vehicles.items() if entry.get("out_of_data")
    ]:
        yield f"has used up its data of a month: {', '.join(out)}"
    yield from label_makers(result)


def result_table(result: Mapping[str, Any]) -> FittedTable:
    """The table that a run ends with."""
    has_source = result.get("mean_source_miou") is not None
    # Of a run that began from a pretrained start: on frames of its source, before and after.
    source = (Column("source\nstart", 2), Column("source\nend", 1)) if has_source else ()
    # Of one that has a test split: on all of it.
    whole = ("fleet_miou",) if result.get("fleet_miou") is not None else ()
    table = FittedTable(
        (
            Column("vehicle"),
            Column("frames", 6),
            Column("start", 3),
            Column("local"),
            Column("OOD"),
            *(Column("fleet") for _ in whole),
            *source,
            Column("queries", 7),
            Column("up", 4),
            Column("down", 5),
        ),
        title=f"{result['algorithm']} on {result['dataset']}, seed {result['seed']}, "
        f"{result['rounds']} rounds, {_time(result)}; mIoU on test frames",
        box=box.SIMPLE_HEAD,
        padding=0 if has_source else 1,
    )
    vehicles = result["vehicles"]
    table.caption = "\n".join(_notes(result))
    shown, left_out = movers(vehicles)
    for vehicle in shown:
        entry = vehicles[vehicle]
        table.add_row(
            vehicle,
            str(entry["frames_train"]),
            _number(entry["initial_local_miou"]),
            _number(entry["local_miou"]),
            _number(entry["ood_miou"]),
            *(_number(entry[key]) for key in whole),
            *(_number(entry[key]) for key in ("initial_source_miou", "source_miou") if source),
            str(entry["queries"]),
            format_bytes(entry["uplink_bytes"]),
            format_bytes(entry["downlink_bytes"]),
        )
    if left_out:
        table.add_row(left_out)
    table.add_section()
    table.add_row(
        "fleet (mean)",
        str(sum(entry["frames_train"] for entry in vehicles.values())),
        _number(result["initial_local_miou"]),
        _number(result["mean_local_miou"]),
        _number(result["mean_ood_miou"]),
        *(_number(result[key]) for key in whole),
        *(_number(result[key]) for key in ("initial_source_miou", "mean_source_miou") if source),
        str(sum(entry["queries"] for entry in vehicles.values())),
        format_bytes(result["uplink_bytes"]),
        format_bytes(result["downlink_bytes"]),
        style="bold",
    )
    return table


def format_bytes(count: float) -> str:
    """With a unit, decimal: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the loop ends with GB")


def _unlikely(vehicles: Mapping[str, Mapping[str, Any]]) -> str:
    """Who was unlike the others, and how often; empty: nobody."""
    said = []
    for key, words in (("left_out", "left out"), ("doubted", "doubted, and counted")):
        often = {name: entry.get(key, 0) for name, entry in vehicles.items() if entry.get(key)}
        most = sorted(often, key=lambda name: (-often[name], name))[:_MOST_UNLIKELY]
        if often:
            more = f" and {len(often) - len(most)} more" if len(often) > len(most) else ""
            said.append(f"{words}: {', '.join(f'{name} ({often[name]} turns)' for name in most)}{more}")
    return "\n".join(said)


def _time(result: Mapping[str, Any]) -> str:
    """How long the run took, and where time was simulated, how long in that."""
    taken = f"{result['wall_s']:.0f} s"
    return taken if "virtual_s" not in result else f"{result['virtual_s']:,.1f} s in simulated time ({taken})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
