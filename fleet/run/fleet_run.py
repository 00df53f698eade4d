"""Runs an algorithm that needs a fleet: broker, cloud and vehicle hosts as processes, or all in this one."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from cloud_server.algorithms.base import PREDICTED
from cloud_server.config import network_seed, read_config
from cloud_server.run.equipment import run_needs
from cloud_server.storage.recorders import append_event
from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.providers import choose_encoder
from edge_client.host import HostConfig, VehicleConfig, read_host_config
from evaluation.latest import LatestFrames
from fleet import broker
from fleet.broker import MEMORY_BUS, OWN_BROKERS
from fleet.errors import OperatorError
from fleet.export.bundle import SPEC_NAME, export_encoder
from fleet.export.encoders import folder_name, short_name
from fleet.export.local_model import export_local_model
from fleet.frames.allocation import data_folder, sights
from fleet.many_vehicles import MANY
from fleet.run.beginning import begin
from fleet.run.checks import named_learners
from fleet.run.deadline import check_deadline
from fleet.run.heads import write_decoders, write_heads
from fleet.run.in_process import run_in_process
from fleet.run.job import Job
from fleet.run.processes import ProcessSpec, ProcessTable
from fleet.scenario import Scenario
from fleet.show.follow import LogFollower
from fleet.show.progress import Progress
from fleet.simulation.resuming import committed_at_s
from fleet.simulation.world import World
from protocol.atomic import write_json_atomic
from protocol.local_model import FOLDER_NAME
from protocol.mqtt.broker_url import BROKER_VARIABLE
from protocol.noise import derive_seed
from protocol.seal_files import FOLDER_NAME as SEALS
from protocol.seal_files import make_seals
from protocol.session.transport import BrokerUnreachable

CLOUD_SETTINGS_NAME = "cloud.json"
_POLL_S = 0.2
_LEAVE_S = 15.0
_FOREVER_S = 366 * 86400.0


def run_fleet(job: Job) -> None:
    """Write every process's settings, start the processes, and follow the run to its end.

    Raises:
        Mistake, OSError: a setting doesn't fit, or a process failed; one readable line.
        Interrupted, KeyboardInterrupt: the user stopped the run; it can be resumed.
    """
    hosts = _write_settings(job)
    if job.scenario.broker == MEMORY_BUS:
        _run_in_memory(job, hosts)
        return
    table = _process_table(job, hosts)

    def tell(name: str, /, **values: Any) -> None:
        append_event(job.run_folder, name, values)

    try:
        with ProcessTable(table, job.run_folder / "processes", tell) as processes:
            job.controls.open({vehicle: spec.name for spec in table for vehicle in spec.vehicles})
            with Progress(job.scenario, job.console) as progress:
                follower = LogFollower(job.run_folder, progress)
                while processes.check():
                    job.controls.serve(processes)
                    follower.update()
                    time.sleep(_POLL_S)
                follower.update()
            processes.wait_all_but_first(_LEAVE_S)
    except BaseException:
        with contextlib.suppress(OSError):
            tell("stopped")
        raise
    finally:
        job.controls.close()


def _run_in_memory(job: Job, hosts: Sequence[Path]) -> None:
    """The same run without processes and broker; the fleet works in a thread, this one shows it."""
    stop = threading.Event()
    failures: list[Exception] = []
    world, settings = _world(job), [read_host_config(path) for path in hosts]
    if world is not None:
        check_deadline(job.scenario, settings, world)

    def work() -> None:
        try:
            run_in_process(
                read_config(job.run_folder / CLOUD_SETTINGS_NAME),
                settings,
                job.run_folder,
                resume=job.has_begun,
                stop=stop,
                world=world,
            )
        except Exception as error:  # whatever ended the fleet is raised in the launcher's own thread
            failures.append(error)

    fleet = threading.Thread(target=work, name="fleet")
    fleet.start()
    try:
        with Progress(job.scenario, job.console) as progress:
            follower = LogFollower(job.run_folder, progress)
            while fleet.is_alive():
                follower.update()
                fleet.join(_POLL_S)
            follower.update()
    finally:
        stop.set()
        fleet.join()
    if failures:
        raise failures[0]


def _world(job: Job) -> World | None:
    """What simulates links, devices and time; None: nothing does."""
    scenario = job.scenario
    if not scenario.simulation.is_on:
        return None
    return World(
        scenario.simulation,
        fleet=scenario.fleet_id,
        vehicles=scenario.vehicle_ids,
        seed=scenario.seed,
        start_s=committed_at_s(job.run_folder) if job.has_begun else 0.0,
        tell=partial(append_event, job.run_folder),
    )


def _write_settings(job: Job) -> list[Path]:
    """Bundles, cloud and host settings into the run folder; returns the hosts' files."""
    scenario, run_folder = job.scenario, job.run_folder
    folders = _write_bundles(job)
    bundles = {name: EncoderBundle.load(folder) for name, folder in folders.items()}
    config = msgspec.structs.replace(scenario.cloud_config(), image_size=scenario.frame_size)
    if job.machines is not None:
        config = msgspec.structs.replace(config, parallel_turns=job.machines.places)
    write_json_atomic(run_folder / CLOUD_SETTINGS_NAME, msgspec.to_builtins(config))
    hosts_folder = run_folder / "hosts"
    hosts_folder.mkdir(exist_ok=True)
    mode = _encoder_mode(scenario, hosts_folder, next(iter(bundles.values())))
    seen_through = sights(job.shares)
    needs = run_needs(scenario.cloud_config())
    heads = write_heads(job, bundles) if needs.local_head else {}
    weight = scenario.privacy.decoder_weight
    decoders = write_decoders(job, bundles) if weight else {}
    trains = needs.whole_network
    if trains:
        _write_local_model(job)
    latest = LatestFrames(run_folder, scenario.vehicle_ids, "")
    vehicles = [
        VehicleConfig(
            id=vehicle,
            bundle=str(folders[share.encoder]),
            state=str(run_folder / "vehicles" / vehicle),
            local_model=str(run_folder / FOLDER_NAME) if trains else None,
            local_head=heads.get(share.encoder),
            decoder=decoders.get(share.encoder),
            decoder_weight=weight,
            update_clip=scenario.privacy.update_clip,
            update_noise=scenario.privacy.update_noise,
            noise_seed=derive_seed(scenario.seed, "noise", vehicle) if scenario.privacy.update_clip else None,
            predictions={split: str(run_folder / name / vehicle) for split, name in PREDICTED.items()}
            if trains
            else {},
            latest=str(folder) if trains and (folder := latest.folder(vehicle)) else None,
            frames=share.splits(),
            sight=share.sight,
            names=scenario.privacy.names,
            label_square=scenario.privacy.label_square,
            ood_sights={key: seen_through[key] for key in share.ood if key in seen_through},
        )
        for vehicle, share in job.shares.items()
    ]
    seals = None
    if scenario.broker != MEMORY_BUS:
        seals = str(run_folder / SEALS)
        make_seals(run_folder / SEALS, scenario.fleet_id, scenario.vehicle_ids)
    paths: list[Path] = []
    for members in _hosts_of(vehicles, scenario, hosts_folder if job.has_begun else None):
        host = HostConfig(
            fleet=scenario.fleet_id,
            dataset=scenario.dataset.name,
            data_root=str(data_folder(scenario, run_folder)),
            test_split=scenario.dataset.test_split,
            vehicles=tuple(members),
            state_database=_state_database(job, len(paths) + 1),
            allowed_learners=named_learners(scenario),
            threads=scenario.encoder.threads,
            provider=scenario.encoder.provider,
            training_device=scenario.encoder.training_device,
            warm_up=tuple(sorted({1, scenario.zeroth_order.batch_size, scenario.first_order.batch_size})),
            encoder_mode=mode,
            payload_limit_bytes=scenario.payload_limit_bytes,
            heartbeat_s=scenario.patience.heartbeat_s,
            connect_timeout_s=scenario.patience.join_s,
            retry_s=scenario.patience.retry_s,
            give_up_s=scenario.patience.give_up_s,
            # One that a simulation takes away is no process that has lost its network: it comes back.
            offline_s=_FOREVER_S if scenario.simulation.is_on else scenario.patience.give_up_s,
            frames_checked=True,
            step_s=scenario.patience.step_s,
            seals=seals,
            # Those that share a machine need but one process that tells of it.
            health=not paths or job.machines is not None,
        )
        paths.append(hosts_folder / f"host-{len(paths) + 1:02d}.json")
        write_json_atomic(paths[-1], msgspec.to_builtins(host))
    return paths


