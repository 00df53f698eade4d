"""`blackfleet`: the operator's command.

What runs a command is imported in its body: torch alone takes seconds to load, and help, a mistake in an
option or a table of scores need none of it.
"""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cloud_server.algorithms.table import ALGORITHM_DOOR
from datasets.catalog import LABELLED_CHOICES
from evaluation.official_python import VARIABLE
from fleet.cli.audit import audit
from fleet.cli.dataset_and_encoder import dataset_app, encoder_app
from fleet.cli.interrupts import stopping_line
from fleet.cli.label import label
from fleet.cli.observers import OBSERVING, observed
from fleet.cli.options import PRETRAIN_KEYS, SCENARIO_KEYS
from fleet.cli.placed import RAY, RAY_CLOUD, RAY_RESOURCES, placed
from fleet.cli.provision import provision
from fleet.cli.scenario_options import with_scenario_options
from fleet.cli.update import update_app
from fleet.cli.vehicle_only import DOCTOR, PREDICT
from fleet.cli.watch import watch
from fleet.errors import OperatorError
from fleet.scenario import Scenario
from fleet.show.screen import screen
from protocol.errors import MENDABLE, MISTAKE_CODE
from protocol.output import outlive_readers
from protocol.showing import log_to_stderr, plain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Train one driving-scene segmentation network across a fleet of cars, with BlackFed and no frame, "
    "weight or gradient on the network, or with the methods that it is to be compared with.",
)
app.add_typer(dataset_app, name="dataset")
app.add_typer(encoder_app, name="encoder")
app.add_typer(update_app, name="update")
app.command()(provision)


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what goes on inside.")] = False,
) -> None:
    log_to_stderr(logging.DEBUG if verbose else logging.WARNING, "%(levelname)s %(name)s: %(message)s")


@app.command()
@with_scenario_options(resumes="run_dir")
def launch(
    *,
    scenario: Scenario,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for everything (default: below runs/).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show the run on a page for your browser, with buttons.",
            rich_help_panel=OBSERVING,
        ),
    ] = False,
    watch_port: Annotated[
        int, typer.Option(help="Port of that page; 0 = a free one.", rich_help_panel=OBSERVING)
    ] = 0,
    metrics_port: Annotated[
        str | None,
        typer.Option(
            metavar="PORT",
            help="Serve metrics for Prometheus here, on the loopback interface; HOST:PORT = elsewhere.",
            rich_help_panel=OBSERVING,
        ),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="At the end keep the run in this MLflow store: settings, curves, scores, files and the "
            "exported model; local: an SQLite file beside the run folder.",
            rich_help_panel=OBSERVING,
        ),
    ] = None,
    rerun: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|serve",
            help="At the end write frames, labels, predictions and curves into this .rrd file, for the "
            "Rerun viewer; serve: show them to browsers of this machine until Ctrl-C.",
            rich_help_panel=OBSERVING,
        ),
    ] = None,
    ray: RAY = None,
    ray_resources: RAY_RESOURCES = None,
    ray_cloud: RAY_CLOUD = None,
) -> None:
    """Launch a fleet on this machine, or on a Ray cluster, and end with a table of results.

    Broker, cloud and vehicles are processes of their own.

    Without options: four vehicles on generated driving frames. Ctrl-C stops cleanly; --resume goes on.
    """
    if resume and run_dir is None:
        raise OperatorError("--resume needs --run-dir, the folder of the run to go on with")
    import fleet.run.launch as launching

    folder = run_dir or launching.default_run_folder(scenario)
    with stopping_line(f"go on with: blackfleet launch --resume --run-dir {folder}"):
        console = screen()
        store, recording = None, None
        if rerun is not None:
            from fleet.cli.rerun_file import RerunFile

            recording = RerunFile(rerun)
        if mlflow is not None:
            from fleet.cli.mlflow_run import MlflowStore
            from fleet.run.folder import readable_by_owner_alone

            with readable_by_owner_alone():
                store = MlflowStore(mlflow, folder)
        with (
            placed(ray, ray_resources, ray_cloud, console) as machines,
            observed(
                scenario,
                folder,
                watch_port=watch_port if watch else None,
                metrics=metrics_port,
                console=console,
            ) as controls,
        ):
            launching.launch(
                scenario, folder, resume=resume, console=console, controls=controls, machines=machines
            )
        if store is not None:
            with readable_by_owner_alone():
                store.keep(folder, console)
        if recording is not None:
            recording.write(folder, console)


