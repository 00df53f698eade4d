"""The networks: shapes for every feature stride, seeds, and clear errors."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cloud_server.networks.build import build_network
from cloud_server.networks.spec import FEATURE_STRIDES
from cloud_server.networks.table import NETWORKS
from cloud_server.training.trainer import Trainer, TrainerConfig
from protocol.doors import DoorError

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the optional package transformers is missing"
)


def make(name: str = "compact", *, stride: int = 8, size: tuple[int, int] = (96, 128)) -> nn.Module:
    shape = (8, -(-size[0] // stride), -(-size[1] // stride))
    return build_network(name, feature_shape=shape, feature_stride=stride, num_classes=11, seed=3)


@pytest.mark.parametrize("stride", FEATURE_STRIDES)
def test_compact_logits_are_a_quarter_of_the_image(stride: int) -> None:
    network = make(stride=stride)
    features_BCHW = torch.randn(2, 8, 96 // stride, 128 // stride)
    assert network(features_BCHW).shape == (2, 11, 24, 32)


@pytest.mark.parametrize(("stride", "size"), [(8, (90, 123)), (4, (90, 123)), (2, (90, 123)), (1, (30, 45))])
def test_compact_logits_cover_images_of_odd_sizes(stride: int, size: tuple[int, int]) -> None:
    network = make(stride=stride, size=size)
    shape = [-(-side // stride) for side in size]
    rows, columns = network(torch.randn(2, 8, *shape)).shape[2:]
    assert rows == -(-shape[0] * stride // 4) and columns == -(-shape[1] * stride // 4)


@pytest.mark.parametrize("stride", [8, 4])
def test_compact_has_the_intended_size(stride: int) -> None:
    parameters = sum(parameter.numel() for parameter in make(stride=stride).parameters())
    assert 250_000 < parameters < 700_000


@pytest.mark.parametrize("cells", [1, 2, 4])
def test_compact_trains_on_a_single_frame_of_few_cells(cells: int) -> None:
    network = build_network(
        "compact", feature_shape=(8, cells, 2 * cells), feature_stride=8, num_classes=3, seed=0
    )
    assert network.train()(torch.randn(1, 8, cells, 2 * cells)).shape == (1, 3, 2 * cells, 4 * cells)


def test_the_seed_alone_decides_the_initial_weights() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = make().state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(value, first[name]) for name, value in make().state_dict().items())
    other = build_network("compact", feature_shape=(8, 12, 16), feature_stride=8, num_classes=11, seed=4)
    assert not torch.equal(other.state_dict()["head.0.weight"], first["head.0.weight"])


def test_compact_output_does_not_depend_on_the_scale_of_the_features_in_training() -> None:
    network = make().train()
    features_BCHW = torch.randn(4, 8, 12, 16)
    scaled = network(100 * features_BCHW + 7)
    torch.testing.assert_close(network(features_BCHW), scaled, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "unet"}, "unknown network 'unet', expected one of: compact, lite0-unet, segformer-b0"),
        ({"feature_stride": 3}, r"feature stride must be one of \(1, 2, 4, 8, 16, 32\), got 3"),
        ({"feature_shape": (0, 4, 4)}, "three positive numbers C, H, W"),
        ({"num_classes": 1}, "number of classes must be 2 to 255, got 1"),
        ({"weights": Path("somewhere")}, "takes no pretrained weights, got somewhere"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], message: str) -> None:
    usual = {
        "name": "compact", "feature_shape": (8, 4, 4), "feature_stride": 8, "num_classes": 11, "seed": 0
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        build_network(**{**usual, **arguments})  # type: ignore[arg-type]


def test_segformer_without_transformers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'blackfleet\[segformer\]'"):
        make("segformer-b0")


@needs_transformers
@pytest.mark.parametrize("stride", FEATURE_STRIDES)
def test_segformer_logits_are_a_quarter_of_the_image(stride: int) -> None:
    network = make("segformer-b0", stride=stride).eval()
    assert network(torch.randn(1, 8, 96 // stride, 128 // stride)).shape == (1, 11, 24, 32)


@needs_transformers
def test_segformer_is_reproducible_and_trains() -> None:
    first, second = (make("segformer-b0", size=(32, 32)) for _ in range(2))
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    features_BCHW = torch.randn(2, 8, 4, 4)
    label_BHW = torch.randint(0, 11, (2, 8, 8), dtype=torch.uint8)
    losses = []
    for network in (first, second):
        trainer = Trainer(network, TrainerConfig(rate=1e-3))
        losses.append([trainer.train_step(features_BCHW, label_BHW) for _ in range(6)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


@needs_transformers
def test_segformer_starts_from_local_weights(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    pretrained = SegformerForSemanticSegmentation(SegformerConfig(num_labels=19))
    pretrained.save_pretrained(tmp_path)
    network = build_network(
        "segformer-b0",
        feature_shape=(8, 4, 4), feature_stride=8, num_classes=11, seed=0, weights=tmp_path,
    )  # fmt: skip
    loaded = network.state_dict()
    equal = [
        name
        for name, value in pretrained.state_dict().items()
        if value.shape == loaded[f"model.{name}"].shape and torch.equal(value, loaded[f"model.{name}"])
    ]
    assert len(equal) >= len(pretrained.state_dict()) - 4
    with pytest.raises(OSError, match="no SegFormer weights in"):
        build_network(
            "segformer-b0",
            feature_shape=(8, 4, 4), feature_stride=8, num_classes=11, seed=0, weights=tmp_path / "x",
        )  # fmt: skip


def test_every_row_of_the_table_is_a_name_and_a_builder() -> None:
    assert "compact" in NETWORKS and "segformer-b0" in NETWORKS


FOREIGN = """
import torch
from torch import nn

