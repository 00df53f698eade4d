"""A vehicle's updates on disk: what is refused, and what a process leaves that dies at any of its writes."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from edge_client.errors import StateError
from edge_client.updates.intake import Renewed, UpdateIntake
from edge_client.updates.pull import Pulled
from edge_client.updates.record import RECORD_NAME
from edge_client.updates.store import MOST_DEATHS, MOST_TRIALS, UpdateStore
from protocol.messages import Version
from protocol.openssl import run_openssl
from protocol.session.link import VehicleLink
from protocol.session.memory import MemoryBus
from protocol.update_file import Manifest, UpdateError, digest_of, encode_manifest, pack, packed_file
from protocol.update_signature import PRIVATE_NAME, PUBLIC_NAME, make_key, public_key, sign

FLEET, CAR = "demo", "car-01"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the operator's key, and one with a stranger's in it."""
    folder = tmp_path_factory.mktemp("keys")
    for place in (folder, folder / "stranger"):
        place.mkdir(exist_ok=True)
        make_key(place)
        (place / PUBLIC_NAME).write_bytes(public_key(place / PRIVATE_NAME))
    return folder


class Operator:
    """Signs updates of settings, the smallest there are."""

    def __init__(self, keys: Path, folder: Path) -> None:
        self._keys = keys
        self._folder = folder

    def update(self, version: int, *, key: str = PRIVATE_NAME, **changes: Any) -> Path:
        content = b'{"threads": %d}' % version
        fields: dict[str, Any] = {
            "kind": "settings",
            "name": "threads",
            "version": version,
            "fleet": FLEET,
            "files": (packed_file("settings.json", content),),
        }
        signed = encode_manifest(Manifest(**{**fields, **changes}))
        path = self._folder / f"{version}.bfu"
        path.write_bytes(pack(signed, sign(self._keys / key, signed), {"settings.json": content}))
        return path


@pytest.fixture
def operator(keys: Path, tmp_path: Path) -> Operator:
    return Operator(keys, tmp_path)


def opened(keys: Path, folder: Path) -> UpdateStore:
    """As a process finds it when it starts."""
    store = UpdateStore(folder, fleet=FLEET, vehicle=CAR, key=keys / PUBLIC_NAME)
    store.begin()
    return store


def installed(store: UpdateStore, path: Path) -> None:
    """Take an update in, and finish a turn with it."""
    store.stage(path)
    store.trial_begins()
    store.trial_passed()
    store.switch()
    store.at_work(True)
    store.turn_done()


def in_use(store: UpdateStore) -> int:
    """Version of the settings; 0: those that the vehicle was started with."""
    current = store.record.current.get("settings")
    if current is None:
        return 0
    assert (store.path_of(current) / "settings.json").read_bytes() == b'{"threads": %d}' % current.version
    return current.version


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda operator: operator.update(2, key=f"stranger/{PRIVATE_NAME}"), "not signed with the key"),
        (lambda operator: operator.update(2, fleet="other"), "it is for fleet other"),
        (lambda operator: operator.update(2, vehicles=("car-02",)), "fleet demo, car-02"),
        (lambda operator: operator.update(1), "version is 1, and 1 was in use already"),
    ],
)
def test_what_is_not_for_this_vehicle_is_refused(
    keys: Path, operator: Operator, tmp_path: Path, make: Callable[[Operator], Path], reason: str
) -> None:
    store = opened(keys, tmp_path / "state")
    installed(store, operator.update(1))
    with pytest.raises(UpdateError, match=reason):
        store.stage(make(operator))
    assert (in_use(store), store.record.staged) == (1, None)


def test_version_that_was_taken_back_is_never_taken_again(
    keys: Path, operator: Operator, tmp_path: Path
) -> None:
    store = opened(keys, tmp_path / "state")
    installed(store, operator.update(1))
    path = operator.update(2)
    store.stage(path)
    store.trial_begins()
    store.trial_passed()
    store.switch()
    assert in_use(store) == 2
    store.roll_back("it does not work")
    for vehicle in (store, opened(keys, tmp_path / "state")):
        assert in_use(vehicle) == 1
        with pytest.raises(UpdateError, match="2 was in use already"):
            vehicle.stage(path)
    note = store.record.note_of(digest_of(path))
    assert note is not None
    assert (note.state, note.reason) == ("rolled-back", "it does not work")


def test_only_who_dies_at_work_counts(keys: Path, operator: Operator, tmp_path: Path) -> None:
    """A car that is switched off while it waits for its turn says nothing against what it runs."""
    store = opened(keys, tmp_path / "state")
    store.stage(operator.update(1))
    store.trial_begins()
    store.trial_passed()
    store.switch()
    for _ in range(MOST_DEATHS + 1):  # switched off between turns
        store = opened(keys, tmp_path / "state")
        store.at_work(False)
    for deaths in range(MOST_DEATHS):
        assert in_use(store) == 1, deaths
        store.at_work(True)
        store = opened(keys, tmp_path / "state")
    assert in_use(store) == 0
    assert store.on_trial is None


