"""`blackfleet encoder check`: what an encoder costs."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from test_onnx_encoders import SOFT, make
from torch.nn.utils import parameters_to_vector

from fleet.cli import app as cli
from fleet.export.encoders import build_encoder
from fleet.export.multiply_adds import multiply_adds


def _check(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["blackfleet", "encoder", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    code = end.value.code
    assert isinstance(code, int)
    return code


def test_multiply_adds_are_those_of_the_layers() -> None:
    encoder = build_encoder("stride8-c4", 0)
    theta = parameters_to_vector(encoder.parameters()).detach().numpy()
    graph = encoder.forward_graph((64, 48))
    model = onnx.load_from_string(graph.serialise(encoder.parameter_specs(), theta))
    by_hand = 32 * 24 * 16 * 27 + 16 * 12 * 32 * 16 * 9 + 8 * 6 * 4 * 32 * 9
    assert multiply_adds(model) == by_hand


def test_encoder_is_described_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _check(monkeypatch, "stride8-c4", "--image-size", "66x50", "--json") == 0
    said = capsys.readouterr()
    assert "it sees frames at 64x48" in said.err
    found = json.loads(said.out)
    assert (found["parameters"], found["theta_bytes"]) == (6244, 4 * 6244)
    assert found["feature_shape"] == [4, 6, 8]
    assert found["feature_bytes"] == {"32": 768, "8": 192, "6": 144, "4": 96, "3": 72, "2": 48}
    assert found["no_way_back"] is None and found["learns"] == "all"
    assert found["subspaces"]["film"]["numbers"] == 2 * (16 + 32 + 4)
    assert all(cost["way_back_forwards"] > 0 for cost in found["subspaces"].values())
    assert all(seconds > 0 for seconds in found["forward_s"].values())


def test_file_without_a_way_back_names_the_operator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = make(tmp_path / "net.onnx", SOFT)
    assert _check(monkeypatch, file, "--image-size", "64x48") == 0
    said = capsys.readouterr().out
    assert f"{file} at 64x48" in said and "operator Softplus" in said and "way back" in said
    assert "learns by --estimator region-spsa or spsa-gc" in said
    assert "forwards" not in said.split("subspace")[1]
    # Behind the operator there is one.
    assert _check(monkeypatch, file, "--image-size", "64x48", "--encoder-trainable", "b.*") == 0
    assert "VJP            yes" in capsys.readouterr().out


def test_what_is_no_encoder_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments, words in (
        (["nope"], "or the path of a file that ends in .onnx"),
        ([tmp_path / "none.onnx"], "No such file"),
        (["stride8-c4", "--encoder-trainable", "x"], "takes no encoder.trainable"),
        (["stride8-c4", "--encoder-weights", "x"], "takes no weights"),
        (["stride8-c4", "--image-size", "64"], "WIDTHxHEIGHT"),
    ):
        assert _check(monkeypatch, *arguments) == 2
        said = capsys.readouterr()
        assert words in said.err and said.err.count("\n") == 1 and not said.out
