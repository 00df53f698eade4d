"""The small heads that vehicles get with their bundles: local heads, or those that stand for the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from cloud_server.run.equipment import learns_by_surrogate
from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.sessions import CPU
from edge_client.local.head import SPEC_NAME
from fleet.errors import OperatorError
from fleet.export.encoders import folder_name
from fleet.export.head_export import export_decoder, export_head, head_for, write_head
from fleet.run.beginning import some_pictures
from fleet.run.job import Job
from fleet.start import Start


def write_heads(job: Job, bundles: Mapping[str, EncoderBundle]) -> dict[str, str]:
    """The folder of a head by encoder.

    Raises:
        OperatorError: the start has none.
        DatasetError: a picture can't be read.
    """
    scenario = job.scenario
    surrogate = learns_by_surrogate(scenario.cloud_config())
    if surrogate and job.start is not None and scenario.local_head.pretrained:
        return dict.fromkeys(bundles, str(_pretrained(job.start)))
    folders = {name: job.run_folder / "local_heads" / folder_name(name) for name in bundles}
    for name, bundle in bundles.items():
        if job.has_begun and (folders[name] / SPEC_NAME).exists():
            continue  # the very one that the vehicles have
        write = _write_surrogate if surrogate else _write_local_head
        write(job, bundle, folders[name])
    return {name: str(folder) for name, folder in folders.items()}


def write_decoders(job: Job, bundles: Mapping[str, EncoderBundle]) -> dict[str, str]:
    """The folder of a decoder by encoder, as large as local heads are."""
    size = job.scenario.local_head
    folders = {name: job.run_folder / "decoders" / folder_name(name) for name in bundles}
    for name, bundle in bundles.items():
        if not (job.has_begun and (folders[name] / SPEC_NAME).exists()):
            seed = job.scenario.seed
            export_decoder(bundle.spec, folders[name], width=size.width, depth=size.depth, seed=seed)
    return {name: str(folder) for name, folder in folders.items()}


def _pretrained(start: Start) -> Path:
    if start.head_folder is None:
        raise OperatorError(
            f"the start {start.folder} has no head to stand for the network; pretrain again, or set "
            f"local_head.pretrained to false"
        )
    return start.head_folder


def _write_local_head(job: Job, bundle: EncoderBundle, folder: Path) -> None:
    scenario = job.scenario
    export_head(
        bundle.spec,
        folder,
        label_space_name=job.classes_name,
        width=scenario.local_head.width,
        depth=scenario.local_head.depth,
        seed=scenario.seed,
    )


def _write_surrogate(job: Job, bundle: EncoderBundle, folder: Path) -> None:
    """From random weights; its normalisation is that of some of the fleet's pictures."""
    scenario = job.scenario
    head = head_for(
        bundle.spec,
        job.source.label_space,
        width=scenario.local_head.width,
        depth=scenario.local_head.depth,
        seed=scenario.seed,
        fixed=True,
    )
    encoder = Encoder(bundle, mode="rebuild", providers=[CPU])
    head.settle(torch.from_numpy(encoder.forward(bundle.theta0, some_pictures(job))))
    write_head(head, bundle.spec, folder, job.source.label_space.name)
