"""Images of any size: what encoders see of them, and that heads, networks and scores fit."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fleet_fixtures import World
from start_fixtures import run

from cloud_server.networks.build import build_network
from cloud_server.networks.spec import NetworkSpec
from cloud_server.training.losses import downsample_labels
from edge_client.encoder.runtime import Encoder
from edge_client.local.head import LocalHead
from fleet.export.bundle import export_bundle
from fleet.export.encoders import fitting_size
from fleet.export.head_export import export_head
from fleet.export.local_model import build_whole_network
from fleet.scenario import load_scenario

SIZES = ((256, 192), (480, 360), (512, 256), (1024, 512), (481, 361), (250, 190))


@pytest.mark.parametrize("stride", [1, 4, 8, 12])
@pytest.mark.parametrize("size", [*SIZES, (1, 1), (7, 9), (20, 12)])
def test_fitting_size_is_the_nearest_that_divides(size: tuple[int, int], stride: int) -> None:
    fitting = fitting_size(size, stride)
    for asked, side in zip(size, fitting, strict=True):
        assert side > 0 and side % stride == 0
        assert 2 * abs(side - asked) <= stride or side == stride
    assert fitting_size(fitting, stride) == fitting


@pytest.mark.parametrize(
    ("network", "encoder", "size"),
    [
        *(("compact", encoder, size) for encoder in ("stride8-c8", "stride4-c8") for size in SIZES),
        ("compact", "blackfed-double-conv", (250, 190)),
        ("segformer-b0", "stride8-c8", (250, 190)),
        ("segformer-b0", "stride4-c8", (61, 90)),
    ],
)
def test_logits_of_the_whole_network_are_a_quarter_of_what_the_encoder_sees(
    network: str, encoder: str, size: tuple[int, int]
) -> None:
    if network.startswith("segformer"):
        pytest.importorskip("transformers")
    stride = 8 if encoder.startswith("stride8") else 4
    width, height = fitting_size(size, stride)
    whole = build_whole_network(
        encoder, network, image_size=(width, height), num_classes=11, encoder_seed=0, network_seed=0
    )
    with torch.inference_mode():
        logits_BKhw = whole.eval()(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    assert logits_BKhw.shape == (1, 11, height // 4, width // 4)
    assert (
        downsample_labels(torch.zeros(1, 361, 479), logits_BKhw.shape[-2:]).shape[1:] == logits_BKhw.shape[2:]
    )


@pytest.mark.parametrize("encoder", ["stride8-c8", "stride4-c8"])
@pytest.mark.parametrize("size", [(120, 88), (60, 45)], ids=["11 cells high", "odd"])
def test_bundle_head_and_network_agree_on_odd_numbers_of_cells(
    tmp_path: Path, encoder: str, size: tuple[int, int]
) -> None:
    stride = 8 if encoder.startswith("stride8") else 4
    width, height = fitting_size(size, stride)
    bundle = export_bundle(encoder, tmp_path / "bundle", image_size=(width, height), seed=0)
    head = LocalHead(
        export_head(bundle.spec, tmp_path / "head", label_space_name="camvid", width=8, depth=1, seed=0)
    )
    runtime = Encoder(bundle, mode="rebuild", providers=["CPUExecutionProvider"])
    features_BCHW = runtime.forward(bundle.theta0, np.zeros((2, height, width, 3), np.uint8))
    spec = NetworkSpec(
        feature_shape=bundle.spec.feature_shape, feature_stride=stride, num_classes=11, weights=None
    )
    network = build_network(
        "compact", feature_shape=spec.feature_shape, feature_stride=stride, num_classes=11, seed=0
    )
    assert features_BCHW.shape[1:] == (8, math.ceil(height / stride), math.ceil(width / stride))
    judged = head.linearise(head.initial, features_BCHW)
    assert (
        judged.logits_BKhw.shape[1:] == network(torch.from_numpy(features_BCHW)).shape[1:] == spec.logit_shape
    )


@pytest.mark.parametrize(
    ("algorithm", "size"),
    [("blackfleet", "61x45"), ("fedavg", "61x45"), ("centralized", "40x96")],
)
def test_run_at_any_size_is_scored_at_the_labels_own(
    tiny_world: World, tmp_path: Path, algorithm: str, size: str
) -> None:
    settings = {
        "algorithm": algorithm,
        "vehicles": 2,
        "rounds": 1,
        "image_size": size,
        "cores": 1,
        "broker": "memory",
        "encoder": {"name": "stride8-c4", "mode": "rebuild"},
        "dataset": {"name": "camvid", "root": str(tiny_world.data_root)},
        "first_order": {"epochs": 1, "batch_size": 4},
        "local_loss": {"warm_up_epochs": 1, "epochs": 1},
        "evaluation": {"overlays": 0},
    }
    result = run(load_scenario(None, settings), tmp_path / "run")
    predictions = list((tmp_path / "run" / "predictions").glob("*/*_labelIds.png"))
    tested = sum(entry["frames_test"] for entry in result["vehicles"].values())
    sizes = {cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in predictions}
    assert (len(predictions), sizes) == (tested, {(60, 80)})
    # every pixel of every test label was counted, the three rows of void apart
    assert sum(map(sum, result["confusion"])) == tested * 57 * 80
