"""`python -m cloud_server`: the cloud of one fleet, on any broker.

What learns is imported once the options are understood: torch takes seconds to load, a mistake needs none.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from cloud_server.algorithms.table import FLEET_ALGORITHMS
from cloud_server.config import DEVICES, ON_FAILURE, PRECISIONS, CloudConfig, read_config
from cloud_server.errors import CloudError, Stopped
from cloud_server.metrics import RunMetrics
from cloud_server.unknown_keys import explain
from datasets.catalog import LABEL_SPACES
from datasets.class_file import is_class_file
from datasets.readers import tabled
from protocol.errors import MISTAKE_CODE, Mistake
from protocol.metrics import MetricsServer, process_families
from protocol.mqtt.broker_url import BROKER_VARIABLE, parse_broker_url
from protocol.mqtt.connect import connector
from protocol.mqtt.strangers import warning_of_strangers
from protocol.mqtt.transport import NetworkLoop
from protocol.output import outlive_readers
from protocol.seal_files import FOLDER_NAME as SEALS
from protocol.seal_files import check_seal, has_seal
from protocol.session.topics import CLOUD_ID
from protocol.showing import log_to_stderr, plain, show_anything
from protocol.stopping import STOPPED_CODE, on_stop_signal
from protocol.watchdog import Watchdog

log = logging.getLogger("cloud_server")


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, close; returns the exit code: 0 done, 2 a mistake or fault, 130 stopped by a signal."""
    outlive_readers()
    options = _parse(arguments)
    show_anything()
    os.umask(0o077)  # what a run leaves is its owner's: it tells of frames and labels
    log_to_stderr(options.log_level.upper(), "%(asctime)s cloud %(levelname)s %(message)s")
    stop = threading.Event()
    on_stop_signal(lambda _: stop.set())
    try:
        if options.broker is None:
            raise CloudError("--broker missing; give the broker's URL, for instance mqtt://127.0.0.1:1883")
        config = _config(options)
        from cloud_server.run.service import serve
        from cloud_server.training.compute import check_device

        check_device(config.device)
        with NetworkLoop() as loop, contextlib.ExitStack() as stack:
            seals = _seals(options)
            if warning := warning_of_strangers(
                options.broker, config.fleet, loop, are_sealed=seals is not None
            ):
                log.warning("%s", warning)
            metrics = stack.enter_context(_metrics(config, options.metrics_port))
            serve(
                config,
                connector(options.broker, loop),
                run_folder=options.run_dir,
                resume=options.resume,
                stop=stop,
                recorders=[metrics] if metrics is not None else [],
                watchdog=Watchdog(os.environ),
                seals=seals,
            )
    except Stopped:
        log.info("stopped; everything committed is in %s", options.run_dir)
        return STOPPED_CODE
    except Mistake as error:
        log.debug("", exc_info=True)
        print(f"cloud_server: {plain(str(error))}", file=sys.stderr)
        return MISTAKE_CODE
    except OSError as error:
        log.debug("", exc_info=True)
        print(
            f"cloud_server: {error}; what was committed is safe: mend this, then resume the run",
            file=sys.stderr,
        )
        return MISTAKE_CODE
    return 0


