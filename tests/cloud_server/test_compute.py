"""Devices and precisions: the same bits again, float32 outside, one line where something is not to be had."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cloud_server.errors import OutOfMemory
from cloud_server.networks.build import build_network
from cloud_server.storage.checkpoint import flatten_state, unflatten_state
from cloud_server.training.compute import Compute, check_device, find_compute
from cloud_server.training.trainer import Trainer, TrainerConfig
from protocol.errors import SettingError

CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not CUDA, reason="torch finds no CUDA device here")
on_cpu_alone = pytest.mark.skipif(CUDA, reason="torch finds a CUDA device here")

# float16 on a CPU is refused as a setting, because it is slow there; it computes what it computes on CUDA.
COMPUTES = [
    pytest.param(Compute(dtype=torch.bfloat16), id="cpu-bfloat16"),
    pytest.param(Compute(dtype=torch.float16), id="cpu-float16"),
    *(
        pytest.param(Compute(torch.device("cuda", 0), dtype), id=f"cuda-{dtype}", marks=needs_cuda)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ),
]


def trainer(compute: Compute) -> Trainer:
    if compute.device.type == "cuda":
        find_compute("cuda", "float32")  # tells torch to be reproducible
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=0)
    return Trainer(network, TrainerConfig(rate=5e-3), compute=compute)


def batch() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    label_BHW = generator.integers(0, 5, (4, 6, 8), np.uint8).repeat(8, 1).repeat(8, 2)
    features_BCHW = generator.normal(size=(4, 4, 6, 8)).astype(np.float32)
    features_BCHW[:, 0] += label_BHW[:, ::8, ::8]
    return features_BCHW, label_BHW


def everything(trainer: Trainer) -> tuple[list[Any], dict[str, Tensor]]:
    """What a run asks of a trainer, as bytes, and its state."""
    features_BCHW, label_BHW = batch()
    losses = trainer.train_epochs(features_BCHW, label_BHW, epochs=6, batch_size=2, seed=1)
    loss, gradient_BCHW = trainer.train_step_with_gradient(features_BCHW, label_BHW)
    told = [losses, loss, gradient_BCHW.tobytes()]
    told += [value.tobytes() for value in trainer.evaluate_gradient(features_BCHW, label_BHW)[1:]]
    told += [trainer.loss_map(features_BCHW, label_BHW, (6, 8)).tobytes()]
    told += [trainer.predict(features_BCHW, (48, 64)).tobytes()]
    told += [trainer.evaluate_losses(features_BCHW, label_BHW).tolist()]
    return told, flatten_state(trainer.state_dict())[0]


@pytest.mark.parametrize("compute", COMPUTES)
def test_same_seed_gives_the_same_bits(compute: Compute) -> None:
    (first, one), (second, two) = (everything(trainer(compute)) for _ in range(2))
    assert first == second
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert first[0][-1] < 0.8 * first[0][0]  # it learns
    assert {value.dtype for name, value in one.items() if "network" in name} == {torch.float32, torch.int64}
    assert {value.device.type for value in one.values()} == {"cpu"}


@pytest.mark.parametrize("compute", COMPUTES)
def test_close_to_float32_on_the_cpu(compute: Compute) -> None:
    features_BCHW, label_BHW = batch()
    exact, other = trainer(Compute()), trainer(compute)
    expected, expected_gradient = exact.train_step_with_gradient(features_BCHW, label_BHW)
    loss, gradient = other.train_step_with_gradient(features_BCHW, label_BHW)
    assert loss == pytest.approx(expected, rel=0.02)
    assert gradient.dtype == np.float32
    cosine = (
        (gradient * expected_gradient).sum() / np.linalg.norm(gradient) / np.linalg.norm(expected_gradient)
    )
    assert cosine > 0.95  # bfloat16 has 8 bits; on some processors and GPUs 0.976 was seen
    assert np.linalg.norm(gradient) == pytest.approx(np.linalg.norm(expected_gradient), rel=0.05)


@pytest.mark.parametrize("compute", COMPUTES)
def test_snapshot_goes_on_to_the_bit(compute: Compute) -> None:
    first = trainer(compute)
    first.train_epochs(*batch(), epochs=2, batch_size=2, seed=1)
    tensors, structure = flatten_state(first.state_dict())
    second = trainer(compute)
    second.load_state_dict(unflatten_state(tensors, structure))
    assert everything(first)[0] == everything(second)[0]


@needs_cuda
def test_snapshot_goes_on_elsewhere() -> None:
    gpu, cpu = trainer(find_compute("cuda", "float32")), trainer(Compute())
    gpu.train_epochs(*batch(), epochs=2, batch_size=2, seed=1)
    cpu.load_state_dict(gpu.state_dict())
    assert cpu.evaluate_loss(*batch()) == pytest.approx(gpu.evaluate_loss(*batch()), rel=1e-4)
    gpu.load_state_dict(cpu.state_dict())


class TooMuch(nn.Module):
    """A network that needs a petabyte once it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 5, 1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        if self.training:
            features_BCHW = features_BCHW + torch.zeros(2**48, device=features_BCHW.device).sum()
        logits_BKhw: Tensor = self.convolution(features_BCHW)
        return logits_BKhw


@pytest.mark.parametrize(
    "compute",
    [Compute(), pytest.param(Compute(torch.device("cuda", 0)), marks=needs_cuda)],
    ids=["cpu", "cuda"],
)
def test_out_of_memory_is_one_line_and_spoils_nothing(compute: Compute) -> None:
    tight = Trainer(TooMuch(), TrainerConfig(), compute=compute)
    before = tight.weights()
    with pytest.raises(OutOfMemory, match=r"lower first_order\.batch_size or the image size.*resumed"):
        tight.train_step(*batch())
    assert all(torch.equal(before[name], value) for name, value in tight.weights().items())
    assert tight.steps == 0
    tight.evaluate_loss(*batch())


@on_cpu_alone
def test_cuda_that_is_not_there_is_refused() -> None:
    for refuses in (check_device, lambda name: find_compute(name, "float32")):
        with pytest.raises(SettingError, match=r"device cuda: torch .*; give --device cpu, or auto"):
            refuses("cuda")
    assert find_compute("auto", "bfloat16") == Compute(torch.device("cpu"), torch.bfloat16)
    with pytest.raises(SettingError, match="precision float16 is for device cuda"):
        find_compute("auto", "float16")


def test_unknown_names_are_refused() -> None:
    for device, precision in (("tpu", "float32"), ("cpu", "float8")):
        with pytest.raises(
            SettingError, match=r"device must be one of auto, cpu, cuda, precision one of float32"
        ):
            find_compute(device, precision)
