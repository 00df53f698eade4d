"""ONNX Runtime sessions, all opened in the same way."""

from __future__ import annotations

from edge_client.encoder.onnx_runtime import ort

CPU = "CPUExecutionProvider"
DEFAULT_PROVIDERS = ("CUDAExecutionProvider", CPU)
"""In order of preference. TensorRT is for those who ask: it compiles an engine for minutes."""


def open_session(model: bytes, provider: str, threads: int) -> ort.InferenceSession:
    """A session of a serialised model on an execution provider, the CPU as its last resort."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # A waiting thread must leave the core to the host's other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=[provider] if provider == CPU else [provider, CPU])
