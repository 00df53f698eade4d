"""`--ray`: the user's cluster as the machines of a run."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fleet.cluster.node import PROBE_NAME, complaint, versions
from fleet.cluster.remote import RayPlace
from fleet.cluster.resources import CPU, parse_resources, room, told
from fleet.errors import OperatorError
from fleet.run.places import Needs
from protocol.errors import SettingError
from protocol.stopping import STOP_SIGNALS

log = logging.getLogger(__name__)

AUTO = "auto"
_REACH_S = 5.0
_LOOK_S = 300.0
"""For a node to start a worker of Ray, import this, and look around."""


class RayMachines:
    """As `fleet.run.places.Machines`; used as a context, at whose end the cluster is left."""

    def __init__(self, address: str, *, resources: str | None = None, cloud: str | None = None) -> None:
        """Join the cluster at `address`, HOST:PORT or `auto`, of which this machine must be a node.

        `resources` is what each vehicle host reserves, one CPU by default; `cloud` what the cloud does, which
        is then on a node, too.

        Raises:
            OperatorError: ray is missing, or no cluster is there, or no node has what is to be reserved.
            SettingError: an option is malformed.
        """
        amounts = parse_resources(resources, "--ray-resources") if resources else {CPU: 1.0}
        cloud_amounts = parse_resources(cloud, "--ray-cloud") if cloud else None
        if address != AUTO:
            _check_address(address)
        self._ray = _import_ray()
        self._join(address)
        try:
            self._nodes = _able_nodes(self._ray, amounts, "--ray-resources")
            if cloud_amounts is not None:
                self._nodes |= _able_nodes(self._ray, cloud_amounts, "--ray-cloud")
        except OperatorError:
            self._ray.shutdown()
            raise
        totals = (node["Resources"] for node in self._nodes.values())
        self.places = max(1, sum(room(amounts, each) for each in totals))
        self.hosts = RayPlace(self._ray, amounts, may_share=resources is None)
        self.cloud = None
        if cloud_amounts is not None:
            self.cloud = RayPlace(self._ray, cloud_amounts, may_share=False)

    def __enter__(self) -> RayMachines:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    @property
    def remark(self) -> str:
        """What a launch says of them."""
        return f"{len(self._nodes)} nodes of the Ray cluster, with room for {self.places} vehicle hosts"

    def check(self, needs: Needs) -> None:
        """See `fleet.run.places.Machines`."""
        here = self._ray.util.get_node_ip_address()
        others = sorted({node["NodeManagerAddress"] for node in self._nodes.values()} - {here})
        if needs.broker is None and others:
            raise OperatorError(
                f"a broker that is started here is for this machine alone, and the cluster has node "
                f"{others[0]}: name one that all nodes reach with --broker"
            )
        with _probe(needs.run_folder) as token:
            answers = self._look(needs, token)
        for address, (reason, found) in answers.items():
            if reason is not None:
                raise OperatorError(f"node {address} of the Ray cluster {reason}")
            if found != (own := versions()):
                differing = sorted(name for name, _ in found.items() ^ own.items())
                log.warning("node %s has other versions of %s: bits may differ", address, differing[0])

    def _look(self, needs: Needs, token: str) -> dict[str, tuple[str | None, dict[str, str]]]:
        """By address of a node: why it can't take part, and its packages."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self._ray.remote(_look_around)
        asked = {
            look.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
            ).remote(needs.run_folder, token, needs.data_root, needs.broker, needs.identity): found[
                "NodeManagerAddress"
            ]
            for node, found in self._nodes.items()
        }
        ready, late = self._ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_S)
        if late:
            raise OperatorError(
                f"node {asked[late[0]]} of the Ray cluster does not answer within {_LOOK_S:g} s; see "
                f"`ray status`"
            )
        answers = {}
        for answer in ready:
            try:
                answers[asked[answer]] = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                raise OperatorError(
                    f"node {asked[answer]} of the Ray cluster can't run this: {_cause(error)}; is "
                    f"blackfleet installed there, in the Python that Ray was started with?"
                ) from error
        return answers

    def _join(self, address: str) -> None:
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        try:
            self._ray.init(
                address=address,
                namespace="blackfleet",
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise OperatorError(
                f"no Ray cluster can be joined by --ray {address}: {_cause(error)}; this machine must be a "
                f"node of it (ray start --head, or ray start --address=HOST:PORT)"
            ) from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _look_around(
    run_folder: Path, token: str, data_root: Path | None, broker: str | None, identity: str
) -> tuple[str | None, dict[str, str]]:
    return complaint(run_folder, token, data_root, broker, identity), versions()


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise OperatorError(
            "--ray needs the package ray: pip install -c constraints.txt -e '.[ray]'"
        ) from error
    module: ModuleType = ray
    return module


def _check_address(address: str) -> None:
    """Raise where nobody listens: Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address or not 0 < int(port) < 65536:
        raise SettingError(f"--ray must be {AUTO} or HOST:PORT of the cluster's head, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except OSError as error:
        raise OperatorError(
            f"no Ray cluster can be reached at {address} ({error.strerror or error}); `ray status` says "
            f"where one is"
        ) from error


def _able_nodes(ray: Any, amounts: Mapping[str, float], option: str) -> dict[str, dict[str, Any]]:
    """By id: nodes that have what one process reserves."""
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    able = {key: node for key, node in alive.items() if room(amounts, node["Resources"]) >= 1}
    if not able:
        raise OperatorError(
            f"none of the {len(alive)} nodes of the Ray cluster has {told(amounts)}: ask for less with "
            f"{option}, or start a node that has it"
        )
    return able


@contextlib.contextmanager
def _probe(run_folder: Path) -> Iterator[str]:
    """A file that nodes that see the folder find in it, and what it holds."""
    token, path = secrets.token_hex(8), run_folder / PROBE_NAME
    path.write_text(token, encoding="utf-8")
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def _cause(error: Exception) -> str:
    """The last line of what Ray says, which is the error that it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
