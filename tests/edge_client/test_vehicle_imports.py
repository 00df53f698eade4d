"""What a vehicle's process loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fleet_fixtures import World

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


SESSION = """
import sys
from pathlib import Path
{first}
from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
Encoder(EncoderBundle.load(Path(sys.argv[1])))
import os
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(
    "first",
    ["", "import fleet.run.launch", "import edge_client.command", "import edge_client.predict.__main__"],
)
def test_onnx_runtime_leaves_nothing_in_the_user_s_folders(
    tiny_world: World, tmp_path: Path, first: str
) -> None:
    """In a clean interpreter of a user whose home is empty: no device id, no data base of events."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORT_"))}
    environment |= {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "charts"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SESSION.format(first=first), str(tiny_world.bundle)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "charts" not in path.parts]
    assert left == []


def test_no_file_imports_onnx_runtime_before_it_is_told_to_send_nothing() -> None:
    """Tests and benchmarks included, which no import contract covers. Quantising imports the other first."""
    folders = (
        "protocol",
        "datasets",
        "evaluation",
        "edge_client",
        "cloud_server",
        "fleet",
        "tests",
        "benchmarks",
    )
    importing = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if any(
            line.split()[:2] in (["import", "onnxruntime"], ["from", "onnxruntime"])
            for line in path.read_text().splitlines()
        )
    ]
    assert importing == ["edge_client/encoder/onnx_runtime.py", "fleet/model/int8.py"]


@pytest.mark.parametrize(
    "name", ["Dockerfile", "deploy/blackfleet-vehicle.service", "deploy/blackfleet-cloud.service"]
)
def test_images_and_units_tell_onnx_runtime_to_send_nothing(name: str) -> None:
    """Whatever is loaded in them first."""
    assert re.search(r"^(ENV|Environment=).*\bORT_DISABLE_TELEMETRY=1\b", (ROOT / name).read_text(), re.M)