def test_trial_that_takes_its_machine_with_it_is_given_up(
    keys: Path, operator: Operator, tmp_path: Path
) -> None:
    store = opened(keys, tmp_path / "state")
    store.stage(operator.update(1))
    for _ in range(MOST_TRIALS):
        assert store.trial_begins()
        store = opened(keys, tmp_path / "state")
    assert not store.trial_begins()
    assert (in_use(store), store.record.staged) == (0, None)


class _PowerCut(BaseException):
    """Nothing that the process does on its way out reaches the disk."""


def test_death_between_any_two_writes_leaves_the_old_version_or_the_new_one(
    keys: Path, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the process does to the disk, the next one finds a whole version, and can take the update."""
    first, second = operator.update(1), operator.update(2)
    monkeypatch.setattr("edge_client.updates.store.is_signed", lambda key, signed, signature: True)
    begun = tmp_path / "begun"
    installed(opened(keys, begun), first)
    seen = set()
    for step in itertools.count():
        folder = tmp_path / f"state-{step}"
        shutil.copytree(begun, folder)
        is_cut = dies_at(step, lambda: installed(opened(keys, folder), second), monkeypatch)  # noqa: B023
        after = opened(keys, folder)
        seen.add((in_use(after), after.record.staged is not None, after.on_trial is not None))
        named = [*after.record.current.values(), *after.record.previous.values()]
        if after.record.staged is not None:
            named.append(after.record.staged.installed)
        found = {path.name for path in (after.folder / "versions").iterdir()}
        assert found == {each.folder for each in named if each is not None}
        if in_use(after) == 1 and after.record.staged is None:
            installed(after, second)
            assert in_use(opened(keys, folder)) == 2
        if not is_cut:
            break
    assert seen == {(1, False, False), (1, True, False), (2, False, True), (2, False, False)}


def dies_at(step: int, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do `work` in a process that dies before its call number `step` of those that change the disk; False: it
    has no such call."""
    calls = itertools.count()

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= step:
                raise _PowerCut  # and whatever would clean up dies, too
            return real(*arguments, **options)

        return maybe

    with monkeypatch.context() as patched:
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            patched.setattr(os, name, cut(getattr(os, name)))
        patched.setattr(Path, "open", cut(Path.open))
        try:
            work()
        except _PowerCut:
            return True
    return next(calls) > step


def test_damaged_record_is_said_in_one_line(keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "updates"
    folder.mkdir()
    (folder / RECORD_NAME).write_text("{")
    with pytest.raises(StateError, match=r"is damaged .*; remove .*/updates, and the vehicle runs what it"):
        UpdateStore(tmp_path, fleet=FLEET, vehicle=CAR, key=None)


def test_refused_update_is_not_kept(keys: Path, operator: Operator, tmp_path: Path) -> None:
    store = opened(keys, tmp_path / "state")
    staged = store.stage(operator.update(1)).installed
    store.refuse(staged.identity, "its trial failed")
    assert store.record.staged is None
    assert list((store.folder / "versions").iterdir()) == []
    stranger = Version(kind="head", name="x", version=1, digest="0" * 64)
    store.refuse(stranger, "no")
    assert [note.state for note in store.record.notes] == ["refused", "refused"]


class _Passes:
    """A trial that has found nothing."""

    def outcome(self) -> str:
        return ""

    def close(self) -> None:
        """It has ended."""


def test_what_has_come_by_other_means_is_taken_once(keys: Path, operator: Operator, tmp_path: Path) -> None:
    pulled = [operator.update(1)]
    store = opened(keys, tmp_path / "state")

    def intake() -> UpdateIntake:
        return UpdateIntake(
            store,
            VehicleLink(MemoryBus().client("car"), FLEET, CAR),
            retry_s=1.0,
            start_trial=lambda staged: cast(Any, _Passes()),
            pulled=lambda: Pulled(pulled[-1], digest_of(pulled[-1])),
        )

    with pytest.raises(Renewed):
        for _ in range(3):
            intake().at_rest(is_welcome=False)
    renewed = intake()
    renewed.at_rest(is_welcome=False)
    renewed.turn_begins()
    renewed.turn_done()
    pulled.append(operator.update(2, fleet="another"))
    for _ in range(3):
        renewed.at_rest(is_welcome=False)
    assert in_use(store) == 1
    assert [note.state for note in store.record.notes] == ["used"]


def test_openssl_is_there() -> None:
    assert "OpenSSL" in run_openssl("version", folder=Path())
