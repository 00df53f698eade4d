"""ONNX Runtime sessions, all opened in the same way.

A provider is named as ONNX Runtime names it, with options of its own behind a colon where there are some:
`TensorrtExecutionProvider:trt_fp16_enable=1,device_id=0`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

from edge_client.encoder.onnx_runtime import ort
from protocol.errors import SettingError
from protocol.user_folders import cache_folder

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
DEFAULT_PROVIDERS = (CUDA, CPU)
"""In order of preference. TensorRT is for those who ask: it compiles an engine for minutes."""
DEVICE_MEMORY = {CUDA: "cuda", TENSORRT: "cuda"}
"""ONNX Runtime's name of the memory that a provider works in, where that is not the host's."""
TOLD_EVERY_S = 5.0

_telling = threading.local()


def base_name(provider: str) -> str:
    """A provider without its options."""
    return provider.partition(":")[0]


def options_of(provider: str) -> dict[str, str]:
    """What stands behind the colon.

    Raises:
        SettingError: it is not `KEY=VALUE`, with commas between, or names one twice.
    """
    options: dict[str, str] = {}
    for part in filter(None, provider.partition(":")[2].split(",")):
        key, equals, value = part.partition("=")
        if not key or not equals or not value or key in options:
            raise SettingError(
                f"a provider's options must be KEY=VALUE with commas between, each once, got {part!r} in "
                f"{provider!r}; for instance tensorrt:trt_fp16_enable=1,device_id=0"
            )
        options[key] = value
    return options


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
    name = base_name(provider)
    providers = [(name, {**_options(name), **options_of(provider)})]
    if name == TENSORRT and CUDA in ort.get_available_providers():
        providers.append((CUDA, _options(CUDA)))  # for operators that TensorRT has not
    with told(f"{name.removesuffix('ExecutionProvider')} prepares a graph"):
        session = ort.InferenceSession(model, options, providers=[*providers, CPU])
    if session.get_providers()[0] != name:
        raise RuntimeError("ONNX Runtime fell back to the CPU by itself")
    return session


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Say every few seconds that the body goes on: engines take minutes. Of nested ones the first says it."""
    if getattr(_telling, "is_on", False):
        yield
        return
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(TOLD_EVERY_S):
            log.info("%s, for %.0f s now", what, time.monotonic() - began)

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    _telling.is_on = True
    thread.start()
    try:
        yield
    finally:
        _telling.is_on = False
        done.set()
        thread.join()


def _options(provider: str) -> dict[str, str]:
    """What a provider is told: to multiply in float32, because small differences are what is learnt from, and
    to keep what it has compiled."""
    if provider == CUDA:
        return {"use_tf32": "0"}
    if provider == TENSORRT:
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if provider not in (TENSORRT, OPENVINO):
        return {}
    folder = cache_folder()
    if folder is None:
        return {}
    kept = folder / ("tensorrt" if provider == TENSORRT else "openvino")
    kept.mkdir(parents=True, exist_ok=True)
    if provider == OPENVINO:
        return {"cache_dir": str(kept)}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(kept),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(kept),
    }
