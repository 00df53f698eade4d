"""`blackfleet export`: a run's model for use outside, as ONNX files that say what they are."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console

from cloud_server.run.results import RESULT_NAME
from datasets.catalog import open_dataset
from datasets.labels import LabelSpace
from edge_client.frames import FrameCache
from edge_client.predict.card import ModelCard
from fleet.errors import OperatorError
from fleet.frames.allocation import data_folder, evenly_spaced
from fleet.frames.partition_record import settle_shares
from fleet.model.check import Checked, TestFrames, check_graphs
from fleet.model.graphs import encoder_model, network_model, whole_model, with_metadata, without_logits
from fleet.model.int8 import (
    CALIBRATION_FRAMES,
    Variant,
    calibration_feeds,
    compare_variants,
    quantised,
)
from fleet.model.served import Served, read_served
from fleet.run.folder import SCENARIO_NAME
from fleet.run.job import read_object
from fleet.scenario import Scenario, load_scenario
from protocol.atomic import write_bytes_atomic

SUFFIX = ".onnx"
UNROUNDED_BITS = 32
INT8 = "int8"
INT8_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how it compares with the run."""

    vehicle: str
    model: Path
    encoder: Path
    network: Path
    checked: Checked
    variants: tuple[Variant, ...] = ()
    """The model in floats and in integers; empty where only floats were wanted."""


def export_model(
    run_folder: Path,
    output: Path,
    *,
    vehicle: str | None = None,
    logits: bool = True,
    int8: bool = False,
    console: Console,
) -> Exported:
    """Write the model of a vehicle of a run that has ended, and its two parts beside it.

    Args:
        run_folder: of `blackfleet launch`, or one run of `compare`.
        output: `NAME.onnx`; the parts become `NAME.encoder.onnx` and `NAME.network.onnx`.
        vehicle: its id; None: the one with the best mIoU on its own test frames, of equals the first.
        logits: whether the model gives logits besides ids.
        int8: whether the three are also written in int8, as `NAME.int8.onnx`, `NAME.encoder.int8.onnx`, ….

    Raises:
        OperatorError: the folder holds no run that has ended, or it has no such vehicle.
        ExportError: a graph can't be made, or differs from the run.
        Mistake, OSError: a part of the run, or a frame, is missing or damaged; a file can't be written.
    """
    if output.suffix != SUFFIX or output.is_dir():
        raise OperatorError(f"the model must be a file whose name ends in {SUFFIX}, got {output}")
    scenario, result = read_ended(run_folder)
    chosen = choose_vehicle(result, vehicle)
    with console.status(f"exporting {chosen}"):
        served = read_served(scenario, run_folder, chosen)
        frames = test_frames(scenario, run_folder, chosen)
        encoder, network = (
            encoder_model(served.encoder),
            network_model(served.network, served.feature_shape),
        )
        bits = rounding_bits(served)
        model = whole_model(encoder, network, bits=bits, logits=logits)
        card = _card(scenario, run_folder, chosen, served, frames.label_space, bits)
        graphs = {
            part: with_metadata(graph, replace(card, part=part).properties())
            for part, graph in (("model", model), ("encoder", encoder), ("network", network))
        }
        checked = check_graphs(
            served,
            frames,
            encoder=graphs["encoder"],
            network=graphs["network"],
            model=graphs["model"],
            threads=scenario.core_count,
        )
        written = {part_path(output, part): graph for part, graph in graphs.items()}
        variants: tuple[Variant, ...] = ()
        if int8:
            integers = _in_integers(served, frames, encoder, network, card)
            floats = {**graphs, "model": graphs["model"] if logits else _with_logits(encoder, network, bits)}
            variants = tuple(compare_variants(served, frames, floats, integers))
            for part, graph in integers.items():
                written[part_path(output, part, precision=INT8)] = (
                    without_logits(graph) if part == "model" and not logits else graph
                )
    output.parent.mkdir(parents=True, exist_ok=True)
    for path, graph in written.items():
        write_bytes_atomic(path, graph)
    exported = Exported(
        vehicle=chosen,
        model=part_path(output, "model"),
        encoder=part_path(output, "encoder"),
        network=part_path(output, "network"),
        checked=checked,
        variants=variants,
    )
    _say(exported, served, console)
    return exported


def _in_integers(
    served: Served,
    frames: TestFrames,
    encoder: onnx.ModelProto,
    network: onnx.ModelProto,
    card: ModelCard,
) -> dict[str, bytes]:
    """The three graphs in int8; the model rounds features only where the run had fewer bits than that."""
    bits = card.coding_bits if card.coding_bits is not None and card.coding_bits < INT8_BITS else None
    images, features = calibration_feeds(served, frames, encoder.SerializeToString())
    graphs = {
        "model": quantised(whole_model(encoder, network, bits=bits, logits=True), images),
        "encoder": quantised(encoder, images),
        "network": quantised(network, features),
    }
    return {
        part: with_metadata(graph, replace(card, part=part, precision=INT8, coding_bits=bits).properties())
        for part, graph in graphs.items()
    }


def _with_logits(encoder: onnx.ModelProto, network: onnx.ModelProto, bits: int | None) -> bytes:
    serialised: bytes = whole_model(encoder, network, bits=bits, logits=True).SerializeToString()
    return serialised


