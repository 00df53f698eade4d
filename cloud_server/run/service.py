"""The cloud as a service: its presence on the bus around the server's loop."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

from cloud_server.config import CloudConfig
from cloud_server.events import Events, Recorder
from cloud_server.run.claim import FleetClaim
from cloud_server.run.public_events import PublicEvents
from cloud_server.run.server import Server
from cloud_server.run.simulated import Simulated
from cloud_server.storage.recorders import Board, RunLog
from protocol.local_model import FOLDER_NAME, largest_message_bytes
from protocol.messages import Status
from protocol.seal_files import cloud_seal
from protocol.session.clock import REAL_CLOCK, Clock
from protocol.session.link import CloudLink, Connect, encode_status
from protocol.session.presence import Presence, heartbeat
from protocol.session.topics import CLOUD_ID, STATUS, client_id, topic
from protocol.session.transport import Will
from protocol.watchdog import Watchdog


def serve(
    config: CloudConfig,
    connect: Connect,
    *,
    run_folder: Path,
    resume: bool,
    stop: threading.Event,
    recorders: Sequence[Recorder] = (),
    watchdog: Watchdog | None = None,
    clock: Clock = REAL_CLOCK,
    simulated: Simulated | None = None,
    seals: Path | None = None,
) -> None:
    """Run the whole run over the transport that `connect` makes.

    `recorders` are told its events, besides the log and the board, and `watchdog` of its loop. `simulated` is
    what a simulation adds to events and result. `seals` is the folder of the run's key;
    None: nothing is sealed.

    Raises:
        CloudError, BrokerUnreachable, OSError, Stopped: see `Server.run`.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    session = secrets.token_hex(8)
    seal = None if seals is None else cloud_seal(seals, config.fleet, session)
    gone = encode_status(Status(vehicle=CLOUD_ID, session=session, online=False, beat=0), seal)
    will = Will(topic(STATUS, config.fleet, CLOUD_ID), gone)
    presence: Presence | None = None
    claim: FleetClaim | None = None

    def announce_again() -> None:
        link.resume()
        if presence is not None and claim is not None and presence.bytes_sent:
            claim.reconnected()
            presence.announce()

    with RunLog(run_folder) as run_log, Board(run_folder) as board:
        transport = connect(client_id(config.fleet, CLOUD_ID, session), will, announce_again)
        link = CloudLink(
            transport,
            config.fleet,
            vehicles=config.vehicles,
            payload_limit_bytes=config.payload_limit_bytes,
            limit_bytes=largest_message_bytes(run_folder / FOLDER_NAME),
            stall_s=config.patience.retry_s,
            clock=clock,
            seal=seal,
        )
        watchdog = watchdog or Watchdog()
        presence = Presence(
            link.announce,
            CLOUD_ID,
            session,
            step_s=config.patience.step_s,
            stamped=watchdog.watch(CLOUD_ID),
            clock=clock.now,
        )
        claim = FleetClaim(
            link,
            session,
            heartbeat_s=config.patience.heartbeat_s,
            announce=presence.announce,
            clock=link.clock.now,
        )
        public = None
        if config.public_events:
            public = PublicEvents(
                link,
                session,
                vehicles=len(config.vehicles),
                every_s=config.patience.heartbeat_s,
                may_tell=lambda: presence.bytes_sent > 0,
            )
            if resume:
                public.remember(run_folder)
        try:
            server = Server(
                config,
                link=link,
                presence=presence,
                claim=claim,
                run_folder=run_folder,
                events=Events(
                    run_log,
                    board,
                    *filter(None, [public]),
                    *recorders,
                    stamp=simulated.stamp if simulated else None,
                ),
                stop=stop,
                resume=resume,
                simulated=simulated,
            )
            beating = heartbeat([presence], config.patience.heartbeat_s, clock)
            with beating, public or contextlib.nullcontext():
                server.run()
        finally:
            watchdog.leave(CLOUD_ID)
            if transport.connected and presence.bytes_sent:
                presence.announce(online=False)
            link.close()
