"""Updates on their way: what is offered is fetched, piece by piece, beside whatever else the vehicle does.

Nothing here waits: what the cloud says is heeded when it comes, what runs is looked at between turns.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_client.updates.pull import Pulled
from edge_client.updates.record import Staged
from edge_client.updates.store import NO_KEY, UpdateStore, described
from edge_client.updates.trial import RunningTrial
from protocol.errors import MENDABLE
from protocol.messages import FetchUpdate, UpdateNews, UpdateNote, UpdateOffer, UpdatePart, Version
from protocol.session.link import Sending, VehicleLink
from protocol.update_file import MOST_BYTES, UpdateError, digest_of
from protocol.update_signature import KeyFault

log = logging.getLogger(__name__)

_ROOM = 3
"""Times the size of an update that must be free for it."""
_MOST_PASSING = 8
_LOST_S = 60.0
"""After which what has not reached the broker is said anew."""


class Renewed(Exception):
    """What the vehicle runs has changed: it is to be built anew."""


@dataclass(kw_only=True)
class _Fetching:
    update: Version
    size_bytes: int
    path: Path
    offset: int
    asked_at: float


class UpdateIntake:
    """The updates of one vehicle and the cloud; used by the vehicle's thread."""

    def __init__(
        self,
        store: UpdateStore,
        link: VehicleLink,
        *,
        retry_s: float,
        start_trial: Callable[[Staged], RunningTrial],
        pulled: Callable[[], Pulled | None] = lambda: None,
    ) -> None:
        """`start_trial` starts the trial inference of what is staged, or raises why it can't; what is not
        answered is asked for again after `retry_s`; `pulled` has come by other means than the cloud."""
        self._store = store
        self._link = link
        self._retry_s = retry_s
        self._start_trial = start_trial
        self._pulled = pulled
        self._seen_digest = ""
        """Of what had come by other means when that was looked at last."""
        self._fetching: _Fetching | None = None
        self._trial: RunningTrial | None = None
        self._passing: tuple[UpdateNote, ...] = ()
        """Of updates that were not even fetched: an offer proves nothing, so nothing is kept of it."""
        self._told: UpdateNews | None = None
        self._telling: Sending | None = None
        self._told_at = 0.0

    # What the vehicle's loop says ----------------------------------------------------------------------

    @property
    def on_trial(self) -> bool:
        """Whether what the vehicle runs has yet to finish a turn."""
        return self._store.on_trial is not None

    def met_cloud(self) -> None:
        """Hello is said anew: whoever hears it knows nothing of the updates yet."""
        self._told = self._telling = None

    def at_rest(self, *, is_welcome: bool) -> None:
        """Between two turns.

        Raises:
            Renewed: an update is in use from now on.
            OSError: the state folder can't be written.
        """
        self._store.at_work(False)
        self._consider_pulled()
        self._look_after_trial()
        staged = self._store.record.staged
        if staged is not None and staged.passed:
            new = self._store.switch()
            raise Renewed(described(new.identity))
        if is_welcome:
            self._tell()
            self._ask_again()

    def turn_begins(self) -> None:
        """A turn begins; the cloud knows with what. Raises OSError where that can't be written down."""
        self._store.at_work(True)
        self._tell()

    def turn_done(self) -> None:
        """The turn was finished, and the cloud has it."""
        if self._store.turn_done():
            self._tell()

    def failed(self, reason: str) -> bool:
        """The vehicle can't go on; whether an update was on trial, which is taken back."""
        if self._store.on_trial is None:
            return False
        self._store.roll_back(reason)
        return True

    def close(self) -> None:
        """The vehicle's loop ends, and not because of what it runs."""
        if self._trial is not None:
            self._trial.close()
            self._trial = None
        try:
            self._store.at_work(False)
        except OSError as error:
            log.warning("%s", error)

    # What the cloud says -------------------------------------------------------------------------------

    def heed(self, message: UpdateOffer | UpdatePart) -> None:
        """An offer, or some bytes of what is being fetched."""
        try:
            if isinstance(message, UpdateOffer):
                self._consider(message)
            else:
                self._take(message)
        except OSError as error:
            log.warning("an update can't be fetched: %s", error)
            self._fetching = None

    def _consider_pulled(self) -> None:
        pulled, record = self._pulled(), self._store.record
        if pulled is None or pulled.digest == self._seen_digest:
            return
        if self._fetching is not None or record.staged is not None or record.trial is not None:
            return  # one after the other
        self._seen_digest = pulled.digest
        if record.note_of(pulled.digest) is not None:
            return
        try:
            self._take_in(pulled.path, None)
        except OSError as error:
            log.warning("an update can't be taken in: %s", error)

    def _consider(self, offer: UpdateOffer) -> None:
        update, record = offer.update, self._store.record
        if self._fetching is not None or record.staged is not None or record.trial is not None:
            return  # one after the other; it is offered again
        if record.note_of(update.digest) is not None:
            self._told = None  # whoever offers it has not heard what became of it
            return
        if reason := self._why_not(offer):
            self._pass_over(update, reason)
            return
        path = self._store.incoming(update.digest)
        offset = path.stat().st_size if path.exists() else 0
        if offset >= offer.size_bytes:
            path.unlink()
            offset = 0
        log.info("fetching %s (%d bytes, from %d on)", described(update), offer.size_bytes, offset)
        self._fetching = _Fetching(
            update=update, size_bytes=offer.size_bytes, path=path, offset=offset, asked_at=0.0
        )
        self._ask()

    def _pass_over(self, update: Version, reason: str) -> None:
        if all(note.update != update for note in self._passing):
            log.warning("%s is not taken: %s", described(update), reason)
        others = [each for each in self._passing if each.update != update]
        note = UpdateNote(update=update, state="refused", reason=reason)
        self._passing = (*others, note)[-_MOST_PASSING:]
        self._told = None

    def _why_not(self, offer: UpdateOffer) -> str:
        if self._store.key is None:
            return NO_KEY
        highest = self._store.record.highest.get(offer.update.kind, 0)
        if offer.update.version <= highest:
            return f"its version is {offer.update.version}, and {highest} was in use already"
        if offer.size_bytes > MOST_BYTES:
            return f"{offer.size_bytes} bytes are more than {MOST_BYTES}"
        folder = self._store.folder.parent
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < _ROOM * offer.size_bytes:
            return f"it needs {_ROOM * offer.size_bytes} bytes of disk, and {free} are free"
        return ""

    def _take(self, part: UpdatePart) -> None:
        fetching = self._fetching
        if fetching is None or (part.digest, part.offset) != (fetching.update.digest, fetching.offset):
            return  # it came twice, or is of something else
        if not part.data or fetching.offset + len(part.data) > fetching.size_bytes:
            log.warning("%s has not the size that was offered; it is dropped", described(fetching.update))
            fetching.path.unlink(missing_ok=True)
            self._fetching = None
            return
        with fetching.path.open("ab") as file:
            file.write(part.data)
        fetching.offset += len(part.data)
        if fetching.offset < fetching.size_bytes:
            self._ask()
            return
        self._fetching = None
        if digest_of(fetching.path) != fetching.update.digest:
            log.warning("%s came damaged; it is fetched anew when it is offered", described(fetching.update))
        else:
            self._take_in(fetching.path, fetching.update)
        fetching.path.unlink(missing_ok=True)

    def _take_in(self, path: Path, offered: Version | None) -> None:
        """Verify what has come, and begin its trial; what is not taken is noted by the digest of its file."""
        try:
            self._store.stage(path)
        except KeyFault as error:
            if offered is None:
                log.warning("updates can't be checked here: %s", error)
            else:
                self._pass_over(offered, f"it can't be checked here: {error}")
            return
        except UpdateError as error:
            if offered is None:
                log.warning("%s is not taken: %s", path, error)
            else:
                self._store.refuse(offered, str(error))
            return
        self._look_after_trial()

    # What runs beside ----------------------------------------------------------------------------------

    def _look_after_trial(self) -> None:
        staged = self._store.record.staged
        if staged is None or staged.passed:
            return
        if self._trial is None:
            if self._store.trial_begins():
                log.info("%s is on the disk; its trial begins", described(staged.installed.identity))
                try:
                    self._trial = self._start_trial(staged)
                except MENDABLE as error:
                    self._store.refuse(staged.installed.identity, str(error))
            return
        outcome = self._trial.outcome()
        if outcome is None:
            return
        self._trial.close()
        self._trial = None
        if outcome:
            self._store.refuse(staged.installed.identity, outcome)
        else:
            self._store.trial_passed()

    def _ask(self) -> None:
        fetching = self._fetching
        assert fetching is not None
        fetching.asked_at = self._link.clock.now()
        self._link.send(
            FetchUpdate(vehicle=self._link.vehicle, digest=fetching.update.digest, offset=fetching.offset)
        )

    def _ask_again(self) -> None:
        fetching = self._fetching
        if fetching is not None and self._link.clock.now() - fetching.asked_at > self._retry_s:
            self._ask()

    def _tell(self) -> None:
        record = self._store.record
        news = UpdateNews(
            vehicle=self._link.vehicle,
            versions=tuple(record.current[kind].identity for kind in sorted(record.current)),
            notes=(*record.notes, *self._passing)[-32:],
        )
        now = self._link.clock.now()
        is_lost = self._telling is not None and not self._telling.done and now - self._told_at >= _LOST_S
        is_nothing = self._told is None and not news.versions and not news.notes
        if (self._told == news and not is_lost) or is_nothing:
            return
        self._told, self._told_at, self._telling = news, now, self._link.send(news)
