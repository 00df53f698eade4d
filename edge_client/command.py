"""`python -m edge_client`: a vehicle, or a host of several, on any broker."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from datasets.catalog import DATASETS, LABEL_SPACES, label_space
from edge_client.conversation import DEFAULT_OFFLINE_S, Stopped
from edge_client.encoder.providers import candidates
from edge_client.errors import VehicleError
from edge_client.frames import limit_opencv_threads
from edge_client.host import Host, HostConfig, VehicleConfig, read_host_config
from edge_client.local.network import TRAINING_DEVICES
from edge_client.metrics import host_families, machine_families
from edge_client.predict.model import Model
from edge_client.predict.on_board import OnBoard
from edge_client.recent import Seeing
from edge_client.source.options import add_source_options, source_config
from edge_client.source.recording import Recording, recorded_frames
from edge_client.spool import DEFAULT_SPOOL_MB
from edge_client.through_cloud import CLOUD, ThroughCloud
from edge_client.updates.pull import Pulled, UpdatePull, check_update_url
from protocol.doors import FOREIGN_CHOICE
from protocol.errors import MENDABLE, MISTAKE_CODE
from protocol.metrics import MetricsServer, process_families
from protocol.mqtt.broker_url import BROKER_VARIABLE, parse_broker_url
from protocol.mqtt.connect import connector
from protocol.mqtt.transport import NetworkLoop
from protocol.output import outlive_readers
from protocol.seal_files import check_seal, has_seal
from protocol.showing import log_to_stderr, plain, show_anything
from protocol.stopping import STOPPED_CODE, on_stop_signal
from protocol.update_signature import PUBLIC_NAME, check_public_key
from protocol.watchdog import Watchdog

log = logging.getLogger("edge_client")

_LEARNING_NICE = 9
"""By so much what learns is nicer than what serves."""


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, close; returns the exit code: 0 done, 2 a mistake or fault, 130 stopped by a signal."""
    outlive_readers()
    options = _parse(arguments)
    show_anything()
    os.umask(0o077)  # what a run leaves is its owner's: it tells of frames and labels
    log_to_stderr(options.log_level.upper(), "%(asctime)s %(threadName)s %(levelname)s %(message)s")
    stop = threading.Event()
    on_stop_signal(lambda _: stop.set())
    try:
        if options.broker is None:
            raise VehicleError("--broker missing; give the broker's URL, for instance mqtt://127.0.0.1:1883")
        config = _with_seals(_with_updates(_config(options), options), options)
        watchdog = Watchdog(os.environ)
        with (
            NetworkLoop(len(config.vehicles)) as loop,
            _serving(config, watchdog) as serving,
            _recorded(config, stop, serving) as recording,
            _pulling(config, options.broker) as pulled,
        ):
            frames = None if recording is None else recording.frames
            host = Host(
                config,
                connector(options.broker, loop),
                stop,
                frames,
                watchdog=watchdog,
                seeing=partial(_seeing, recording, serving),
                through_cloud=serving if isinstance(serving, ThroughCloud) else None,
                pulled=pulled,
            )
            with _metrics(host, options.metrics_port):
                host.run()
            if recording is not None:
                recording.run_is_over()
            if isinstance(serving, ThroughCloud):
                log.info("the run is over, and with it serving through the cloud")
            if isinstance(serving, OnBoard):
                log.info("serving goes on until it is stopped")
                stop.wait()
                raise Stopped
    except Stopped:
        return STOPPED_CODE
    except MENDABLE as error:
        log.debug("", exc_info=True)
        print(f"edge_client: {plain(str(error))}", file=sys.stderr)
        return MISTAKE_CODE
    return 0


@contextlib.contextmanager
def _metrics(host: Host, where: str | None) -> Iterator[None]:
    """Serve metrics in the body, if somebody asked for it."""
    if where is None:
        yield
        return
    ids = {"host": os.getpid()}
    health = [] if host.health is None else [partial(machine_families, host.health.now)]
    vehicles = partial(host_families, host.states)
    with MetricsServer(where, vehicles, *health, partial(process_families, ids)) as server:
        log.info("metrics at %s", server.address)
        yield


@contextlib.contextmanager
def _serving(config: HostConfig, watchdog: Watchdog) -> Iterator[OnBoard | ThroughCloud | None]:
    """What makes class maps of what the camera sees, where somebody asked for it."""
    source = config.source
    if source is None or source.serve is None:
        yield None
        return
    folder = Path(source.recording).parent / "serving" if source.serve_to is None else Path(source.serve_to)
    alive = watchdog.watch("serving")
    if source.serve == CLOUD:
        with ThroughCloud(folder, alive=alive) as through_cloud:
            yield through_cloud
    else:
        model = Model(Path(source.serve), threads=config.threads, providers=candidates(config.provider))
        if source.unsure is not None and not model.gives_logits:
            raise VehicleError(
                f"--keep-unsure needs a model that gives logits, {source.serve} gives none: export it "
                f"without --no-logits"
            )
        with OnBoard(model, folder, alive=alive) as on_board:
            yield on_board
    watchdog.leave("serving")


