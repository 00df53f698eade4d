"""What the bits of a feature cost and save: score, loss, bytes and time of each coding, on one model.

`python -m benchmarks.codec` trains an encoder and a network as one, then sends the test frames' features, in
batches as in a run, through each coding, and prints a table and one JSON line. With `--train` a model is
trained at each coding instead: the network learns from decoded features, and the gradient
passes the codec unchanged. Milliseconds are of CPU time, so that what else the machine does matters less.
Frames are CamVid's from `--data-root`, $BLACKFLEET_CAMVID or ../shared/data/camvid, else generated ones.
Legend: B frames of a batch, C channels, H W rows and columns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.camvid import camvid_folder, camvid_is_here
from benchmarks.options import some_of
from cloud_server.config import network_seed
from cloud_server.networks.build import build_network
from cloud_server.training.inference import threads
from cloud_server.training.trainer import PartConfig, Trainer, TrainerConfig
from edge_client.frames import FrameCache
from evaluation.scores import ConfusionMatrix
from fleet.export.encoders import DEFAULT_ENCODER, build_encoder
from fleet.frames.allocation import allocate, open_data
from fleet.run.joint_network import JointNetwork
from fleet.scenario import DatasetPart, Scenario, parse_image_size
from protocol.batches import batch_bounds
from protocol.codec.bits import encode_within
from protocol.codec.tensor import EncodedTensor, decode, encode
from protocol.errors import MENDABLE
from protocol.noise import derive_seed, permutation

LOSS_TARGET_POINTS = 0.5
FRAME_BYTES_TARGET = 6500
_BATCH = 8
_ENCODER_RATE = 2e-3
_TIMED_REPEATS = 5
_COLUMNS = ("coding", "mIoU %", "points", "loss", "bytes a frame", "encode ms", "decode ms")


@dataclass(frozen=True, kw_only=True)
class Coding:
    """One setting of the codec."""

    name: str
    bits: int
    frame_bytes: int | None = None

    def encode(self, features_BCHW: NDArray[np.float32]) -> EncodedTensor:
        """As a vehicle codes them whose turn has these settings."""
        if self.frame_bytes is None:
            return encode(features_BCHW, self.bits)
        return encode_within(features_BCHW, bytes_per_frame=self.frame_bytes, most_bits=self.bits)


FLOAT32 = Coding(name="float32", bits=32)
CODINGS = (
    FLOAT32,
    *(Coding(name=f"{bits} bits", bits=bits) for bits in (8, 6, 4, 3, 2)),
    *(Coding(name=f"≤ {limit} bytes", bits=8, frame_bytes=limit) for limit in (3000, 1700)),
)


class CodedNetwork(JointNetwork):
    """An encoder and a network with the codec between them; gradients pass it as if it were not there."""

    def __init__(self, encoder: nn.Module, network: nn.Module, coding: Coding) -> None:
        super().__init__(encoder, network)
        self._coding = coding

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features_BCHW = self.encoder(image_BCHW.permute(0, 2, 3, 1))
        encoded = self._coding.encode(features_BCHW.detach().numpy())
        decoded_BCHW = torch.from_numpy(decode(encoded, expected_shape=tuple(features_BCHW.shape)))
        logits_BKhw: Tensor = self.network(features_BCHW + (decoded_BCHW - features_BCHW).detach())
        return logits_BKhw


class Bench:
    """Frames, and models trained and tested on them; everything on one thread."""

    def __init__(self, scenario: Scenario, folder: Path, *, steps: int) -> None:
        self._seed = scenario.seed
        self._steps = steps
        source = open_data(scenario, folder, Console(stderr=True))
        shares = allocate(scenario, source).values()
        self._label_space = source.label_space
        self._cache = FrameCache(source, parse_image_size(scenario.image_size))
        self._train_keys = [key for share in shares for key in share.train]
        self.test_keys = [key for share in shares for key in share.test]

    def train(self, coding: Coding) -> tuple[nn.Module, nn.Module]:
        """Encoder and network after all steps."""
        encoder = build_encoder(DEFAULT_ENCODER, self._seed).folded()
        width, height = self._cache.image_size
        network = build_network(
            "compact",
            feature_shape=(encoder.channels, height // encoder.stride, width // encoder.stride),
            feature_stride=encoder.stride,
            num_classes=self._label_space.num_classes,
            seed=network_seed(self._seed),
        )
        trainer = Trainer(
            CodedNetwork(encoder, network, coding),
            TrainerConfig(
                schedule="one-cycle",
                total_steps=self._steps,
                seed=derive_seed(self._seed, "training"),
                parts=(PartConfig(prefix="encoder.", rate=_ENCODER_RATE, weight_decay=0.0),),
            ),
        )
        for keys in self._train_batches():
            image_BHWC, label_BHW = self._batch(keys)
            trainer.train_step(image_BHWC.transpose(0, 3, 1, 2), label_BHW)
        return encoder.eval(), network.eval()

    def features(self, encoder: nn.Module) -> list[NDArray[np.float32]]:
        """features_BCHW of the test frames, batch by batch."""
        with threads(1), torch.inference_mode():
            return [
                encoder(torch.from_numpy(self._batch(keys)[0])).numpy().copy()
                for keys in self._test_batches()
            ]

    def measure(
        self, coding: Coding, network: nn.Module, batches: Sequence[NDArray[np.float32]]
    ) -> dict[str, Any]:
        """A row of the table: the network on features that have gone through the codec."""
        trainer = Trainer(network, TrainerConfig())
        matrix = ConfusionMatrix(self._label_space)
        loss_sum, coded_bytes = 0.0, 0
        encode_ms, decode_ms = [], []
        for keys, features_BCHW in zip(self._test_batches(), batches, strict=True):
            encoded, milliseconds = _timed(coding.encode, features_BCHW)
            encode_ms.append(milliseconds / len(keys))
            decoded_BCHW, milliseconds = _timed(_decode, encoded)
            decode_ms.append(milliseconds / len(keys))
            coded_bytes += encoded.payload_bytes
            loss_sum += len(keys) * trainer.evaluate_loss(decoded_BCHW, self._batch(keys)[1])
            for index, key in enumerate(keys):
                label_HW = self._cache.full_label(key)
                height, width = label_HW.shape
                matrix.add(label_HW, trainer.predict(decoded_BCHW[index : index + 1], (height, width))[0])
        frames = len(self.test_keys)
        return {
            "coding": coding.name,
            "bits": coding.bits,
            "frame_bytes": coding.frame_bytes,
            "miou": matrix.mean_iou(),
            "loss": loss_sum / frames,
            "bytes_per_frame": coded_bytes / frames,
            "encode_ms": statistics.median(encode_ms),
            "decode_ms": statistics.median(decode_ms),
        }

    def _train_batches(self) -> Iterator[list[str]]:
        """As many as there are steps."""
        count, taken, epoch = len(self._train_keys), 0, 0
        while True:
            order_n = permutation(derive_seed(self._seed, "codec", epoch), count)
            for start, stop in batch_bounds(count, _BATCH):
                if taken == self._steps:
                    return
                yield [self._train_keys[index] for index in order_n[start:stop]]
                taken += 1
            epoch += 1

    def _test_batches(self) -> list[list[str]]:
        keys = self.test_keys
        return [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]

    def _batch(self, keys: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """image_BHWC and label_BHW at the encoder's input size."""
        pairs = [self._cache.resized(key) for key in keys]
        return np.stack([image_HWC for image_HWC, _ in pairs]), np.stack([label_HW for _, label_HW in pairs])


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="folder of CamVid in the SegNet layout")
    parser.add_argument("--seed", type=int, default=0, help="decides every random draw (default 0)")
    parser.add_argument("--train", action="store_true", help="train a model at each coding")
    parser.add_argument(
        "--codings",
        type=some_of(names := [coding.name for coding in CODINGS]),
        default=";".join(names),
        help=f"some of the codings, with semicolons; {FLOAT32.name} is always the first",
    )
    parser.add_argument("--quick", action="store_true", help="few steps and frames, to see that it runs")
    options = parser.parse_args()
    data_root = options.data_root or (camvid_folder() if camvid_is_here() else None)
    name = "generated" if data_root is None else "camvid"
    steps = 60 if options.quick else 600
    with tempfile.TemporaryDirectory(prefix="blackfleet-codec-") as folder:
        try:
            scenario = Scenario(
                vehicles=3,
                seed=options.seed,
                dataset=DatasetPart(
                    name=name,
                    root=None if data_root is None else str(data_root),
                    frames_per_vehicle=16 if options.quick else None,
                ),
            )
            bench = Bench(scenario, Path(folder), steps=steps)
        except MENDABLE as error:
            parser.error(str(error))
        codings = [coding for coding in CODINGS if coding is FLOAT32 or coding.name in options.codings]
        rows = run(bench, codings, train_each=options.train)
    trained = "trained at each coding" if options.train else "trained once, at float32"
    table = Table(title=f"{name}, {len(bench.test_keys)} test frames, {steps} steps, {trained}")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "coding" else "right")
    for row in rows:
        table.add_row(
            row["coding"],
            f"{100 * row['miou']:.2f}",
            f"{row['points']:+.2f}",
            f"{row['loss']:.4f}",
            f"{row['bytes_per_frame']:.0f}",
            f"{row['encode_ms']:.3f}",
            f"{row['decode_ms']:.3f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"targets at 8 bits: at most {LOSS_TARGET_POINTS} points below float32, "
        f"at most {FRAME_BYTES_TARGET} bytes a frame"
    )
    settings = {"data": name, "steps": steps, "seed": options.seed, "train": options.train}
    print(json.dumps({"benchmark": "codec", **settings, "rows": rows}))


def run(bench: Bench, codings: Sequence[Coding], *, train_each: bool) -> list[dict[str, Any]]:
    """A row for each coding, with `points` of mIoU that it is above float32."""
    rows: list[dict[str, Any]] = []
    for coding in codings:
        if train_each or not rows:
            encoder, network = bench.train(coding)
            batches = bench.features(encoder)
        row = bench.measure(coding, network, batches)
        reference = rows[0] if rows else row
        rows.append({**row, "points": 100 * (row["miou"] - reference["miou"])})
    return rows


def _timed(function: Callable[..., Any], argument: object) -> tuple[Any, float]:
    """The result, and the median of the CPU milliseconds that it takes."""
    taken = []
    for _ in range(_TIMED_REPEATS):
        begin = time.thread_time()
        result = function(argument)
        taken.append(1e3 * (time.thread_time() - begin))
    return result, statistics.median(taken)


def _decode(encoded: EncodedTensor) -> NDArray[np.float32]:
    return decode(encoded, expected_shape=(None, None, None, None))


if __name__ == "__main__":
    main()
