"""`blackfleet launch`: from a scenario to a run folder with a result.

Claims the folder, settles data and partition, hands the run to its algorithm's runner, and at the end draws
overlays and prints the table.
"""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from cloud_server.algorithms.closing import depends_on_pace
from cloud_server.algorithms.table import algorithm_row
from cloud_server.run.results import RESULT_NAME
from datasets.class_file import CLASSES_NAME
from edge_client.naming import NUMBERS
from fleet.broker import MEMORY_BUS, OWN_BROKERS
from fleet.export.encoders import resizing_remark
from fleet.frames.allocation import open_data, source_test_frames
from fleet.frames.check import check_before_allotting, check_shares
from fleet.frames.partition_record import PARTITION_NAME, record_shares, settle_classes, settle_shares
from fleet.many_vehicles import remark_on_many
from fleet.privacy_budget import guarantee
from fleet.run.centralized import run_centralized
from fleet.run.checks import check_runnable, check_start
from fleet.run.controls import Controls
from fleet.run.fleet_run import run_fleet
from fleet.run.folder import (
    SCENARIO_NAME,
    begin_run,
    held,
    kept_scenario,
    readable_by_owner_alone,
    write_scenario,
)
from fleet.run.job import Job, read_object
from fleet.run.names import name_predictions
from fleet.run.places import Machines
from fleet.run.placing import check_placeable, needs_of, with_hosts_for
from fleet.run.reach import check_reach
from fleet.run.resuming import resumed_scenario
from fleet.scenario import Scenario, parse_image_size
from fleet.show.board_pictures import put_on_board
from fleet.show.overlays import draw_overlays
from fleet.show.progress import result_table
from fleet.simulation.patience import remark_on_absences
from fleet.start import FOLDER_NAME as START_FOLDER
from fleet.start import Start
from protocol.atomic import write_json_atomic
from protocol.doors import file_name
from protocol.session.topics import CLOUD_ID


def default_run_folder(scenario: Scenario) -> Path:
    """`runs/<time>-<algorithm>-<dataset>` below the current folder."""
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / file_name(f"{moment}-{scenario.algorithm}-{scenario.dataset.name}")


def launch(
    scenario: Scenario,
    run_folder: Path,
    *,
    resume: bool,
    console: Console,
    controls: Controls | None = None,
    machines: Machines | None = None,
) -> dict[str, Any]:
    """Run a scenario to its end; returns the content of `result.json`. A complete run is not run again.

    `controls` is how others ask for something while it runs, `machines` where its vehicles' processes go.

    With `resume` the scenario is the one that the run began with, but for the broker, and for more rounds
    where those are well defined (`cloud_server.run.more_rounds`).

    Raises:
        Mistake, OSError: see each part; one readable line.
        Interrupted, KeyboardInterrupt: the user stopped the run; it can be resumed.
    """
    check_runnable(scenario)
    if machines is not None:
        check_placeable(scenario)
        run_folder = run_folder.absolute()
        if not resume:
            scenario = with_hosts_for(scenario, machines.places)
    _say(_remarks_of_settings(scenario), console)
    if scenario.broker not in (*OWN_BROKERS, MEMORY_BUS):
        clients = (CLOUD_ID, *scenario.vehicle_ids)
        check_reach(scenario.broker, scenario.fleet_id, scenario.patience.join_s, clients)
    with readable_by_owner_alone():
        scenario = resumed_scenario(scenario, run_folder) if resume else begin_run(scenario, run_folder)
        with held(run_folder):
            if resume:
                _make_longer(scenario, run_folder)
            return _launch(
                scenario,
                run_folder,
                resume=resume,
                console=console,
                controls=controls or Controls(),
                machines=machines,
            )


def _make_longer(scenario: Scenario, run_folder: Path) -> None:
    """Let a run that goes on have this scenario's rounds."""
    kept = kept_scenario(run_folder)
    if scenario.rounds != kept.rounds:
        # The result first: that of fewer rounds must not stand beside the scenario of more.
        (run_folder / RESULT_NAME).unlink(missing_ok=True)
        write_scenario(run_folder, msgspec.structs.replace(kept, rounds=scenario.rounds))


