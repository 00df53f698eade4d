"""What a vehicle's process loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import importlib, pkgutil, sys
imported = []
for package in ("edge_client", "evaluation", "datasets", "protocol"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, f"{package}."):
        imported.append(importlib.import_module(module.name).__name__)
forbidden = {"torch", "onnx", "yaml", "safetensors", "tensorboard", "fleet", "cloud_server"}
print(len(imported), *sorted(forbidden & {name.partition(".")[0] for name in sys.modules}))
"""


def test_vehicle_modules_load_neither_torch_nor_onnx() -> None:
    """In a clean interpreter, every module of the four packages that run in a car."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, *loaded = done.stdout.split()
    assert loaded == []
    assert int(count) >= 5
