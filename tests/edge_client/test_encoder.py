"""The vehicle's encoder on ONNX Runtime, against torch."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edge_client.encoder import sessions
from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.graph import Graph
from edge_client.encoder.providers import (
    candidates,
    choose_encoder,
    difference,
    encoder_outputs,
    find_provider,
)
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.sessions import CPU, CUDA, TENSORRT
from edge_client.errors import VehicleError
from fleet.export.bundle import export_bundle, export_encoder
from fleet.export.convolutions import ConvolutionEncoder, Layer
from fleet.export.encoders import CHAINS, build_encoder
from protocol.errors import SettingError

SIZE = (64, 48)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE[1], SIZE[0], 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> EncoderBundle:
    return export_bundle("stride8-c8", tmp_path_factory.mktemp("bundle") / "e", image_size=SIZE, seed=3)


@pytest.mark.parametrize("mode", ["bind", "rebuild"])
@pytest.mark.parametrize("name", CHAINS)
def test_features_equal_torch_at_several_thetas(tmp_path: Path, name: str, mode: str) -> None:
    bundle = export_bundle(name, tmp_path / "e", image_size=SIZE, seed=3)
    encoder = Encoder(bundle, mode=mode)
    module = build_encoder(name, seed=3).folded()
    random = np.random.default_rng(5)
    for theta in (bundle.theta0, bundle.theta0 + 0.02 * random.standard_normal(bundle.theta0.size)):
        theta = theta.astype(np.float32)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), module.parameters())
        with torch.no_grad():
            expected = module(torch.from_numpy(frames(3))).numpy()
        features = encoder.forward(theta, frames(3))
        assert features.dtype == np.float32
        assert features.shape[1:] == bundle.spec.feature_shape
        np.testing.assert_allclose(features, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_parameters_of_default_encoder_count_7400(bundle: EncoderBundle) -> None:
    assert bundle.spec.parameter_count == 7400
    assert bundle.spec.feature_shape == (8, 6, 8)


@pytest.mark.parametrize("name", CHAINS)
def test_initial_weights_keep_the_variance(name: str) -> None:
    """White noise of unit variance leaves every convolution with a variance near 1 (before ReLU)."""
    encoder = build_encoder(name, seed=0)
    pixels = 127.5 + 58 * torch.randn(2, 96, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert 0.5 < float(encoder(pixels).var()) < 2.0


def test_folded_norms_keep_the_function() -> None:
    encoder = ConvolutionEncoder([Layer(channels=6, norm=True), Layer(channels=4, stride=2, norm=True)])
    encoder.initialise(1)
    encoder.train()
    encoder(torch.from_numpy(frames(4)))  # moves the running statistics away from 0 and 1
    encoder.eval()
    image = torch.from_numpy(frames(2, seed=1))
    with torch.no_grad():
        torch.testing.assert_close(encoder.folded()(image), encoder(image), atol=1e-5, rtol=1e-5)


def test_trained_norms_are_exported(tmp_path: Path) -> None:
    encoder = build_encoder("blackfed-double-conv", seed=0).train()
    encoder(torch.from_numpy(frames(2)))
    encoder.eval()
    bundle = export_encoder(encoder, "trained", tmp_path / "e", image_size=SIZE)
    with torch.no_grad():
        expected = encoder(torch.from_numpy(frames(2))).numpy()
    features = Encoder(bundle, mode="rebuild").forward(bundle.theta0, frames(2))
    np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("mode", ["bind", "rebuild"])
def test_features_of_a_frame_do_not_depend_on_its_batch(bundle: EncoderBundle, mode: str) -> None:
    encoder = Encoder(bundle, mode=mode, providers=["CPUExecutionProvider"])
    together = encoder.forward(bundle.theta0, frames(5))
    alone = encoder.forward(bundle.theta0, frames(5)[3:4])
    assert np.array_equal(together[3:4], alone)


@pytest.mark.parametrize("mode", ["bind", "rebuild"])
def test_features_are_bit_identical_between_sessions(bundle: EncoderBundle, mode: str) -> None:
    first, second = Encoder(bundle, mode=mode), Encoder(bundle, mode=mode)
    theta = bundle.theta0 * np.float32(1.01)
    second.forward(bundle.theta0, frames(1))
    assert np.array_equal(first.forward(theta, frames(2)), second.forward(theta, frames(2)))


def test_theta_changed_in_place_is_noticed_when_rebuilding(bundle: EncoderBundle) -> None:
    encoder = Encoder(bundle, mode="rebuild")
    theta = bundle.theta0.copy()
    before = encoder.forward(theta, frames(1))
    theta[-1] += 1
    after = encoder.forward(theta, frames(1))
    np.testing.assert_allclose(after[0, -1] - before[0, -1], 1, atol=1e-5)


def test_auto_mode_measures_nothing_on_the_cpu(bundle: EncoderBundle) -> None:
    """What is measured may come out otherwise the next time, and with it the last bits of a run."""
    assert Encoder(bundle, mode="auto", providers=[CPU]).mode == "rebuild"


def test_faster_mode_is_one_of_the_two(bundle: EncoderBundle) -> None:
    graph = Graph(bundle, "forward", CPU, 1)
    assert graph.faster_mode(bundle.theta0, {"image_BHWC": frames(2)}) in ("bind", "rebuild")


def test_encoder_shared_by_threads_gives_each_its_own_result(bundle: EncoderBundle) -> None:
    encoder = Encoder(bundle, mode="rebuild")
    thetas = [bundle.theta0 * np.float32(1 + 0.1 * index) for index in range(4)]
    expected = [encoder.forward(theta, frames(2)) for theta in thetas]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            if not np.array_equal(encoder.forward(thetas[index], frames(2)), expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_missing_provider_falls_back_to_the_cpu(
    bundle: EncoderBundle, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder(bundle, mode="bind", providers=["NoSuchExecutionProvider"])
    assert encoder.provider == "CPUExecutionProvider"
    assert "NoSuchExecutionProvider" in caplog.text
    assert encoder.forward(bundle.theta0, frames(1)).shape == (1, 8, 6, 8)


def test_provider_that_fails_on_inference_falls_back_to_the_cpu(
    bundle: EncoderBundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that lists CUDA on a machine without it: here the provider can't even be loaded."""
    monkeypatch.setattr(
        "edge_client.encoder.runtime.ort.get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    if Encoder(bundle, mode="bind").provider == "CUDAExecutionProvider":
        pytest.skip("this machine runs CUDA")
    assert "CUDAExecutionProvider does not run here" in caplog.text


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 48, 64), np.uint8),
        np.zeros((1, 48, 65, 3), np.uint8),
        np.zeros((0, 48, 64, 3), np.uint8),
        np.zeros((1, 48, 64, 3), np.float32),
    ],
)
def test_wrong_image_is_rejected(bundle: EncoderBundle, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 images \(B, 48, 64, 3\), got"):
        Encoder(bundle, mode="bind").forward(bundle.theta0, image)


@pytest.mark.parametrize("theta", [np.zeros(7399, np.float32), np.zeros(7400, np.float64)])
def test_wrong_theta_is_rejected(bundle: EncoderBundle, theta: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"θ must be float32 \(7400,\), got"):
        Encoder(bundle, mode="bind").forward(theta, frames(1))


def test_unknown_mode_and_thread_count_are_rejected(bundle: EncoderBundle) -> None:
    with pytest.raises(ValueError, match="mode must be auto, bind or rebuild, got 'fast'"):
        Encoder(bundle, mode="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        Encoder(bundle, threads=0)


def test_provider_that_is_named_is_found_or_refused_in_one_line(bundle: EncoderBundle) -> None:
    assert candidates("auto")[-1] == candidates("CPU")[0] == candidates("cpuexecutionprovider")[0] == CPU
    with pytest.raises(
        SettingError, match=r"has no provider 'abacus' here, it has .*cpu.*; take one of these"
    ):
        choose_encoder(bundle, "abacus", mode="bind", threads=1)


def test_provider_that_does_not_run_is_refused_by_name_and_left_out_by_itself(
    bundle: EncoderBundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edge_client.encoder.providers.ort.get_available_providers",
        lambda: ["CUDAExecutionProvider", CPU],
    )
    if choose_encoder(bundle, "auto", mode="bind", threads=1).provider != CPU:
        pytest.skip("this machine runs CUDA")
    assert f"encoder {bundle.spec.name}: CUDA does not run here" in caplog.text
    with pytest.raises(VehicleError, match=r": CUDA does not run here: .*; take --provider auto or cpu"):
        choose_encoder(bundle, "cuda", mode="bind", threads=1)


def test_every_graph_is_run_and_one_that_computes_something_else_is_named(bundle: EncoderBundle) -> None:
    """The check that a GPU must pass, here with a graph that shifts pixels by something else."""
    sound = encoder_outputs(bundle, CPU, 1, ("bind", "rebuild"))
    assert {name.partition(",")[0] for name in sound} == {n for n in bundle.graphs if "_bound" not in n}
    assert difference(sound, sound) is None
    model = onnx.load_from_string(bundle.graphs["tape_bound"])
    [shift] = [one for one in model.graph.initializer if one.name == "pixel_shift"]
    shift.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(shift) + np.float32(1), shift.name)
    )
    graphs = {**bundle.graphs, "tape_bound": model.SerializeToString()}
    ill = encoder_outputs(dataclasses.replace(bundle, graphs=graphs), CPU, 1, ("bind", "rebuild"))
    fault = difference(ill, sound)
    assert fault is not None and "something else than the CPU: tape, bind differs by" in fault


