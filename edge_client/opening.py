"""What a vehicle runs, opened: what it was started with, or the updates in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from datasets.labels import LabelSpace
from edge_client.encoder.bundle import EncoderBundle, bundle_digest
from edge_client.encoder.runtime import Encoder
from edge_client.frames import VehicleFrames
from edge_client.learners.own import find_learner
from edge_client.local.head import LocalHead
from edge_client.shared_models import SharedModels
from edge_client.state import StateStore
from edge_client.state_files import StateDatabase, StateFiles
from edge_client.updates.carry import Carry
from edge_client.updates.intake import UpdateIntake
from edge_client.updates.pull import Pulled
from edge_client.updates.record import Staged
from edge_client.updates.settings import read_settings
from edge_client.updates.store import UpdateStore
from edge_client.updates.trial import RunningTrial, TrialJob, frames_of
from edge_client.vehicle import reason_of
from protocol.session.link import VehicleLink
from protocol.update_file import Kind, UpdateError

Mode = Literal["auto", "bind", "rebuild"]
Settings = dict[str, Any]
"""Fields of `HostConfig` that an update changes."""
_TRIAL_FRAMES = 2
"""Of the vehicle's own, that an update is tried on."""


class Started(Protocol):
    """What is read here of a vehicle's configuration (`edge_client.host.VehicleConfig`)."""

    @property
    def id(self) -> str:
        """Who it is."""

    @property
    def bundle(self) -> str:
        """Folder of its bundle."""

    @property
    def local_head(self) -> str | None:
        """Folder of its local head."""

    @property
    def state(self) -> str:
        """Folder for what it learns."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Folders and settings of what is run."""

    bundle: str
    local_head: str | None
    provider: str
    mode: Mode
    threads: int


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What runs."""

    runs: Runs
    settings: Settings
    models: SharedModels
    bundle: EncoderBundle
    encoder: Encoder
    local_head: LocalHead | None


class Openings:
    """Of all vehicles of a process, who share what they run where it is the same."""

    def __init__(self, host: Any, label_space: LabelSpace) -> None:
        """`host` is the process's `edge_client.host.HostConfig`."""
        self._host = host
        self._label_space = label_space
        self._models: dict[tuple[str, str, int], SharedModels] = {}
        path = host.state_database
        self._database = None if path is None else StateDatabase(Path(path))

    def of(self, vehicle: Started) -> Opening:
        """Of one vehicle.

        Raises:
            StateError, OSError: what it knows of its updates can't be read.
        """
        host = self._host
        key = None if host.update_key is None else Path(host.update_key)
        return Opening(
            Runs(
                bundle=vehicle.bundle,
                local_head=vehicle.local_head,
                provider=host.provider,
                mode=host.encoder_mode,
                threads=host.threads,
            ),
            vehicle=vehicle,
            updates=UpdateStore(Path(vehicle.state), fleet=host.fleet, vehicle=vehicle.id, key=key),
            with_settings=self._with_settings,
            models=self._models_of,
            files=None if self._database is None else self._database.of(vehicle.id),
        )

    def close(self) -> None:
        """No vehicle keeps anything more."""
        if self._database is not None:
            self._database.close()

    def _with_settings(self, runs: Runs, settings: Settings) -> Runs:
        if len(self._host.vehicles) > 1:
            raise UpdateError(
                "the vehicles of this process have their settings in common; start it with others"
            )
        host = msgspec.structs.replace(self._host, **settings)
        host.__post_init__()
        for name in host.allowed_learners:
            find_learner(name)
        return replace(runs, provider=host.provider, mode=host.encoder_mode, threads=host.threads)

    def _models_of(self, runs: Runs) -> SharedModels:
        key = (runs.provider, runs.mode, runs.threads)
        if key not in self._models:
            self._models[key] = SharedModels(
                self._label_space,
                provider=runs.provider,
                mode=runs.mode,
                threads=runs.threads,
                training_device=self._host.training_device,
            )
        return self._models[key]


