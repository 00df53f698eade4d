"""The local model of federated averaging: exported by the operator, trained by the vehicle."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated_fixtures import export_tiny_model, tiny_module
from fleet_fixtures import IMAGE_SIZE, World

from cloud_server.training.losses import cross_entropy, downsample_labels
from datasets.labels import CAMVID
from edge_client.encoder.bundle import EncoderBundle
from edge_client.learners.federated import confusion_counts
from edge_client.local.network import LocalNetwork, LocalTraining, make_on
from edge_client.work import metered
from fleet.export.local_model import export_local_model
from protocol.local_model import LocalModel, LocalModelError, LocalModelSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return export_tiny_model(tmp_path_factory.mktemp("model"))


# The whole network on the vehicle -------------------------------------------------------------------------


def test_exported_weights_are_those_of_both_halves(model: LocalModel, tiny_world: World) -> None:
    theta0 = EncoderBundle.load(tiny_world.bundle).theta0
    encoder = [array.ravel() for name, array in model.weights.items() if name.startswith("encoder.")]
    assert np.array_equal(np.concatenate(encoder), theta0)
    for name, tensor in tiny_module().state_dict().items():
        if tensor.dtype == torch.float32:
            assert np.array_equal(model.weights[name], tensor.numpy()), name


def test_exported_programs_train_as_the_module_does(model: LocalModel) -> None:
    """Three AdamW steps with batch statistics, of changing batch size: the same weights and statistics."""
    module = tiny_module().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    batches = [_batch(seed, size) for seed, size in enumerate((3, 2, 5))]
    losses = []
    for image_BHWC, label_BHW in batches:
        logits = module(torch.from_numpy(image_BHWC))
        loss = cross_entropy(logits, downsample_labels(torch.from_numpy(label_BHW), logits.shape[-2:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    network = LocalNetwork(model, model.weights, threads=1)
    [mean] = network.train(_training(weight_decay=0.01, optimizer="adamw"), [(1e-3, batches)])
    assert mean == pytest.approx(np.average(losses, weights=[3, 2, 5]), rel=1e-5)
    expected = module.state_dict()
    for name, array in network.weights.items():
        np.testing.assert_allclose(array, expected[name].detach().numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
    predicted = network.predictor()(batches[0][0], (60, 80))
    logits = torch.nn.functional.interpolate(
        module.eval()(torch.from_numpy(batches[0][0])), (60, 80), mode="bilinear"
    )
    assert (predicted == logits.argmax(1).numpy()).mean() > 0.999


def test_local_training_is_deterministic(model: LocalModel) -> None:
    runs = []
    for _ in range(2):
        network = LocalNetwork(model, model.weights, threads=1)
        network.train(_training(), [(0.1, [_batch(0, 4), _batch(1, 3)])])
        runs.append(network.weights)
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize(
    ("encoder", "network"),
    [("stride8-c4", "compact"), ("efficientnet-lite0-s8", "lite0-unet"), ("stride8-c4", "segformer-b0")],
)
def test_programs_make_nothing_on_the_device_that_they_were_traced_on(
    encoder: str, network: str, tmp_path: Path
) -> None:
    """Shown by torch's device without memory, on which what is elsewhere can't be used."""
    if network.startswith("segformer"):
        pytest.importorskip("transformers", reason="SegFormer needs transformers")
    width, height = 64, 64
    model = export_local_model(
        tmp_path,
        encoder=encoder,
        network=network,
        loss="cross-entropy",
        label_space_name="camvid",
        image_size=(width, height),
        encoder_seed=0,
        network_seed=0,
    )
    programs = {}
    for name, program in model.programs.items():
        programs[name] = torch.jit.load(io.BytesIO(program))
        make_on(programs[name], "meta")
        for part in programs[name].modules():
            assert 'device("cpu")' not in getattr(part, "code", ""), (name, part.original_name)
    logits_BKhw = torch.zeros(2, CAMVID.num_classes, height // 4, width // 4, device="meta")
    labels_BHW = torch.zeros(2, height, width, dtype=torch.uint8, device="meta")
    weight_K = torch.ones(CAMVID.num_classes, device="meta")
    assert programs["loss"](logits_BKhw, labels_BHW).device.type == "meta"
    assert programs["weighted_loss"](logits_BKhw, labels_BHW, weight_K).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_local_training_on_cuda_is_that_on_the_cpu(model: LocalModel) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        network = LocalNetwork(model, model.weights, threads=1, device=device)
        losses[device] = network.train(_training(), [(1e-2, [_batch(0, 4), _batch(1, 3)])] * 2)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_weights_of_classes_count_in_local_training(model: LocalModel) -> None:
    weight_K = np.linspace(0, 3, CAMVID.num_classes, dtype=np.float32)
    batch = _batch(0, 4)
    logits_BKhw = tiny_module().train()(torch.from_numpy(batch[0]))
    label_Bhw = downsample_labels(torch.from_numpy(batch[1]), logits_BKhw.shape[-2:])
    expected = cross_entropy(logits_BKhw, label_Bhw, torch.from_numpy(weight_K)).item()
    training = dataclasses.replace(_training(), class_weights=weight_K)
    [loss] = LocalNetwork(model, model.weights, threads=1).train(training, [(1e-3, [batch])])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert abs(expected - cross_entropy(logits_BKhw, label_Bhw).item()) > 0.1


def test_fedprox_pulls_towards_the_start(model: LocalModel) -> None:
    """Two SGD steps by hand with the gradient of loss + μ/2 ‖w − w₀‖²."""
    mu, rate, batch = 0.7, 0.2, _batch(0, 3)
    module = tiny_module().eval()
    start = [parameter.detach().clone() for parameter in module.parameters()]
    for _ in range(2):
        module.zero_grad()
        logits = module(torch.from_numpy(batch[0]))
        loss = cross_entropy(logits, downsample_labels(torch.from_numpy(batch[1]), logits.shape[-2:]))
        pull = sum(((p - s) ** 2).sum() for p, s in zip(module.parameters(), start, strict=True))
        (loss + mu / 2 * pull).backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= rate * parameter.grad
    network = LocalNetwork(model, model.weights, threads=1)
    network.train(_training(proximal=mu, frozen_statistics=True), [(rate, [batch, batch])])
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(network.weights[name], parameter.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_damaged_local_model_is_refused(tmp_path: Path) -> None:
    export_tiny_model(tmp_path)
    weights = tmp_path / "weights.msgpack"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(LocalModelError, match=r"weights\.msgpack is damaged: its checksum is wrong"):
        LocalModel.load(tmp_path)


def test_missing_local_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match=r"can't read .*model\.json: No such file"):
        LocalModel.load(tmp_path / "nowhere")


def test_confusion_counts_are_the_cloud_s() -> None:
    from evaluation.scores import ConfusionMatrix

    random = np.random.default_rng(3)
    label_HW = random.choice(np.array([0, 1, 4, 10, 255], np.uint8), (20, 30))
    prediction_HW = random.choice(np.array([0, 1, 5, 10, 255], np.uint8), (20, 30))
    matrix = ConfusionMatrix(CAMVID)
    matrix.add(label_HW, prediction_HW)
    assert np.array_equal(confusion_counts(label_HW, prediction_HW, CAMVID.num_classes), matrix.counts)


def _batch(seed: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    width, height = IMAGE_SIZE
    image_BHWC = random.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    label_BHW = random.integers(0, CAMVID.num_classes, (frames, height, width), dtype=np.uint8)
    label_BHW[:, :5] = 255
    return image_BHWC, label_BHW


def _training(**changes: Any) -> LocalTraining:
    plain = LocalTraining(
        optimizer="sgd", momentum=0.0, weight_decay=0.0, proximal=0.0, frozen_statistics=False, seed=5
    )
    return dataclasses.replace(plain, **changes)


def test_model_description_is_readable(model: LocalModel) -> None:
    assert isinstance(model.spec, LocalModelSpec)
    assert (model.spec.encoder, model.spec.network, model.spec.loss) == (
        "stride8-c4",
        "compact",
        "cross-entropy",
    )


def test_local_training_counts_what_it_computes(model: LocalModel) -> None:
    network = LocalNetwork(model, model.weights, threads=1)
    width, height = model.spec.image_size
    image_BHWC = np.zeros((2, height, width, 3), np.uint8)
    label_BHW = np.zeros((2, height, width), np.uint8)
    with metered() as meter:
        network.train(_training(), [(1e-3, [(image_BHWC, label_BHW)])])
        network.predictor()(image_BHWC, (height, width))
    assert model.spec.multiply_adds > 0
    assert (meter.forwards, meter.ways_back) == (4, 2)
    assert meter.multiply_adds == (2 * 3 + 2) * model.spec.multiply_adds and meter.is_complete
