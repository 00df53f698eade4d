"""Vehicles that lie: real clients, whose messages say something else than what they have computed.

`tell` lets one vehicle of a fleet in this process lie from now on. Wrong labels are on disk instead: a
vehicle believes them itself (`with_lies`).
Legend: B frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from datasets.labels import CAMVID
from protocol.codec.tensor import EncodedTensor, decode, encode
from protocol.codec.weights import WeightArrays, WeightTensor, pack
from protocol.messages import Update, Weights
from protocol.session.intake import Malformed, Received
from protocol.session.link import VehicleLink

_SHIFT = 5
"""Class k is called k + 5, modulo their number."""
_FROM, _TO = "car", "road"
"""What a back door calls by another name."""
_SCALES = {"scaled": 10.0, "backdoor": 4.0}
"""How many times as far as it has learnt the liar says that it has: of four, four times are the average's."""
LIES = {
    "labels": "each class named as another",
    "noise": "features of nothing",
    "replay": "the features of one frame for every frame",
    "scaled": "weights that went ten times as far",
    "backdoor": "cars named road; weights four times as far",
}
OF_FEATURES, OF_WEIGHTS = ("labels", "noise", "replay", "backdoor"), ("labels", "scaled", "backdoor")
ON_DISK = ("labels", "backdoor")

_liar, _lie = "", ""
_fetched: WeightArrays = {}
_first_CHW: list[NDArray[np.float32]] = []
_send, _receive = VehicleLink.send, VehicleLink.receive


def tell(lie: str, liar: str) -> None:
    """From now on `liar`, a vehicle of this process, lies like that; with an empty name nobody does."""
    global _liar, _lie
    _liar, _lie = liar, lie
    _fetched.clear()
    _first_CHW.clear()
    VehicleLink.send = _send_something_else  # type: ignore[method-assign]
    VehicleLink.receive = _listen  # type: ignore[method-assign]


def _send_something_else(link: VehicleLink, message: Any) -> Any:
    if _lie and link.vehicle == _liar:
        if _lie in _SCALES and isinstance(message, Update):
            message = msgspec.structs.replace(message, tensors=_scaled(message.tensors, _SCALES[_lie]))
        if _lie in ("noise", "replay") and isinstance(getattr(message, "features", None), EncodedTensor):
            message = msgspec.structs.replace(message, features=_of_nothing(message.features))
    return _send(link, message)


def _listen(link: VehicleLink, timeout_s: float) -> Received | Malformed | None:
    received = _receive(link, timeout_s)
    if link.vehicle == _liar and isinstance(received, Received) and isinstance(received.message, Weights):
        _fetched.update({tensor.name: _array(tensor) for tensor in received.message.tensors})
    return received


def _scaled(tensors: Sequence[WeightTensor], times: float) -> tuple[WeightTensor, ...]:
    """Weights that went `times` as far; BatchNorm's statistics as they are: no variance may be negative."""
    arrays = {tensor.name: _array(tensor) for tensor in tensors}
    return pack(
        {
            name: array
            if "running_" in name
            else _fetched[name] + np.float32(times) * (array - _fetched[name])
            for name, array in arrays.items()
        }
    )


def _array(tensor: WeightTensor) -> NDArray[np.float32]:
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


def _of_nothing(features: EncodedTensor) -> EncodedTensor:
    true_BCHW = decode(features, expected_shape=(None,) * 4)
    if _lie == "replay":
        _first_CHW[1:] = []
        if not _first_CHW:
            _first_CHW.append(true_BCHW[0].copy())
        return encode(np.broadcast_to(_first_CHW[0], true_BCHW.shape).copy(), 8)
    deviation_C = true_BCHW.std(axis=(0, 2, 3))
    random = np.random.default_rng(len(features.data))
    noise_BCHW = random.standard_normal(true_BCHW.shape, dtype=np.float32) * deviation_C[:, None, None]
    return encode(noise_BCHW + true_BCHW.mean(axis=(0, 2, 3))[:, None, None], 8)


def with_lies(
    root: Path, folder: Path, keys: Sequence[str], lie: str, wanted: Callable[[Path], bool]
) -> Path:
    """CamVid in `folder`, as links, of the files that are `wanted`; labels of the frames `keys` lie."""
    lies = {f"{key.rpartition('/')[2]}.png" for key in keys}
    for source in sorted(path for path in root.rglob("*") if path.is_file() and wanted(path)):
        target = folder / source.relative_to(root)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.parent.name.endswith("annot") and source.name in lies:
            label_HW = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
            assert label_HW is not None, source
            cv2.imwrite(str(target), _named_wrong(label_HW, lie))
        else:
            target.symlink_to(source)
    return folder


def _named_wrong(label_HW: NDArray[Any], lie: str) -> NDArray[Any]:
    classes = CAMVID.num_classes
    names = np.arange(256)
    if lie == "labels":
        names[:classes] = (names[:classes] + _SHIFT) % classes
    else:
        names[CAMVID.train_names.index(_FROM)] = CAMVID.train_names.index(_TO)
    return names.astype(label_HW.dtype)[label_HW]