def _launch(
    scenario: Scenario,
    run_folder: Path,
    *,
    resume: bool,
    console: Console,
    controls: Controls,
    machines: Machines | None,
) -> dict[str, Any]:
    try:
        start = _settle_start(scenario, run_folder, resume=resume)
        source = open_data(scenario, run_folder, console)
        settle_classes(scenario, run_folder, source)
        tested = source_test_frames(scenario, start.spec, source) if start else ()
        if machines is not None:
            machines.check(needs_of(scenario, run_folder))
        check_before_allotting(scenario, source, console)
        shares = settle_shares(scenario, run_folder, source, source_keys=tested)
        remarks = check_shares(scenario, source, shares, console)
        record_shares(run_folder, source, shares)
    except Exception:
        if not resume:
            # Nothing has begun: the mended command must find the folder free.
            for name in (PARTITION_NAME, CLASSES_NAME):
                (run_folder / name).unlink(missing_ok=True)
            shutil.rmtree(run_folder / START_FOLDER, ignore_errors=True)
            (run_folder / SCENARIO_NAME).unlink(missing_ok=True)
        raise
    is_new = not (run_folder / RESULT_NAME).exists()
    if is_new:
        _say(remarks, console)
        run = run_fleet if algorithm_row(scenario.algorithm).build else run_centralized
        run(
            Job(
                scenario=scenario,
                run_folder=run_folder,
                source=source,
                shares=shares,
                console=console,
                start=start,
                controls=controls,
                machines=machines,
            )
        )
    if scenario.privacy.names == NUMBERS:
        name_predictions(run_folder, shares)
    result = read_object(run_folder / RESULT_NAME)
    privacy = guarantee(scenario)
    if privacy is not None and result.get("privacy") != privacy:
        result["privacy"] = privacy
        write_json_atomic(run_folder / RESULT_NAME, result)
    failed = result.get("failed", {})
    lasting = {name: shares[name] for name in scenario.evaluated_vehicles if name not in failed}
    overlays = draw_overlays(source, lasting, run_folder, per_vehicle=scenario.evaluation.overlays)
    if is_new:
        put_on_board(run_folder, overlays, step=scenario.rounds)
    console.print(result_table(result))
    _say(remarks, console)
    console.print(f"results in {run_folder}", soft_wrap=True)
    return result


def _remarks_of_settings(scenario: Scenario) -> tuple[str, ...]:
    """That frames are resized to another size than asked for, where they are, what the algorithm heeds not,
    and what a large fleet, or one whose vehicles are away, does by default."""
    asked, fitting = parse_image_size(scenario.image_size), scenario.frame_size
    of_size = None if fitting == asked else resizing_remark(asked, fitting)
    of_algorithm = algorithm_row(scenario.algorithm).remark(scenario)
    of_absences = remark_on_absences(scenario.simulation, scenario.patience)
    of_pace = _remark_on_pace(scenario)
    remarks = (of_size, of_algorithm, remark_on_many(scenario), of_absences, of_pace)
    return tuple(remark for remark in remarks if remark is not None)


def _remark_on_pace(scenario: Scenario) -> str | None:
    """That results depend on who is faster, where that is no part of a simulation."""
    if scenario.simulation.time == "virtual" or not depends_on_pace(scenario):
        return None
    return (
        "who counts in a round depends on who is faster: the same seed may end with other bits; with "
        "--time virtual it does not"
    )


def _say(remarks: tuple[str, ...], console: Console) -> None:
    for remark in remarks:
        console.print(remark, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _settle_start(scenario: Scenario, run_folder: Path, *, resume: bool) -> Start | None:
    """The run's own copy of its start: what becomes of the folder it was taken from makes no difference."""
    if scenario.start is None:
        return None
    own = run_folder / START_FOLDER
    if resume and own.exists():
        start = Start.load(own)
    else:
        start = Start.load(Path(scenario.start))
        check_start(scenario, start.spec)
        start = start.copy(own)
    return start