app.command()(watch)


@app.command()
@with_scenario_options(without=SCENARIO_KEYS - PRETRAIN_KEYS, resumes="out_folder")
def pretrain(
    *,
    out_folder: Annotated[
        Path,
        typer.Argument(metavar="OUT_FOLDER", help="Folder for the start, and for the run that makes it."),
    ],
    scenario: Scenario,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was begun there.")] = False,
) -> None:
    """Pretrain encoder and network together on one domain, for fleets to start from.

    All frames in one place, --rounds times --foo-epochs passes over them, no fleet. For instance:

    blackfleet pretrain starts/day --dataset camvid --data-root CAMVID --city 0001TP --city 0016E5

    blackfleet launch --start starts/day --dataset camvid --data-root CAMVID --city 0006R0 --vehicles 1
    --condition car-01=fog:3

    OUT_FOLDER then holds the encoder's bundle, the cloud network's weights, a sample of labelled features for
    --source-replay, and start.json. Fleets that start from it are also tested on test frames of this domain,
    before and after, which shows what they forget.
    """
    import fleet.run.pretrain as pretraining

    with stopping_line(f"go on with: blackfleet pretrain {out_folder} --resume"):
        pretraining.pretrain(scenario, out_folder, resume=resume, console=screen())


@app.command()
@with_scenario_options(without={"algorithm", "seed"})
def compare(
    *,
    scenario: Scenario,
    algorithms: Annotated[str, typer.Option(help=f"Some of {ALGORITHM_DOOR.choices}; comma-separated.")],
    compare_dir: Annotated[Path, typer.Option(help="Folder for all runs and the comparison.")],
    seeds: Annotated[str, typer.Option(help="Comma-separated; each algorithm runs with each.")] = "0",
    reference: Annotated[
        str | None,
        typer.Option(
            help="Whose validation mIoU the others are to reach; default: blackfed-v2, else the first."
        ),
    ] = None,
    equal: Annotated[
        str | None,
        typer.Option(
            help="Also cut the runs at the same budget, steps, bytes or compute: the least that any of them "
            "spends. Read off their curves of validation mIoU: no run is made again, rates fell as they did."
        ),
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            help="Beside blackfleet, which learns from loss feedback, run the same without: what that buys."
        ),
    ] = True,
) -> None:
    """Run algorithms side by side, on the same frames, into one table and one report.

    Ctrl-C stops cleanly; the same command goes on: finished runs are kept, an interrupted one is resumed.
    """
    import fleet.cli.sweep as comparing

    with stopping_line("go on with the same command"):
        console, names = screen(), comparing.parse_algorithms(algorithms)
        comparing.compare(
            scenario,
            comparing.with_controls(names, scenario, console) if control else names,
            comparing.parse_seeds(seeds),
            compare_dir,
            reference=reference,
            equal=equal,
            console=console,
        )