def part_path(output: Path, part: str, *, precision: str = "") -> Path:
    """`NAME.onnx` of the model, `NAME.PART.onnx` of anything else; `NAME.PART.int8.onnx` in integers."""
    marks = [mark for mark in ("" if part == "model" else part, precision) if mark]
    return output.with_name(".".join([output.stem, *marks]) + SUFFIX)


def rounding_bits(served: Served) -> int | None:
    """What the model rounds features to; None: not at all."""
    coding = served.coding
    return None if coding is None or coding.bits == UNROUNDED_BITS else coding.bits


def read_ended(run_folder: Path) -> tuple[Scenario, dict[str, Any]]:
    """The scenario and the result of a run that has ended.

    Raises:
        OperatorError: the folder holds none.
    """
    if not (run_folder / SCENARIO_NAME).is_file() or any(run_folder.glob(f"*/{SCENARIO_NAME}")):
        runs = sorted(path.parent.name for path in run_folder.glob(f"*/{SCENARIO_NAME}"))
        raise OperatorError(
            f"{run_folder} holds a comparison; name one of its runs: {', '.join(runs[:10])}"
            if runs
            else f"{run_folder} holds no run of `blackfleet launch` ({SCENARIO_NAME} is missing)"
        )
    if not (run_folder / RESULT_NAME).is_file():
        raise OperatorError(
            f"the run in {run_folder} has not ended ({RESULT_NAME} is missing); go on with: blackfleet "
            f"launch --resume --run-dir {run_folder}"
        )
    return load_scenario(run_folder / SCENARIO_NAME, {}), read_object(run_folder / RESULT_NAME)


def choose_vehicle(result: Mapping[str, Any], wanted: str | None) -> str:
    """The vehicle that is wanted, or the best one on its own test frames.

    Raises:
        OperatorError: there is no such vehicle, or it has failed.
    """
    failed = result.get("failed", {})
    lasting: list[str] = [vehicle for vehicle in result["vehicles"] if vehicle not in failed]
    if wanted is None:
        if not lasting:
            raise OperatorError("every vehicle of this run has failed: there is no model")
        scores = {vehicle: _score(result["vehicles"][vehicle]["local_miou"]) for vehicle in lasting}
        return max(lasting, key=scores.__getitem__)
    if wanted in failed:
        raise OperatorError(f"vehicle {wanted} has failed in this run: {failed[wanted]}")
    if wanted not in lasting:
        raise OperatorError(f"this run has no vehicle {wanted!r}; it has: {', '.join(lasting)}")
    return wanted


def _score(miou: float | None) -> float:
    return -math.inf if miou is None else miou


def test_frames(scenario: Scenario, run_folder: Path, vehicle: str) -> TestFrames:
    """A vehicle's test frames.

    Raises:
        DatasetError, OperatorError: they are not there any more, or not the same.
    """
    source = open_dataset(scenario.dataset.name, data_folder(scenario, run_folder))
    share = settle_shares(scenario, run_folder, source)[vehicle]
    return TestFrames(
        keys=share.test,
        calibration=evenly_spaced(share.train, CALIBRATION_FRAMES),
        cache=FrameCache(source, scenario.frame_size),
        sight=share.sight.sight() if share.sight else None,
        predictions=run_folder / "predictions" / vehicle,
        label_space=source.label_space,
    )


def _card(
    scenario: Scenario,
    run_folder: Path,
    vehicle: str,
    served: Served,
    label_space: LabelSpace,
    bits: int | None,
) -> ModelCard:
    return ModelCard(
        part="model",
        label_space=label_space,
        dataset=scenario.dataset.name,
        image_size=scenario.frame_size,
        pixel_mean=served.pixel_mean,
        pixel_std=served.pixel_std,
        coding_bits=bits,
        run=run_folder.resolve().name,
        vehicle=vehicle,
        algorithm=scenario.algorithm,
        rounds=scenario.rounds,
        seed=scenario.seed,
        encoder=served.encoder_name,
        network=scenario.network.name,
        theta_sha256=served.theta_sha256,
        network_sha256=served.network_sha256,
        version=_version(),
    )


def _version() -> str:
    try:
        return importlib.metadata.version("blackfleet")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that nobody has installed
        return "unknown"


def _say(exported: Exported, served: Served, console: Console) -> None:
    checked = exported.checked
    frames = "1 test frame" if checked.frames == 1 else f"{checked.frames} test frames"
    lines = [
        f"{exported.vehicle}: {exported.model}, {exported.encoder}, {exported.network}",
        f"{frames}: encoder and network differ from the run's predictions in "
        f"{100 * checked.parts_differ:.3f} % of the pixels",
    ]
    if rounding_bits(served) is not None:
        lines.append(
            f"the model, which rounds each frame's features by itself, differs in "
            f"{100 * checked.model_differs:.3f} %"
        )
    lines.append(f"mIoU of the model {checked.model_miou:.4f}, of the run {checked.run_miou:.4f}")
    if exported.variants:
        first = exported.variants[0]
        lines.append(f"{'':12}  {'mIoU':>7}  {'loss':>7}  {'ms a frame':>10}")
        lines += [
            f"{each.name:12}  {each.miou:7.4f}  {first.miou - each.miou:7.4f}  {each.frame_ms:10.2f}"
            for each in exported.variants
        ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
