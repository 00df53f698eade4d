"""The options of `blackfleet label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.cli.interrupts import stopping_line

_MODEL = "Where the model does not say it"


def label(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Of `blackfleet export`, or any ONNX that segments.")
    ],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of pictures, a picture, a video, a vehicle's recording, or a data set.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for frames and labels; default: labels beside the frames."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Read SOURCE as this data set: camvid, cityscapes, …")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help="Probability that a pixel's class must have, else it is void. Default: 0.9."),
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="YAML: the model's ids and what they are in --classes."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make labels of another model or other settings anew.")
    ] = False,
    against: Annotated[
        bool,
        typer.Option("--against", help="Write nothing: compare with the data set's own labels."),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first N frames.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Classes of the labels: camvid, cityscapes, or a table.", rich_help_panel=_MODEL),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Of the pictures that it takes.", rich_help_panel=_MODEL),
    ] = None,
    pixels: Annotated[
        str | None,
        typer.Option(
            help="How float pixels are scaled: raw (0 to 255), unit (0 to 1), imagenet, or m,m,m/s,s,s.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    model_output: Annotated[
        str | None, typer.Option(help="Name of its output, of several.", rich_help_panel=_MODEL)
    ] = None,
    provider: Annotated[str, typer.Option(help="What it runs on: auto, cpu, cuda, …")] = "auto",
    threads: Annotated[int, typer.Option(help="Of ONNX Runtime.")] = 1,
) -> None:
    """Label frames with a model of yours, where it is sure.

    Labels lie beside the frames, as a vehicle reads them: NAME_labelIds.png for NAME.jpg.

    blackfleet label teacher.onnx drive.mp4 -o labelled

    Ctrl-C stops cleanly; the same command goes on.
    """
    from fleet.errors import OperatorError
    from fleet.model.labelling import Labelling
    from fleet.model.labelling import label as run_label
    from fleet.model.teacher import TeacherOptions
    from fleet.scenario import parse_image_size

    if threads < 1:
        raise OperatorError(f"--threads must be at least 1, got {threads}")
    options = TeacherOptions(
        classes=classes,
        class_map=class_map,
        image_size=None if image_size is None else parse_image_size(image_size),
        pixels=pixels,
        output=model_output,
        provider=provider,
        threads=threads,
    )
    asked = Labelling(
        source=source,
        output=output,
        dataset=dataset,
        confidence=confidence,
        replaces=replace,
        limit=limit,
        against=against,
    )
    with stopping_line("go on with the same command"):
        run_label(model, options, asked)
