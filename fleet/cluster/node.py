"""What happens on a node of the cluster: a process of the run as an actor, and a look around."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from fleet.run.processes import die_with_parent
from protocol.errors import MENDABLE

PROBE_NAME = ".seen-by-nodes"
"""A file in the run's folder, by which a node finds out whether it sees the launcher's folder."""
_PACKAGES = ("numpy", "onnxruntime", "opencv-python-headless", "msgspec", "paho-mqtt")
"""Those that decide what a vehicle computes and says."""


class NodeProcess:
    """An actor that holds one process; when the actor goes, so does the process."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> None:
        """Start `command` with this node's Python in the place of its first word.

        Raises:
            OSError: `output` can't be written here.
        """
        import ray

        with output.open("ab") as file:
            node = ray.get_runtime_context().get_node_id()
            file.write(f"--- {name} on node {platform.node()} {node}\n".encode())
            file.flush()
            self._process = subprocess.Popen(
                [sys.executable, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def started(self) -> bool:
        """Answered as soon as the process is there."""
        return True

    def end(self) -> int:
        """Wait for its end; the exit code."""
        return self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def versions() -> dict[str, str]:
    """Of the packages that decide what a vehicle computes."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def complaint(
    run_folder: Path, token: str, data_root: Path | None, broker: str | None, identity: str
) -> str | None:
    """Why this node can't take part, as the end of a sentence that begins with its address; None: it can."""
    shared = f"put --run-dir on storage that all nodes share, at the same path ({run_folder})"
    try:
        if (run_folder / PROBE_NAME).read_text(encoding="utf-8") != token:
            return f"has another folder of that name: {shared}"
    except OSError:
        return f"does not see the run's folder: {shared}"
    own = run_folder / f"{PROBE_NAME}-{secrets.token_hex(4)}"
    try:
        own.write_text(token, encoding="utf-8")
        own.unlink()
    except OSError as error:
        return f"can't write into {run_folder} ({error.strerror})"
    if data_root is not None and not data_root.is_dir():
        return f"has no folder {data_root}: put the data set where all nodes see it, at the same path"
    if broker is not None:
        from fleet.run.reach import check_session

        try:
            check_session(broker, identity, _CONNECT_S)
        except MENDABLE as error:
            return f"can't use the broker: {error}"
    return None


_CONNECT_S = 5.0
