"""A vehicle's updates on disk: what is in use, what waits, what was refused; every step is one write.

    STATE/updates/record.json              what is what; replaced atomically
    STATE/updates/incoming/DIGEST.part     on its way
    STATE/updates/versions/KIND-VERSION-…  unpacked; those that the record doesn't name are cleared away

An update is verified, unpacked, tried by an inference in another process, and switched to between two turns.
The first turn that is done with it makes it stay. If that fails, or the process dies in it three times, what
was there before is in use again, and the update is never taken again. None of this needs the network.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

import msgspec

from edge_client.updates.record import Installed, Record, Staged, Trial, read_record, write_record
from protocol.atomic import new_folder_beside, sync_folder
from protocol.messages import UpdateNote, Version
from protocol.messages.updates import State
from protocol.update_file import Kind, Manifest, Update, UpdateError, digest_of, read_update, unpack
from protocol.update_signature import is_signed

log = logging.getLogger(__name__)

FOLDER_NAME = "updates"
"""In the vehicle's state folder."""
MOST_DEATHS = 3
MOST_TRIALS = 3
_VERSIONS, _INCOMING = "versions", "incoming"


class UpdateStore:
    """The updates of one vehicle; used by one thread."""

    def __init__(self, state_folder: Path, *, fleet: str, vehicle: str, key: Path | None) -> None:
        """`key` is the operator's public key; without one no update is taken. Nothing is written here.

        Raises:
            StateError: the record is damaged.
            OSError: it can't be read.
        """
        self.folder = state_folder / FOLDER_NAME
        self.key = key
        self._fleet = fleet
        self._vehicle = vehicle
        self._record = read_record(self.folder)

    @property
    def record(self) -> Record:
        """What is known."""
        return self._record

    @property
    def on_trial(self) -> Installed | None:
        """The update that is in use and has not finished a turn yet."""
        trial = self._record.trial
        return None if trial is None else self._record.current[trial.kind]

    def begin(self) -> None:
        """What the vehicle runs is about to be opened.

        Raises:
            OSError: the folder can't be written.
        """
        if not self.folder.exists():
            return
        trial = self._record.trial
        if trial is not None:
            deaths = trial.deaths + trial.at_work
            if deaths >= MOST_DEATHS:
                self.roll_back(f"the process ended {deaths} times at work with it, before a turn was done")
            else:
                self._keep(trial=msgspec.structs.replace(trial, deaths=deaths, at_work=True))
        self._clear_away()

    def at_work(self, is_at_work: bool) -> None:
        """The vehicle works with what it runs, or rests; written down while an update is on trial."""
        trial = self._record.trial
        if trial is not None and trial.at_work != is_at_work:
            self._keep(trial=msgspec.structs.replace(trial, at_work=is_at_work))

    def folder_of(self, kind: Kind) -> Path | None:
        """Where the update lies that is in use; None: there is none."""
        installed = self._record.current.get(kind)
        return None if installed is None else self.path_of(installed)

    def earlier(self, kind: Kind) -> Path | None:
        """Where the update lies that was in use before; None: none was."""
        installed = self._record.previous.get(kind)
        return None if installed is None else self.path_of(installed)

    def taken_back(self, kind: Kind) -> Path | None:
        """Where the update lies that was taken back last: the cloud may have committed the turn in which the
        vehicle died with it."""
        installed = self._record.taken_back.get(kind)
        return None if installed is None else self.path_of(installed)

    def path_of(self, installed: Installed) -> Path:
        """Where an update is unpacked."""
        return self.folder / _VERSIONS / installed.folder

    def incoming(self, digest: str) -> Path:
        """Where an update is put together that is on its way; others that were begun are thrown away.

        Raises:
            OSError: the folder can't be made.
        """
        folder = self.folder / _INCOMING
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{digest}.part"
        for other in folder.iterdir():
            if other != path:
                other.unlink()
        return path

    def stage(self, path: Path) -> Staged:
        """Verify a container, unpack it, and let it wait for its trial.

        Raises:
            UpdateError: it is not for this vehicle; noted, where its digest is known, so that it is not
                fetched again.
            KeyFault: signatures can't be checked here.
            OSError: there is no room for it.
        """
        if self._record.staged is not None or self._record.trial is not None:
            raise UpdateError("another update is under way")
        digest = digest_of(path)
        update = read_update(path)
        manifest = update.manifest
        installed = Installed(
            kind=manifest.kind,
            name=manifest.name,
            version=manifest.version,
            digest=digest,
            folder=f"{manifest.kind}-{manifest.version}-{digest[:12]}",
            weights=manifest.weights,
        )
        self._check(update, manifest)
        self._unpack(update, self.path_of(installed))
        staged = Staged(installed=installed)
        self._keep(staged=staged)
        return staged

    def trial_begins(self) -> bool:
        """Write down that the staged update is about to be tried; False: it was too often, and is refused."""
        staged = self._record.staged
        assert staged is not None
        if staged.begun >= MOST_TRIALS:
            self.refuse(
                staged.installed.identity, f"its trial was begun {staged.begun} times and never ended"
            )
            return False
        self._keep(staged=msgspec.structs.replace(staged, begun=staged.begun + 1))
        return True

    def trial_passed(self) -> None:
        """The staged update may be switched to."""
        staged = self._record.staged
        assert staged is not None
        self._keep(staged=msgspec.structs.replace(staged, passed=True))

    def refuse(self, update: Version, reason: str) -> None:
        """Never take this update."""
        log.warning("%s refused: %s", described(update), reason)
        staged = self._record.staged
        is_staged = staged is not None and staged.installed.digest == update.digest
        self._note(update, "refused", reason, staged=None if is_staged else staged)
        self._clear_away()

    def switch(self) -> Installed:
        """Put the staged update in the place of what is in use, on trial."""
        staged, record = self._record.staged, self._record
        assert staged is not None and staged.passed and record.trial is None
        new = staged.installed
        self._note(
            new.identity,
            "trial",
            "",
            staged=None,
            current={**record.current, new.kind: new},
            previous={**record.previous, new.kind: record.current.get(new.kind)},
            highest={**record.highest, new.kind: new.version},
            trial=Trial(kind=new.kind, at_work=False),
        )
        log.info("%s is in use from the next turn on", described(new.identity))
        return new

    def turn_done(self) -> bool:
        """A turn was finished; whether an update has passed its trial by that."""
        new = self.on_trial
        if new is None:
            return False
        self._note(new.identity, "used", "", trial=None)
        log.info("%s has finished its first turn, and stays", described(new.identity))
        self._clear_away()
        return True

    def roll_back(self, reason: str) -> None:
        """Take back the update that is on trial; it is never taken again."""
        trial, record = self._record.trial, self._record
        assert trial is not None
        failed, before = record.current[trial.kind], record.previous.get(trial.kind)
        current = {kind: each for kind, each in record.current.items() if kind != trial.kind}
        if before is not None:
            current[trial.kind] = before
        taken_back = {**record.taken_back, trial.kind: failed}
        self._note(failed.identity, "rolled-back", reason, trial=None, current=current, taken_back=taken_back)
        back_to = "what this vehicle was started with" if before is None else described(before.identity)
        log.warning("%s is taken back: %s; %s is in use again", described(failed.identity), reason, back_to)

    def _check(self, update: Update, manifest: Manifest) -> None:
        if self.key is None:
            raise UpdateError(NO_KEY)
        if not update.signature:
            raise UpdateError("it is not signed")
        if not is_signed(self.key, update.signed, update.signature):
            raise UpdateError("it is not signed with the key of this vehicle's operator")
        if not manifest.is_for(self._fleet, self._vehicle):
            whose = f"fleet {manifest.fleet}" + (
                f", {', '.join(manifest.vehicles[:5])}" if manifest.vehicles else ""
            )
            raise UpdateError(f"it is for {whose}")
        highest = self._record.highest.get(manifest.kind, 0)
        if manifest.version <= highest:
            raise UpdateError(f"its version is {manifest.version}, and {highest} was in use already")

    def _unpack(self, update: Update, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # by a process that died before it said so
            shutil.rmtree(target)
        made = new_folder_beside(target)
        try:
            unpack(update, made)
            sync_folder(made)
            made.rename(target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        sync_folder(target.parent)

    def _note(self, update: Version, state: State, reason: str, **changes: object) -> None:
        note = UpdateNote(update=update, state=state, reason=" ".join(reason.split())[:1000])
        self._write(self._record.with_note(note, **changes))

    def _keep(self, **changes: object) -> None:
        self._write(msgspec.structs.replace(self._record, **changes))

    def _write(self, record: Record) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_record(self.folder, record)
        self._record = record

    def _clear_away(self) -> None:
        """What the record names no more, and what processes that died have left half made."""
        record, versions = self._record, self.folder / _VERSIONS
        named = (*record.current.values(), *record.previous.values(), *record.taken_back.values())
        wanted = {each.folder for each in named if each is not None}
        if record.staged is not None:
            wanted.add(record.staged.installed.folder)
        with contextlib.suppress(OSError):
            for folder in versions.iterdir() if versions.exists() else ():
                if folder.name not in wanted:
                    shutil.rmtree(folder)
            for left in self.folder.glob(".*.tmp"):
                left.unlink()


NO_KEY = "this vehicle takes no updates: it has no public key of its operator (--update-key)"


def described(update: Version) -> str:
    """An update in a sentence: `bundle fog, version 3`."""
    return f"{update.kind} {update.name}, version {update.version}"