@app.command()
@with_scenario_options()
def init(
    *,
    file: Annotated[Path, typer.Argument(help="Scenario file to write.")] = Path("scenario.yaml"),
    scenario: Scenario,
) -> None:
    """Write a scenario file with every setting, and above each what it is; other options change values.

    blackfleet init mine.yaml --dataset camvid --data-root CAMVID --vehicles 3
    """
    from fleet.cli.commented_scenario import write_commented

    write_commented(scenario, file)
    print(f"wrote {file}; launch it: blackfleet launch --scenario {shlex.quote(str(file))}")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A run folder, or a folder of predicted label images.")],
    ground_truth: Annotated[Path, typer.Argument(help="The data set's folder.")],
    dataset: Annotated[
        str | None, typer.Option(help=f"One of {LABELLED_CHOICES}; default: as the folder looks.")
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Also run the cityscapesscripts and compare.")
    ] = False,
    official_python: Annotated[
        Path | None,
        typer.Option(
            help=f"Like --official, by this Python; default: ${VARIABLE}, or that of `make official`."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File for the scores (JSON).")] = None,
) -> None:
    """Score predictions as the Cityscapes benchmark does: class IoU, category IoU, iIoU where possible.

    With --official, exit code 1 says that the cityscapesscripts come to other scores.
    """
    from fleet.cli.evaluate import run_evaluate

    official = official or official_python is not None
    raise typer.Exit(run_evaluate(predictions, ground_truth, dataset, official, output, official_python))


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that has ended.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="NAME.onnx; the parts become NAME.encoder.onnx, …")
    ] = Path("model.onnx"),
    vehicle: Annotated[
        str | None, typer.Option(help="Its id; default: the best on its own test frames.")
    ] = None,
    logits: Annotated[
        bool, typer.Option(help="Give logits besides class ids: what `predict` enlarges.")
    ] = True,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write all three in int8, and print what that costs.")
    ] = False,
) -> None:
    """Write a vehicle's model as ONNX: image to class ids, checked against the run's own predictions.

    Encoder and network are also written as a file each. The model runs wherever ONNX Runtime does.
    """
    from fleet.model.export import export_model

    export_model(run_folder, output, vehicle=vehicle, logits=logits, int8=int8, console=screen())


@app.command(
    PREDICT,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def predict(context: typer.Context) -> None:
    """Predict pictures, a video or a data set with an exported model; see its own --help."""
    import edge_client.predict.command as predicting

    raise typer.Exit(predicting.main(context.args))


@app.command(
    DOCTOR,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def doctor(context: typer.Context) -> None:
    """Check this machine, and say what to install; see its own --help."""
    import fleet.doctor.command as checking

    raise typer.Exit(checking.main(context.args))


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_OR_COMPARE", help="The folder of a run or of a comparison.")
    ],
    rerun: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|serve",
            help="Of a run: also write frames, labels, predictions and curves into this file (.rrd), for "
            "the Rerun viewer; serve: show them to browsers of this machine until Ctrl-C.",
        ),
    ] = None,
) -> None:
    """Put a run or a comparison on one page: report.html, with tables, curves and pictures."""
    from fleet.report.page import write_report

    recording = None
    if rerun is not None:
        from fleet.cli.rerun_file import RerunFile

        recording = RerunFile(rerun)
    print(write_report(folder), flush=True)
    if recording is not None:
        recording.write(folder, screen())


app.command()(label)
app.command()(audit)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder with runs in it, at any depth.")] = Path("runs"),
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only runs of which this is so, such as algorithm=fedavg, vehicles>=8, state=done or "
            "'mean_local_miou>0.4'; repeat for more. Keys are those of settings and of result.json."
        ),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Order by this key, the highest first.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also show what differs, setting by setting, score by score.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """List runs, choose some, and put them side by side."""
    from fleet.cli.runs import show_runs

    show_runs(folder, where or (), order=sort, compare=compare, as_json=as_json, console=screen())


def main() -> NoReturn:
    """Run the command; a mistake ends in one line and exit code 2."""
    outlive_readers()
    try:
        app(standalone_mode=True)
    except MENDABLE as error:
        logging.getLogger(__name__).debug("", exc_info=True)
        print(f"blackfleet: {plain(str(error))}", file=sys.stderr)
        sys.exit(MISTAKE_CODE)
    sys.exit(0)


if __name__ == "__main__":
    main()