class Opening:
    """Opens what one vehicle runs, with its updates."""

    def __init__(
        self,
        started: Runs,
        *,
        vehicle: Started,
        updates: UpdateStore,
        with_settings: Callable[[Runs, Settings], Runs],
        models: Callable[[Runs], SharedModels],
        files: StateFiles | None,
    ) -> None:
        """`started` is what the vehicle was started with; `with_settings` puts changed settings into what is
        run, and checks them; `models` are those that the vehicles of a process share; `files` is where its
        states lie, None = in its folder."""
        self._started = started
        self._vehicle = vehicle
        self._updates = updates
        self._with_settings = with_settings
        self._models = models
        self._files = files

    def open(self) -> Opened:
        """Open what is in use; an update on trial that can't be opened is taken back.

        Raises:
            BundleError, HeadError, VehicleError, SettingError: what is in use can't be used.
            OSError: the folder of updates can't be written.
        """
        self._updates.begin()
        while True:
            try:
                return self._open()
            except Exception as error:
                if self._updates.on_trial is None:
                    raise
                self._updates.roll_back(reason_of(error))

    def intake(
        self,
        link: VehicleLink,
        frames: VehicleFrames,
        *,
        retry_s: float,
        pulled: Callable[[], Pulled | None],
    ) -> UpdateIntake:
        """What fetches updates over `link`, takes `pulled` ones, and tries them on some `frames`, too."""
        train = frames.splits["train"][:_TRIAL_FRAMES]
        return UpdateIntake(
            self._updates,
            link,
            retry_s=retry_s,
            start_trial=lambda staged: self._start_trial(staged, frames.images(train)),
            pulled=pulled,
        )

    def _start_trial(self, staged: Staged, image_BHWC: NDArray[np.uint8]) -> RunningTrial:
        """Start the trial of what is staged.

        Raises:
            UpdateError, SettingError: its settings are none that an update may change.
            OSError: no process can be started.
        """
        present = self._present()[0]
        kind, folder = staged.installed.kind, self._updates.path_of(staged.installed)
        new, _ = self._replaced(present, kind, folder)
        return RunningTrial(
            TrialJob(
                bundle=new.bundle,
                head=new.local_head,
                present_bundle=present.bundle,
                present_head=present.local_head,
                provider=new.provider,
                threads=new.threads,
                mode=new.mode,
                frames_BHWC=frames_of(image_BHWC),
            )
        )

    def states(self, opened: Opened) -> StateStore:
        """The vehicle's state folder, which takes over what was learnt with earlier bundles and heads.

        Raises:
            OSError: it can't be made.
        """
        current, before = self._updates.record.current, self._updates.earlier("bundle")
        bundle, head = current.get("bundle"), current.get("head")
        carry = Carry(
            bundle=opened.bundle,
            keeps_learnt=bundle is None or bundle.weights == "learnt",
            earlier=tuple(
                Path(each) for each in (before, self._started.bundle, self._taken_back()) if each is not None
            ),
            head="" if head is None else head.digest,
            keeps_head=head is None or head.weights == "learnt",
            head_parameters=None if opened.local_head is None else opened.local_head.spec.parameter_count,
        )
        return StateStore(
            Path(self._vehicle.state),
            vehicle=self._vehicle.id,
            bundle_digest=bundle_digest(opened.bundle),
            head=carry.head,
            take_over=carry.over,
            files=self._files,
        )

    def _open(self) -> Opened:
        runs, settings = self._present()
        models = self._models(runs)
        bundle = models.bundle(runs.bundle)
        return Opened(
            runs=runs,
            settings=settings,
            models=models,
            bundle=bundle,
            encoder=models.encoder(bundle),
            local_head=models.local_head(runs.local_head, bundle),
        )

    def _present(self) -> tuple[Runs, Settings]:
        runs, settings = self._started, Settings()
        for kind in self._updates.record.current:
            folder = self._updates.folder_of(kind)
            assert folder is not None
            runs, changed = self._replaced(runs, kind, folder)
            settings |= changed
        return runs, settings

    def _replaced(self, runs: Runs, kind: Kind, folder: Path) -> tuple[Runs, Settings]:
        if kind == "bundle":
            return replace(runs, bundle=str(folder)), {}
        if kind == "head":
            return replace(runs, local_head=str(folder)), {}
        settings = read_settings(folder).changes()
        return self._with_settings(runs, settings), settings

    def _taken_back(self) -> Path | None:
        """A bundle that was taken back after its turn was committed, if that is so."""
        return self._updates.taken_back("bundle")