@contextlib.contextmanager
def _recorded(
    config: HostConfig, stop: threading.Event, serving: OnBoard | ThroughCloud | None
) -> Iterator[Recording | None]:
    """The frames of a camera, where there is one, which goes on recording in the body."""
    if config.source is None:
        yield None
        return
    limit_opencv_threads(config.threads)
    space = label_space(config.label_space)
    looks = () if serving is None else (serving.offer, serving.uncertainty)
    with recorded_frames(config.source, config.fleet, space, stop, *looks) as recording:
        if serving is not None:
            # Threads that begin from here on learn: they take what the camera and its class maps leave.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.nice(0) + _LEARNING_NICE)
        yield recording


def _seeing(recording: Recording | None, serving: OnBoard | ThroughCloud | None) -> Seeing:
    """How the camera and its class maps come on."""
    camera = Seeing() if recording is None else recording.camera()
    served = Seeing() if serving is None else serving.seeing()
    return camera._replace(served_hz=served.served_hz, served_ms=served.served_ms)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m edge_client",
        description="A vehicle: runs its encoder on its own frames with ONNX Runtime, and learns as the "
        "cloud's algorithm says: with BlackFed from losses alone, and neither frame nor weight leaves it.",
        epilog="example: python -m edge_client --broker mqtt://127.0.0.1:1883 --fleet demo --vehicle car-1 "
        "--bundle bundles/stride8-c8 --dataset camvid --data-root camvid --state state/car-1",
    )
    parser.add_argument(
        "--broker",
        default=os.environ.get(BROKER_VARIABLE),
        help=f"broker URL: mqtt://, mqtts://, ws:// or wss://; default: ${BROKER_VARIABLE}, which no list of "
        "processes shows",
    )
    parser.add_argument(
        "--config", type=Path, help="JSON file that describes a whole host, instead of the options below"
    )
    parser.add_argument("--fleet", help="fleet id, the third level of every topic")
    parser.add_argument("--vehicle", help="this vehicle's id")
    parser.add_argument("--bundle", help="folder of the encoder bundle (blackfleet encoder export)")
    parser.add_argument(
        "--dataset",
        help=f"one of {', '.join(DATASETS)} (PNG or JPEG files without labels), {FOREIGN_CHOICE}; default: "
        "cityscapes",
    )
    parser.add_argument(
        "--label-space",
        default="cityscapes",
        help=f"classes of the network that looks at frames without labels: one of {', '.join(LABEL_SPACES)}, "
        "a table (DIR/dataset.yaml), or the package.module:name of your own data set; default: cityscapes",
    )
    parser.add_argument("--data-root", help="folder of the data set")
    parser.add_argument("--state", help="folder for what the vehicle learns; keep it to resume")
    parser.add_argument(
        "--local-model", help="folder of the whole network, for federated averaging alone; needs torch"
    )
    parser.add_argument(
        "--local-head",
        help="folder of its local head, for learning from its own labels (blackfleet)",
    )
    parser.add_argument(
        "--allow-learner",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:NAME",
        help="an estimator or learner that is not ours and that the cloud may have this vehicle use; repeat "
        "for more",
    )
    parser.add_argument(
        "--when",
        metavar="FILE|command:COMMAND",
        help="work only when the car allows it: a file that says yes or no, or a command that ends with 0 "
        "for yes; default: always",
    )
    parser.add_argument(
        "--update-key",
        metavar="FILE",
        help="the operator's public key, with which updates must be signed; default: update.pub in the "
        "folder that ?identity= of the broker's URL names; without either no update is taken",
    )
    parser.add_argument(
        "--seals",
        metavar="FOLDER",
        help="folder of its key, NAME.seal: it hears its run's cloud alone, and is heard as itself; "
        "default: what ?identity= of the broker's URL names, where there is one",
    )
    parser.add_argument(
        "--update-url",
        metavar="URL",
        help="an https:// address of a signed update, looked at every 15 minutes; default: only what the "
        "cloud offers",
    )
    parser.add_argument(
        "--offline-s",
        type=float,
        default=DEFAULT_OFFLINE_S,
        metavar="SECONDS",
        help="how long to wait for a network that is gone; what a turn can do without it goes on "
        "(default: a day)",
    )
    parser.add_argument(
        "--spool-mb",
        type=int,
        default=DEFAULT_SPOOL_MB,
        metavar="MB",
        help=f"how much of a turn may wait on disk while there is no network (default {DEFAULT_SPOOL_MB})",
    )
    parser.add_argument("--predictions", help="folder for its own test frames' predictions (fedavg)")
    parser.add_argument("--threads", type=int, default=1, help="ONNX Runtime threads (default 1)")
    parser.add_argument(
        "--provider",
        default="auto",
        help="what encoders run on: cpu, cuda, tensorrt, or another that this ONNX Runtime has; auto: CUDA "
        "where every graph gives what it gives on the CPU, else the CPU (default); with options of its own: "
        "tensorrt:trt_max_workspace_size=1000000000,device_id=0",
    )
    parser.add_argument(
        "--training-device",
        choices=TRAINING_DEVICES,
        default="cpu",
        help="what torch trains the whole network on (fedavg; default cpu)",
    )
    parser.add_argument(
        "--warm-up",
        type=_batch_sizes,
        default=(1, 8),
        metavar="N,N",
        help="batch sizes of the run, for which a GPU prepares itself before the vehicle joins (default 1,8)",
    )
    parser.add_argument(
        "--encoder-mode",
        default="auto",
        choices=("auto", "bind", "rebuild"),
        help="how changed weights run; auto (default) is rebuild on the CPU, elsewhere measured at the start",
    )
    parser.add_argument(
        "--metrics-port",
        metavar="PORT",
        help="serve metrics for Prometheus here, on the loopback interface; HOST:PORT = elsewhere",
    )
    add_source_options(parser)
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _pulling(config: HostConfig, broker: str) -> Iterator[Callable[[], Pulled | None]]:
    """What was fetched from an address of updates, where there is one: of servers that the system trusts, or
    the authority of the broker's URL."""
    if config.update_url is None:
        yield lambda: None
        return
    context = ssl.create_default_context()
    url = parse_broker_url(broker)
    if (ca := url.ca if url.identity is None else url.identity / "ca.crt") is not None:
        context.load_verify_locations(ca)
    with UpdatePull(config.update_url, Path(config.vehicles[0].state) / "pulled", context) as pull:
        yield pull.newest


