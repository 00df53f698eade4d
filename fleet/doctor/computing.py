"""What encoders and the cloud's network can compute on: tried, for a build names more than a device runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from fleet.doctor.finding import Finding

RELU = (
    b"\x08\x08:3\n\x0c\n\x01x\x12\x01y\x22\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\x0d"
)
"""An ONNX model: y = max(x, 0) of two numbers; here as bytes, for a vehicle has no package onnx."""
_COMPILES = "TensorrtExecutionProvider"
_REMOTE = "AzureExecutionProvider"
_SUFFIX = "ExecutionProvider"


def check_onnx_runtime() -> Iterator[Finding]:
    """Each provider that this build of ONNX Runtime has; nothing where the package is missing."""
    try:
        import numpy as np

        from edge_client.encoder.onnx_runtime import ort
        from edge_client.encoder.sessions import CPU, open_session
    except ImportError:
        return
    for provider in ort.get_available_providers():
        if provider == _REMOTE:
            continue  # somebody else's computers
        about = f"ONNX Runtime {provider.removesuffix(_SUFFIX)}"
        if provider == _COMPILES:
            yield Finding(about=about, state="ok", found="not tried: it compiles for minutes")
            continue
        try:
            session = open_session(RELU, provider, 1)
            [y] = session.run(None, {"x": np.array([-1, 2], np.float32)})
            if y.tolist() != [0, 2]:
                raise RuntimeError(f"max(-1, 0) and max(2, 0) are {y.tolist()}")
        except Exception as error:  # ONNX Runtime raises whatever the provider's library does
            yield Finding(
                about=about,
                state="wrong" if provider == CPU else "note",
                found=f"does not run here: {' '.join(str(error).split())[:200]}",
                advice="pip install -U --force-reinstall onnxruntime"
                if provider == CPU
                else "encoders run on the CPU; for more: the CUDA and cuDNN that this build wants",
            )
        else:
            yield Finding(about=about, state="ok", found=f"runs ({ort.__version__})")


def check_cuda() -> Iterator[Finding]:
    """Whether the cloud's network can be computed by CUDA; nothing where torch is missing."""
    try:
        from cloud_server.training.compute import find_compute
    except ImportError:
        return
    from protocol.errors import SettingError

    try:
        device = find_compute("cuda", "float32").device
    except SettingError as error:
        reason = str(error).removeprefix("device cuda: ").partition(";")[0]
        has_driver = shutil.which("nvidia-smi") is not None
        yield Finding(
            about="CUDA",
            state="note" if has_driver else "ok",
            found=f"none, the cloud computes on the CPU ({reason})",
            advice="there is a driver: install the torch that PyTorch's install page names for it"
            if has_driver
            else "",
        )
    else:
        import torch

        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
        yield Finding(
            about="CUDA", state="ok", found=f"{torch.cuda.get_device_name(device)}, {memory:.0f} GB, works"
        )