@contextlib.contextmanager
def _metrics(config: CloudConfig, where: str | None) -> Iterator[RunMetrics | None]:
    """What takes in the run's events for Prometheus in the body, and serves them; None where nobody asked."""
    if where is None:
        yield None
        return
    run = RunMetrics({"run": config.fleet, "algorithm": config.algorithm, "dataset": config.dataset})
    with MetricsServer(where, run.families, partial(process_families, {"cloud": os.getpid()})) as server:
        log.info("metrics at %s", server.address)
        yield run
        server.linger()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cloud_server",
        description="The cloud of a fleet: gathers the vehicles, grants their turns, learns with them as the "
        "algorithm says, and writes RUN_DIR/result.json.",
        epilog="example: python -m cloud_server --broker mqtt://127.0.0.1:1883 --fleet demo "
        "--vehicles car-1,car-2 --run-dir runs/by-hand",
    )
    parser.add_argument(
        "--broker",
        default=os.environ.get(BROKER_VARIABLE),
        help=f"broker URL: mqtt://, mqtts://, ws:// or wss://; default: ${BROKER_VARIABLE}, which no list of "
        "processes shows",
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--config", type=Path, help="JSON file with all settings (cloud_server.config)")
    parser.add_argument("--fleet", help="fleet id, the third level of every topic")
    parser.add_argument("--vehicles", help="comma-separated ids of the vehicles that take part")
    defaults = {field.name: field.default for field in msgspec.structs.fields(CloudConfig)}
    parser.add_argument(
        "--algorithm",
        help=f"one of {', '.join(FLEET_ALGORITHMS)}, or package.module:name of your own (default "
        f"{defaults['algorithm']})",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"in each, every vehicle has a turn (default {defaults['rounds']})"
    )
    parser.add_argument("--seed", type=int, help=f"decides every random draw (default {defaults['seed']})")
    parser.add_argument(
        "--label-space",
        help=f"the classes of the labels: one of {', '.join(LABEL_SPACES)}, the table "
        "of a folder (DIR/dataset.yaml), or the package.module:name of your own data set",
    )
    parser.add_argument("--bits", type=int, help="bits of a feature element: 32, 8, 6, 4, 3 or 2")
    parser.add_argument(
        "--frame-bytes", type=int, help="most bytes of a frame's features; --bits is then the most bits"
    )
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument(
        "--device", choices=DEVICES, help=f"what to compute on (default {defaults['device']})"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help=f"of convolutions and products (default {defaults['precision']})",
    )
    parser.add_argument(
        "--on-vehicle-failure",
        choices=ON_FAILURE,
        help="when a vehicle does not join, fails or stays away: continue without it (default), readmit it "
        "when it is back, wait for it, or stop",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="answer vehicles that drive (their --serve cloud): class maps of what they see, in the run and "
        "after it, until stopped",
    )
    parser.add_argument(
        "--seals",
        type=Path,
        metavar="FOLDER",
        help="folder of the run's key, cloud.seal: vehicles with theirs hear this cloud alone, and it them; "
        "default: RUN_DIR/seals, or what ?identity= of the broker's URL names, where there is one",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN_DIR")
    parser.add_argument(
        "--metrics-port",
        metavar="PORT",
        help="serve metrics for Prometheus here, on the loopback interface; HOST:PORT = elsewhere",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser.parse_args(arguments)


def _seals(options: argparse.Namespace) -> Path | None:
    """The folder of the run's key: as the option says, the run's own, or where the certificates are.

    Raises:
        SealFault: the option names a folder without.
    """
    if options.seals is not None:
        check_seal(options.seals, CLOUD_ID)
        return Path(options.seals)
    places = (options.run_dir / SEALS, parse_broker_url(options.broker).identity)
    return next((place for place in places if place is not None and has_seal(place, CLOUD_ID)), None)


def _classes(name: str | None) -> dict[str, str]:
    """The settings that say which classes and data set the run is about; a path is one from here."""
    if name is None:
        return {}
    if is_class_file(name):
        return {"dataset": tabled.ENTRY.name, "label_space": str(Path(name).absolute())}
    return {"dataset": name, "label_space": name}


def _config(options: argparse.Namespace) -> CloudConfig:
    """Settings from the file, overridden by options.

    Raises:
        CloudError: they don't describe a run.
    """
    given = {
        "fleet": options.fleet,
        "vehicles": options.vehicles.split(",") if options.vehicles else None,
        "algorithm": options.algorithm,
        "rounds": options.rounds,
        "seed": options.seed,
        "device": options.device,
        "precision": options.precision,
        **_classes(options.label_space),
        "training_threads": options.threads,
        "inference_threads": options.threads,
    }
    content = msgspec.to_builtins(read_config(options.config)) if options.config else {}
    content.update({key: value for key, value in given.items() if value is not None})
    coding = {"bits": options.bits, "frame_bytes": options.frame_bytes}
    content["coding"] = {
        **content.get("coding", {}),
        **{key: value for key, value in coding.items() if value is not None},
    }
    if options.on_vehicle_failure is not None:
        content["patience"] = {**content.get("patience", {}), "on_failure": options.on_vehicle_failure}
    if options.serve and content.get("serving") is None:
        content["serving"] = {}
    missing = [f"--{key}" for key in ("fleet", "vehicles") if key not in content]
    if missing:
        raise CloudError(f"{' and '.join(missing)} missing; give it, or a --config file")
    try:
        return msgspec.convert(content, CloudConfig)
    except msgspec.ValidationError as error:
        raise CloudError(f"settings: {explain(str(error), CloudConfig)}") from error


if __name__ == "__main__":
    sys.exit(main())