def _hosts_of(
    vehicles: Sequence[VehicleConfig], scenario: Scenario, begun: Path | None
) -> Iterator[Sequence[VehicleConfig]]:
    """Whose vehicles share a process: neighbours; of many vehicles those far apart, as turns are granted in
    the fleet's order, and a process computes one turn at a time. Those that are tested have turns of their
    own, and so are dealt by themselves. In a run that has begun each stays where its state is: `begun` is
    the folder of the hosts' settings."""
    per_host = scenario.per_host
    hosts = -(-len(vehicles) // per_host)
    if len(vehicles) <= MANY:
        for number in range(hosts):
            yield vehicles[number * per_host : (number + 1) * per_host]
        return
    by_id = {vehicle.id: vehicle for vehicle in vehicles}
    known = [] if begun is None else _members(begun)
    if {name for names in known for name in names} == set(by_id):
        yield from ([by_id[name] for name in names] for names in known)
        return
    tested = set(scenario.evaluated_vehicles)
    dealt = [[v for v in vehicles if (v.id in tested) is is_tested] for is_tested in (True, False)]
    for number in range(hosts):
        members = {v.id for part in dealt for v in part[number::hosts]}
        yield [vehicle for vehicle in vehicles if vehicle.id in members]


def _members(hosts_folder: Path) -> list[list[str]]:
    """Whose vehicles share a process, by the settings that hosts have."""
    paths = sorted(hosts_folder.glob("host-*.json"), key=lambda path: (len(path.name), path.name))
    return [[vehicle.id for vehicle in read_host_config(path).vehicles] for path in paths]


def _state_database(job: Job, host: int) -> str | None:
    """A host's one file, where a folder a vehicle is too many; a run goes on with what it began with.

    Not on storage that machines share: there a database's locks and log are not to be relied on.
    """
    database = job.run_folder / "vehicles" / f"host-{host:02d}.sqlite"
    if database.exists():
        return str(database)
    if len(job.shares) <= MANY or job.machines is not None:
        return None
    return None if next(database.parent.glob("*/turn-*.state"), None) else str(database)


def _write_bundles(job: Job) -> dict[str, Path]:
    """The folder of a bundle by encoder."""
    if job.start is not None:
        return {job.start.spec.encoder: job.start.encoder_folder}
    names = dict.fromkeys(share.encoder for share in job.shares.values())
    folders = {name: job.run_folder / "bundles" / folder_name(name) for name in names}
    for name, folder in folders.items():
        if job.has_begun and (folder / SPEC_NAME).exists():
            continue  # the very one that the vehicles have
        encoder = job.scenario.build_encoder(name).folded()
        begin(job, encoder)
        export_encoder(encoder, short_name(name), folder, image_size=job.scenario.frame_size)
    return folders


def _write_local_model(job: Job) -> None:
    """The whole network, with the very weights that its two halves start from in the other algorithms."""
    scenario = job.scenario
    encoders = sorted({share.encoder for share in job.shares.values()})
    if len(encoders) > 1:
        raise OperatorError(
            f"{scenario.algorithm} averages one network, but the vehicles have the encoders "
            f"{', '.join(encoders)}; give all of them the same"
        )
    cloud = scenario.cloud_config()
    export_local_model(
        job.run_folder / FOLDER_NAME,
        encoder=encoders[0],
        network=cloud.network.name,
        loss=cloud.first_order.loss,
        label_space_name=job.classes_name,
        image_size=scenario.frame_size,
        encoder_seed=scenario.seed,
        network_seed=network_seed(cloud.seed),
        encoder_weights=scenario.encoder_weights(encoders[0]),
        network_weights=Path(cloud.network.weights) if cloud.network.weights else None,
        begin=partial(begin, job),
    )


def _encoder_mode(scenario: Scenario, hosts_folder: Path, bundle: EncoderBundle) -> str:
    """The mode that all hosts use for the whole run: measured once, because modes differ in the last bits."""
    if scenario.encoder.mode != "auto":
        return scenario.encoder.mode
    for path in sorted(hosts_folder.glob("host-*.json")):
        return read_host_config(path).encoder_mode
    part = scenario.encoder
    return choose_encoder(bundle, part.provider, mode="auto", threads=part.threads).mode


def _process_table(job: Job, hosts: Sequence[Path]) -> list[ProcessSpec]:
    """Every process of the run; the launcher loops over it."""
    scenario, run_folder, resume = job.scenario, job.run_folder, job.has_begun
    table: list[ProcessSpec] = []
    url = scenario.broker
    if scenario.broker in OWN_BROKERS:
        port = scenario.broker_port or broker.free_port()
        url = broker.broker_url(port)
        table.append(
            ProcessSpec(
                name="broker",
                command=broker.broker_command(
                    broker.choose_kind(scenario.broker),
                    port,
                    run_folder / "processes" / "broker",
                    payload_bytes=scenario.payload_limit_bytes,
                ),
                is_ready=partial(_answers, port),
                stays=True,
            )
        )
    python = (sys.executable, "-m")
    table.append(
        ProcessSpec(
            name="cloud",
            command=[
                *python,
                "cloud_server",
                f"--config={run_folder / CLOUD_SETTINGS_NAME}",
                f"--run-dir={run_folder}",
                *(["--resume"] if resume else []),
            ],
            environment={BROKER_VARIABLE: url},
            restart_arguments=[] if resume else ["--resume"],
            threads=scenario.core_count,
            leads=True,
            place=None if job.machines is None else job.machines.cloud,
        )
    )
    table += [
        ProcessSpec(
            name=path.stem,
            command=[*python, "edge_client", f"--config={path}"],
            environment={BROKER_VARIABLE: url},
            threads=scenario.encoder.threads,
            may_fail=scenario.patience.goes_on,
            comes_back=scenario.patience.on_failure in ("wait", "readmit"),
            vehicles=tuple(vehicle.id for vehicle in read_host_config(path).vehicles),
            place=None if job.machines is None else job.machines.hosts,
        )
        for path in hosts
    ]
    return table


def _answers(port: int) -> bool:
    try:
        broker.wait_ready(broker.HOST, port, 0.2)
    except BrokerUnreachable:
        return False
    return True