def halves(spec):
    _, h, w = spec.logit_shape
    return nn.Sequential(nn.Conv2d(spec.feature_shape[0], spec.num_classes, 1), nn.Upsample((h, w)))

def coarse(spec):
    return nn.Conv2d(spec.feature_shape[0], spec.num_classes, 1)

def finer(spec):
    return nn.Sequential(halves(spec), nn.Upsample(scale_factor=4))

class Torchvisions(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.network = coarse(spec)
    def forward(self, x):
        return {"out": self.network(x), "aux": x}

class Output:
    def __init__(self, logits):
        self.loss, self.logits = None, logits

class Transformers(Torchvisions):
    def forward(self, x):
        return Output(self.network(x))

class Pyramid(Torchvisions):
    def forward(self, x):
        return [self.network(x), x]

class Features(Torchvisions):
    def forward(self, x):
        return {"low": x}

class Idle(Torchvisions):
    def __init__(self, spec):
        super().__init__(spec)
        self.auxiliary = nn.Conv2d(3, 3, 1)

def tall(spec):
    _, h, w = spec.logit_shape
    return nn.Sequential(coarse(spec), nn.Upsample((h, 2 * w)))

def nineteen(spec):
    return nn.Conv2d(spec.feature_shape[0], 19, 1)

def half(spec):
    class Half(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).half()
    return Half(spec.feature_shape[0], spec.num_classes, 1)

def wild(spec):
    network = halves(spec)
    nn.init.constant_(network[0].bias, float("inf"))
    return network

class Still(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.shape = spec.logit_shape
    def forward(self, x):
        return torch.zeros(len(x), *self.shape)

class Deaf(Still):
    def __init__(self, spec):
        super().__init__(spec)
        self.bias = nn.Parameter(torch.zeros(1))
    def forward(self, x):
        return super().forward(x) + self.bias

class Words(Still):
    def forward(self, x):
        return "road"

def nothing(spec):
    return None

def narrow(spec):
    return nn.Linear(3, spec.unknown)
"""


@pytest.fixture
def module(foreign: Callable[[str, str], str]) -> str:
    return foreign("foreign_networks", FOREIGN)


def test_network_of_somebody_else_is_built_from_the_seed(module: str) -> None:
    state = torch.random.get_rng_state()
    first, second = (make(f"{module}:halves") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first(torch.randn(2, 8, 12, 16)).shape == (2, 11, 24, 32)
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("name", ["coarse", "finer", "Torchvisions", "Transformers", "half", "Idle"])
def test_usual_outputs_of_somebody_elses_network_become_logits(
    module: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    network = make(f"{module}:{name}", size=(90, 123))
    features_BCHW = torch.randn(2, 8, 12, 16, requires_grad=True)
    logits = network(features_BCHW)
    assert logits.shape == (2, 11, 24, 32) and logits.dtype == torch.float32
    logits.square().mean().backward()
    assert features_BCHW.grad is not None and bool(features_BCHW.grad.abs().sum() > 0)
    warned = "no gradient reaches auxiliary.weight, auxiliary.bias; they stay" in caplog.text
    assert warned == (name == "Idle")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tall", ["logits (2, 11, 24, 32)", "in the same proportions", "gave float32 (2, 11, 24, 64)"]),
        ("nineteen", ["gives 19 classes, the labels have 11"]),
        ("Pyramid", ["a dictionary with 'out'", "gave a list of 2 (Tensor): put a head behind it"]),
        ("Features", ["gave a dictionary with 'low'"]),
        ("wild", ["not finite"]),
        ("Still", ["no parameter that learns"]),
        ("Deaf", ["no finite gradient"]),
        ("Words", ["a tensor of logits,", "gave str"]),
        ("nothing", ["must return a torch.nn.Module, got NoneType"]),
        ("narrow", ["AttributeError", "unknown", "foreign_networks.py, line"]),
    ],
)
def test_network_that_does_not_fit_is_refused_in_one_line(module: str, name: str, words: list[str]) -> None:
    with pytest.raises(DoorError) as refusal:
        make(f"{module}:{name}")
    line = str(refusal.value)
    assert line.startswith(f"network {module}:{name}: ") and "\n" not in line
    assert all(word in line for word in words), line
