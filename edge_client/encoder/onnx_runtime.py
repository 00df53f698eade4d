"""ONNX Runtime, told to keep to itself; the only file that imports it.

From 1.29 on its import alone writes a device id to the user's cache folder and looks names up, unless the
environment says otherwise beforehand. Processes started from this one inherit the environment.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["ort"]
