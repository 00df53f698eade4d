"""ONNX Runtime sessions, all opened in the same way."""

from __future__ import annotations

import os
from typing import Any

from edge_client.encoder.onnx_runtime import ort
from protocol.user_folders import cache_folder

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
DEFAULT_PROVIDERS = (CUDA, CPU)
"""In order of preference. TensorRT is for those who ask: it compiles an engine for minutes."""


def open_session(model: bytes, provider: str, threads: int) -> ort.InferenceSession:
    """A session of a serialised model on an execution provider, the CPU for operators that it has not.

    Raises:
        Exception: the provider is not there, or whatever its library raises.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # A waiting thread must leave the core to the host's other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if provider == CPU:
        return ort.InferenceSession(model, options, providers=[CPU])
    providers = [(provider, _options(provider)), CPU]
    session = ort.InferenceSession(model, options, providers=providers)
    if session.get_providers()[0] != provider:
        raise RuntimeError("ONNX Runtime fell back to the CPU by itself")
    return session


def _options(provider: str) -> dict[str, Any]:
    """What a provider is told: to multiply in float32, because small differences are what is learnt from, and
    to keep what it has compiled."""
    if provider == CUDA:
        return {"use_tf32": "0"}
    if provider != TENSORRT:
        return {}
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    folder = cache_folder()
    if folder is None:
        return {}
    kept = folder / "tensorrt"
    kept.mkdir(parents=True, exist_ok=True)
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(kept),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(kept),
    }