def _with_updates(config: HostConfig, options: argparse.Namespace) -> HostConfig:
    """The host's settings with the key that the options name, or the broker's URL, and where to look.

    Raises:
        KeyFault: a key that was named is none, or can't be used here.
        VehicleError: updates are to be fetched, and there is no key to check them by.
    """
    key = options.update_key or config.update_key
    if key is not None:
        check_public_key(Path(key))
    elif (identity := parse_broker_url(options.broker).identity) is not None:
        found = identity / PUBLIC_NAME
        key = str(found) if found.exists() else None
    url = options.update_url or config.update_url
    if url is not None:
        check_update_url(url)
    if url is not None and key is None:
        raise VehicleError("updates from --update-url need the operator's public key: give --update-key, too")
    return msgspec.structs.replace(config, update_key=key, update_url=url)


def _with_seals(config: HostConfig, options: argparse.Namespace) -> HostConfig:
    """The host's settings with the folder of keys that the options name, or the broker's URL.

    Raises:
        SealFault: a key of one of its vehicles is missing there.
    """
    folder = options.seals or config.seals
    names = [vehicle.id for vehicle in config.vehicles]
    if folder is None:
        identity = parse_broker_url(options.broker).identity
        if identity is None or not any(has_seal(identity, name) for name in names):
            return config
        folder = str(identity)
    for name in names:
        check_seal(Path(folder), name)
    return msgspec.structs.replace(config, seals=folder)


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers with commas between, like 1,8, got {text!r}"
        ) from None


def _config(options: argparse.Namespace) -> HostConfig:
    if options.config:
        return read_host_config(options.config)
    source = source_config(options)
    required = ("fleet", "vehicle", "bundle", *(("data_root",) if source is None else ()), "state")
    missing = [f"--{name.replace('_', '-')}" for name in required if getattr(options, name) is None]
    if missing:
        raise VehicleError(f"{', '.join(missing)} missing; give it, or a --config file (see --help)")
    return HostConfig(
        fleet=options.fleet,
        dataset=options.dataset or "cityscapes",
        data_root=options.data_root,
        source=source,
        label_space=options.label_space,
        threads=options.threads,
        provider=options.provider,
        training_device=options.training_device,
        warm_up=options.warm_up,
        encoder_mode=options.encoder_mode,
        allowed_learners=tuple(options.allow_learner),
        when=options.when,
        offline_s=options.offline_s,
        spool_mb=options.spool_mb,
        health=True,
        vehicles=(
            VehicleConfig(
                id=options.vehicle,
                bundle=options.bundle,
                state=options.state,
                local_model=options.local_model,
                local_head=options.local_head,
                predictions=options.predictions,
            ),
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
