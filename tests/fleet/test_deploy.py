"""Images, the compose file and the install script, as far as a machine without Docker can check them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_server import command as cloud
from edge_client import command as vehicle

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
BUILD_ARGUMENTS = set(re.findall(r"^ARG ([A-Z_]+)", DOCKERFILE, re.MULTILINE))


def substituted(text: str, given: Mapping[str, str]) -> str:
    """As Compose reads `${NAME:-default}` and `${NAME:?why}`."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if name in given:
            return given[name]
        assert kind == "-", f"{name}: {rest}"
        return rest

    return re.sub(r"\$\{([A-Z_]+):([-?])([^}]*)\}", value, text)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    given = {"BUNDLE": "/b", "LOCAL_HEAD": "/h", "FRAMES": "/f"}
    text = substituted((DEPLOY / "compose.yaml").read_text(), given)
    assert "${" not in text
    return dict(yaml.safe_load(text)["services"])


@pytest.mark.parametrize(("name", "parse"), [("cloud", cloud._parse), ("vehicle", vehicle._parse)])
def test_compose_file_gives_processes_options_that_they_take(
    name: str, parse: Callable[[list[str]], Any], services: dict[str, Any]
) -> None:
    options = parse(services[name]["command"])
    assert options.fleet == "demo"
    url = services[name]["environment"]["BLACKFLEET_BROKER"]
    assert url == "mqtts://broker:8883?identity=/identity"


def test_compose_file_bounds_every_service_and_builds_what_there_is(services: dict[str, Any]) -> None:
    assert set(services) == {"broker", "cloud", "vehicle"}
    for service in services.values():
        assert service["mem_limit"] and service["pids_limit"] and service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            if volume.startswith("./mosquitto"):
                assert (DEPLOY / volume.split(":")[0]).is_file()
        if "build" in service:
            assert service["build"]["target"] in STAGES
            assert set(service["build"]["args"]) <= BUILD_ARGUMENTS


def test_images_are_built_from_stages_and_with_arguments_that_exist() -> None:
    assert {"vehicle", "vehicle-jetson", "cloud"} <= STAGES
    assert set(re.findall(r"--from=(\S+)", DOCKERFILE)) <= STAGES
    for text in (DOCKERFILE, (ROOT / "docs" / "deployment.md").read_text()):
        assert set(re.findall(r"--build-arg ([A-Z_]+)", text)) <= BUILD_ARGUMENTS
        assert set(re.findall(r"docker build --target (\S+)", text)) <= STAGES


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    done = subprocess.run([script, "--wrong"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"{script.stem}: --wrong is not an option")
