"""`blackfleet dataset` and `blackfleet encoder`: what a fleet is made of, made and checked by itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fleet.cli.interrupts import stopping_line
from fleet.export.encoders import (
    DEFAULT_ENCODER,
    ENCODER_DOOR,
    architecture,
    fitting_size,
    resizing_remark,
)
from fleet.scenario import parse_image_size
from fleet.show.screen import screen

dataset_app = typer.Typer(no_args_is_help=True, help="Data sets of driving frames.")
encoder_app = typer.Typer(no_args_is_help=True, help="Encoder bundles for vehicles.")


@dataset_app.command("generate")
def dataset_generate(
    folder: Annotated[Path, typer.Argument(help="Where to write the data set, in the Cityscapes layout.")],
    cities: Annotated[int, typer.Option(help="Cities, each with its own look.")] = 4,
    sequences: Annotated[int, typer.Option(help="Drives in each city.")] = 1,
    frames: Annotated[int, typer.Option(help="Frames of each drive.")] = 60,
    image_size: Annotated[str, typer.Option(help="WxH in pixels.")] = "512x384",
    seed: Annotated[int, typer.Option(help="Decides every scene.")] = 0,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    workers: Annotated[int, typer.Option(help="Processes that render.")] = 1,
) -> None:
    """Render driving scenes with exact labels and instances, as every Cityscapes tool reads them."""
    from datasets.generated import GeneratorSettings, generate_dataset

    settings = GeneratorSettings(
        cities=cities,
        sequences_per_city=sequences,
        frames_per_sequence=frames,
        image_size=parse_image_size(image_size),
        seed=seed,
    )
    console = screen()
    with stopping_line("go on with the same command"), console.status("rendering") as status:
        generate_dataset(
            folder,
            settings,
            split=split,
            workers=workers,
            progress=lambda done, total: status.update(f"rendering {done}/{total}"),
        )
    console.print(f"{cities * sequences * frames} frames in {folder}", soft_wrap=True)


@dataset_app.command("describe")
def dataset_describe(
    folder: Annotated[
        Path, typer.Argument(help="Holds images/CITY/1.png (or .jpg) and their labels, labels/CITY/1.png.")
    ],
) -> None:
    """Draw up the table of classes of your own images and labels, for --dataset folder; give them names."""
    from datasets.readers.class_draft import write_class_draft

    path, classes = write_class_draft(folder)
    print(
        f"{classes} classes in {path}: give each its name, "
        f"then launch with --dataset folder --data-root {folder}"
    )


@encoder_app.command("export")
def encoder_export(
    folder: Annotated[Path, typer.Argument(help="Where to write the bundle.")],
    encoder: Annotated[str, typer.Option(help=f"{ENCODER_DOOR.choices}.")] = DEFAULT_ENCODER,
    encoder_trainable: Annotated[
        list[str] | None,
        typer.Option(help="Of an ONNX file: a weight that learns, or a pattern; repeat for more."),
    ] = None,
    image_size: Annotated[str, typer.Option(help="What the encoder sees, WxH in pixels.")] = "256x192",
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
) -> None:
    """Export an encoder as the bundle that a vehicle runs: ONNX graphs and their description."""
    asked = parse_image_size(image_size)
    fitting = fitting_size(asked, architecture(encoder, trainable=encoder_trainable).stride)
    if fitting != asked:
        print(resizing_remark(asked, fitting))
    from fleet.export.bundle import export_bundle

    bundle = export_bundle(encoder, folder, image_size=fitting, seed=seed, trainable=encoder_trainable)
    shape = "x".join(map(str, bundle.spec.feature_shape))
    print(f"{encoder}: {len(bundle.theta0)} parameters, features {shape}, in {folder}")


@encoder_app.command("check")
def encoder_check(
    encoder: Annotated[str, typer.Argument(help=f"{ENCODER_DOOR.choices}.")],
    image_size: Annotated[str, typer.Option(help="What the encoder sees, WxH in pixels.")] = "256x192",
    encoder_weights: Annotated[
        Path | None, typer.Option(help="Pretrained weights: a file of a state dict.")
    ] = None,
    encoder_trainable: Annotated[
        list[str] | None,
        typer.Option(help="Of an ONNX file: a weight that learns, or a pattern; repeat for more."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Check an encoder as a launch does, and say what it costs: size, time on this machine, bytes, VJP."""
    asked = parse_image_size(image_size)
    fitting = fitting_size(asked, architecture(encoder, encoder_weights, encoder_trainable).stride)
    if fitting != asked:
        print(resizing_remark(asked, fitting), file=sys.stderr)
    import fleet.cli.encoder_check as checking
    from fleet.export.examine import examine

    found = examine(encoder, image_size=fitting, weights=encoder_weights, trainable=encoder_trainable)
    print(checking.as_json(found) if as_json else checking.as_text(found))
