"""One encoder for all vehicles with the same bundle: what they send of it, judged, and averaged or handed on.

Legend: φ what of an encoder learns; d = φ − φ_start, float32 (m,), which is what crosses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context
from cloud_server.algorithms.likely import Likely
from cloud_server.errors import RequestError
from cloud_server.schedule import Kind, Stage
from protocol.codec.weights import WeightArrays, WeightsError, WeightTensor, pack, unpack
from protocol.messages import Turn
from protocol.plans.sharing import HEAD, PHI, Shared, Sharing

_PREFIX, _SENT_PREFIX = "sharing/", "sharing-sent/"
"""Of its tensors in a checkpoint, followed by bundle, or vehicle, and name."""


class SharedEncoder:
    """What is shared, by bundle, and what has arrived for it in the stage under way."""

    def __init__(self, context: Context, *, averages: bool, settings: Sharing | None = None) -> None:
        """`averages`: what vehicles send is averaged, after a stage or round; else each turn's is handed on.
        `settings`: None = the run's."""
        self._context = context
        self._averages = averages
        self._settings = context.config.way(Sharing) if settings is None else settings
        self._shared: dict[str, WeightArrays] = {}
        """By bundle: d, and the head where it is shared; nothing before the first stage that sends."""
        self._packed: dict[str, tuple[WeightTensor, ...]] = {}
        self._sent: dict[str, WeightArrays] = {}
        """By vehicle: what it has sent, of this attempt at its turn or of an earlier stage of the round."""
        self._likely = Likely(context)

    def turn(self, stage: Stage) -> Shared | None:
        """What a stage's turns say of it; None in a run that shares nothing, and before all learning."""
        if not self._settings.is_on or stage.kind is Kind.INITIAL:
            return None
        sends = stage.kind is (Kind.LEARN if self._averages else Kind.TRAIN)
        return Shared(sends=sends, head=self._settings.head)

    @property
    def waits(self) -> bool:
        """Whether anything that vehicles have sent is yet to be averaged."""
        return bool(self._sent)

    def displacement(self, vehicle: str) -> NDArray[np.float32] | None:
        """d of a vehicle's encoder; None where nothing is shared."""
        shared = self._shared.get(self._likely.bundle(vehicle))
        return None if shared is None else shared[PHI]

    # What vehicles say --------------------------------------------------------------------------------

    def begin(self, vehicle: str) -> None:
        """A turn starts, perhaps over again."""
        self._sent.pop(vehicle, None)

    def fetch(self, vehicle: str) -> tuple[WeightTensor, ...]:
        """What the vehicle's turn starts from; empty where nothing is shared yet."""
        return self._packed.get(self._likely.bundle(vehicle), ())

    def record(self, vehicle: str) -> NoReturn:
        """See `KeepsEncoder.record`."""
        raise RequestError("this run's encoder is not known by its steps")

    def take(self, turn: Turn, tensors: Sequence[WeightTensor], losses: Sequence[float] = ()) -> bool:
        """Keep what a vehicle sends until its turn is done; false where it is judged now, and left out.

        Raises:
            RequestError: it is not asked for, comes a second time, is of another shape or not finite.
        """
        vehicle = turn.vehicle
        if turn.sharing is None or not turn.sharing.sends:
            raise RequestError("this turn asks for no encoder")
        if vehicle in self._sent:
            raise RequestError("a second encoder in the same turn")
        try:
            self._sent[vehicle] = unpack(tensors, self._expected(vehicle, tensors))
        except WeightsError as error:
            raise RequestError(f"encoder rejected: {error}") from error
        return self._averages or self._likely.is_likely(vehicle, self._move(vehicle))

    def check_complete(self, turn: Turn) -> None:
        """Check that a turn may end.

        Raises:
            RequestError: it has not sent what it asks for.
        """
        if turn.sharing is not None and turn.sharing.sends and turn.vehicle not in self._sent:
            raise RequestError(f"turn {turn.turn_id} ended without its encoder")

    # What comes of it ---------------------------------------------------------------------------------

    def hand_on(self, stage: Stage, vehicle: str) -> tuple[str, ...]:
        """What a vehicle has sent is what the next one starts from; returns who was left out, if any."""
        if vehicle not in self._sent:
            return ()
        move = self._move(vehicle)
        sent = self._sent.pop(vehicle)
        if not self._likely.is_likely(vehicle, move):
            self._likely.leave_out(stage, vehicle, move)
            return (vehicle,)
        self._likely.note(vehicle, move)
        self._share(self._likely.bundle(vehicle), sent)
        return ()

    def average(self, stage: Stage) -> tuple[str, ...]:
        """Σ nₖ dₖ / Σ nₖ over the stage's vehicles of each bundle, nₖ their train frames as they declared
        them when they joined; sums in float64 and in the fleet's order.

        A vehicle that has moved too far, or sends something of another shape than most, is left out. Returns
        who was.
        """
        sent = {vehicle: self._sent[vehicle] for vehicle in stage.vehicles if vehicle in self._sent}
        moves = {vehicle: self._move(vehicle) for vehicle in sent}
        self._sent.clear()
        kept: dict[str, dict[str, WeightArrays]] = {}
        shapes = self._usual_shapes(sent)
        left_out = []
        for vehicle, tensors in sent.items():
            bundle, move = self._likely.bundle(vehicle), moves[vehicle]
            if _shapes(tensors) == shapes[bundle] and self._likely.is_likely(vehicle, move, moves):
                kept.setdefault(bundle, {})[vehicle] = tensors
            else:
                self._likely.leave_out(stage, vehicle, move)
                left_out.append(vehicle)
        for bundle, updates in kept.items():
            self._share(bundle, self._mean(updates))
            for vehicle in updates:
                self._likely.note(vehicle, moves[vehicle])
        return tuple(left_out)

    def _mean(self, updates: Mapping[str, WeightArrays]) -> WeightArrays:
        frames = {vehicle: self._context.train_frames[vehicle] for vehicle in updates}
        total = sum(frames.values())
        names = next(iter(updates.values()))
        return {
            name: (
                np.sum([updates[v][name].astype(np.float64) * frames[v] for v in updates], axis=0) / total
            ).astype(np.float32)
            for name in names
        }

    def _share(self, bundle: str, tensors: WeightArrays) -> None:
        self._shared[bundle] = tensors
        self._packed[bundle] = pack(tensors)

    def _move(self, vehicle: str) -> float:
        """How far φ went from what the vehicle had fetched, ‖·‖₂."""
        before = self.displacement(vehicle)
        moved = self._sent[vehicle][PHI].astype(np.float64)
        return float(np.linalg.norm(moved if before is None else moved - before))

    def _expected(self, vehicle: str, tensors: Sequence[WeightTensor]) -> dict[str, tuple[int, ...]]:
        """Shapes of what a vehicle may send: of what is shared or, before there is anything, any vectors."""
        shared = self._shared.get(self._likely.bundle(vehicle))
        if shared is not None:
            return _shapes(shared)
        names = (PHI, HEAD) if self._settings.head else (PHI,)
        given = {t.name: t.shape for t in tensors if len(t.shape) == 1 and t.shape[0] > 0}
        return {name: given.get(name, (1,)) for name in names}

    def _usual_shapes(self, sent: Mapping[str, WeightArrays]) -> dict[str, dict[str, tuple[int, ...]]]:
        """By bundle: the shapes of most of its vehicles, in doubt those of the first."""
        counts: dict[str, Counter[tuple[tuple[str, tuple[int, ...]], ...]]] = {}
        for vehicle, tensors in sent.items():
            counts.setdefault(self._likely.bundle(vehicle), Counter())[tuple(_shapes(tensors).items())] += 1
        return {bundle: dict(count.most_common(1)[0][0]) for bundle, count in counts.items()}

    # What a checkpoint holds --------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Algorithm.tensors`."""
        return {
            f"{prefix}{owner}/{name}": torch.from_numpy(np.array(array))
            for prefix, content in ((_PREFIX, self._shared), (_SENT_PREFIX, self._sent))
            for owner, tensors in content.items()
            for name, array in tensors.items()
        }

    def meta(self) -> dict[str, Any]:
        """See `Algorithm.meta`; empty where nothing is shared."""
        if not self._settings.is_on:
            return {}
        return self._likely.meta()

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """See `Algorithm.restore`."""
        self._sent = _stored(tensors, _SENT_PREFIX)
        self._shared, self._packed = {}, {}
        for bundle, arrays in _stored(tensors, _PREFIX).items():
            self._share(bundle, arrays)
        self._likely.restore(meta)


def always_shared(context: Context, *, head: bool = False) -> SharedEncoder:
    """For an algorithm whose vehicles share their encoders whatever the run says; `head`: and their heads."""
    settings = msgspec.structs.replace(context.config.way(Sharing), encoder="weights", head=head)
    return SharedEncoder(context, averages=True, settings=settings)


def _stored(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, WeightArrays]:
    """What a checkpoint holds under a prefix, by owner."""
    found: dict[str, WeightArrays] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            owner, _, name = key.removeprefix(prefix).rpartition("/")
            found.setdefault(owner, {})[name] = tensor.numpy().copy()
    return {
        owner: {name: arrays[name] for name in (PHI, HEAD) if name in arrays}
        for owner, arrays in found.items()
    }


def _shapes(tensors: WeightArrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in tensors.items()}