def test_options_of_a_provider_reach_its_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT keeps what it compiles, and has CUDA for what it lacks; both multiply in float32."""
    opened: list[Any] = []

    class Session:
        def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
            opened.append(providers)

        def get_providers(self) -> list[str]:
            return [opened[-1][0][0]]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sessions.ort, "InferenceSession", Session)
    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    sessions.open_session(b"", find_provider("cuda:device_id=1,use_tf32=1"), 1)
    assert opened[-1] == [(CUDA, {"use_tf32": "1", "device_id": "1"}), CPU]
    sessions.open_session(b"", find_provider("TensorRT:trt_fp16_enable=1"), 1)
    [(name, given), (second, others), last] = opened[-1]
    kept = str(tmp_path / "blackfleet" / "tensorrt")
    assert (name, second, others, last) == (TENSORRT, CUDA, {"use_tf32": "0"}, CPU)
    assert given == {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": kept,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": kept,
        "trt_fp16_enable": "1",
    }
    assert Path(kept).is_dir()


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("cpu:threads=2", "the CPU's provider has no options here, got 'cpu:threads=2'"),
        ("auto:device_id=1", "options are a named provider's, got 'auto:device_id=1'"),
        ("cpu:fast", "must be KEY=VALUE with commas between, each once, got 'fast'"),
        ("cpu:a=1,a=2", "each once, got 'a=2'"),
        ("cpu:=1", "got '=1'"),
        ("abacus:rows=9", "has no provider 'abacus' here"),
    ],
)
def test_options_that_nobody_takes_are_refused_in_one_line(named: str, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        candidates(named)


def test_warm_up_runs_every_graph_at_the_sizes_and_changes_no_bit(
    bundle: EncoderBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with what passes between graphs bound to where it lies, here to the host's memory."""
    random = np.random.default_rng(0)
    width, height = bundle.spec.image_size
    image_BHWC = random.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    v_BCHW = random.standard_normal((3, *bundle.spec.feature_shape)).astype(np.float32)
    cold = Encoder(bundle, mode="bind", providers=[CPU])
    expected = cold.forward(bundle.theta0, image_BHWC), cold.vjp(bundle.theta0, image_BHWC, v_BCHW)
    ran: list[str] = []
    plain, bound = Graph.split, Graph.run_on_device

    def run_on_device(self: Graph, theta: Any, pieces: Any) -> Any:
        ran.append(self._name)
        return bound(self, theta, pieces)

    monkeypatch.setattr(Graph, "run_on_device", run_on_device)
    warm = Encoder(bundle, mode="bind", providers=[CPU])
    sizes: list[int] = []
    monkeypatch.setattr(Graph, "split", lambda self, batch: sizes.append(len(batch["v_BCHW"])) or [batch])
    warm.warm_up((1, 8, 1))
    assert sizes == [8, 1]
    assert set(ran) == {name for name in bundle.graphs if name[:3] in ("tap", "vjp") and "_bound" not in name}
    monkeypatch.setattr(Graph, "split", plain)
    for graphs in warm._ways_back.values():
        for graph in graphs:
            graph.memory = "cpu"
    np.testing.assert_array_equal(warm.forward(bundle.theta0, image_BHWC), expected[0])
    np.testing.assert_array_equal(warm.vjp(bundle.theta0, image_BHWC, v_BCHW), expected[1])


def test_long_preparation_is_told_every_few_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "TOLD_EVERY_S", 0.05)
    with caplog.at_level("INFO"), sessions.told("an engine"), sessions.told("a part of it"):
        time.sleep(0.3)
    lines = [record.getMessage() for record in caplog.records]
    assert 2 <= len(lines) <= 6 and all(line.startswith("an engine, for ") for line in lines)
