"""`blackfleet pretrain`: encoder and network trained together on one domain, for fleets to start from.

The training is a run of `centralized` with one vehicle that has all frames; its folder becomes the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from cloud_server.storage.checkpoint import write_tensors
from cloud_server.training.source_features import SourceFeatures, write_source_features
from datasets.divided import open_frames
from datasets.labels import LabelSpace
from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
from edge_client.frames import FrameCache
from fleet.errors import OperatorError
from fleet.export.bundle import export_encoder
from fleet.export.encoders import ImageEncoder
from fleet.export.head_export import head_for, write_head
from fleet.export.surrogate_head import teach_head
from fleet.frames.allocation import (
    Share,
    data_folder,
    evenly_spaced,
)
from fleet.frames.partition_record import settle_shares
from fleet.frames.rendering import rendered_cities, rendered_frames_per_city
from fleet.run.folder import held, kept_scenario, readable_by_owner_alone
from fleet.run.joint_network import read_trained
from fleet.run.launch import launch
from fleet.run.resuming import resumed_scenario
from fleet.scenario import Scenario
from fleet.start import ENCODER_NAME, FEATURES_NAME, HEAD_NAME, NETWORK_NAME, SPEC_NAME, Start, write_spec
from protocol.batches import batch_bounds
from protocol.codec.labels import content_hash
from protocol.plans.adaptation import Adaptation

SOURCE_FEATURES_KEPT = 256
"""Train frames, evenly spaced, whose features are kept for the cloud to rehearse."""
_BATCH_FRAMES = 8


def pretrain(scenario: Scenario, folder: Path, *, resume: bool, console: Console) -> Start:
    """Train to the end and write the start; a complete one is left as it is.

    Of the scenario count: data set and cities, image size, encoder, network, `first_order`, `white_box.rate`
    (the encoder's), rounds, bits and seed. Frames are seen clearly, and divided into train, validation and
    test as those of one vehicle.

    Raises:
        Mistake, OSError: see `fleet.run.launch.launch`; one readable line.
        Interrupted, KeyboardInterrupt: the user stopped it; `resume` goes on.
    """
    if scenario.start is not None:
        raise OperatorError(
            f"pretraining begins with random weights; remove start ({scenario.start}) from the scenario"
        )
    alone = _alone(scenario)
    if resume and (folder / SPEC_NAME).exists():
        if resumed_scenario(alone, folder).rounds == kept_scenario(folder).rounds:
            return Start.load(folder)
        (folder / SPEC_NAME).unlink()  # with more rounds it is to become another one
    result = launch(alone, folder, resume=resume, console=console)
    with held(folder), readable_by_owner_alone():
        start = _write_start(kept_scenario(folder), folder, result["mean_local_miou"])
    console.print(
        f"start in {folder}, pretrained on {', '.join(start.spec.cities)}; begin a fleet from it "
        f"with --start {folder}",
        soft_wrap=True,
    )
    return start


def _alone(scenario: Scenario) -> Scenario:
    """The run that trains on all frames of the scenario's data in one place."""
    dataset = scenario.dataset
    if dataset.is_rendered:
        # The frames are those of the fleet that is to begin from here.
        dataset = msgspec.structs.replace(
            dataset,
            generated_cities=rendered_cities(scenario),
            frames_per_sequence=rendered_frames_per_city(scenario),
        )
    return msgspec.structs.replace(
        scenario,
        algorithm="centralized",
        vehicles=1,
        conditions={},
        encoders={},
        adaptation=Adaptation(subspace="all"),
        network=msgspec.structs.replace(scenario.network, learns=True),
        dataset=dataset,
    )


def _write_start(scenario: Scenario, folder: Path, test_miou: float | None) -> Start:
    encoder, network_weights, algorithm = read_trained(scenario, folder)
    [val_miou] = algorithm["progress"]["val_miou"].values()
    return write_start(scenario, folder, encoder, network_weights, val_miou=val_miou, test_miou=test_miou)


def write_start(
    scenario: Scenario,
    folder: Path,
    encoder: ImageEncoder,
    network_weights: Mapping[str, Tensor],
    *,
    val_miou: float,
    test_miou: float | None,
) -> Start:
    """Write a start of these weights, which were reached on the frames of the scenario's one vehicle.

    Raises:
        ExportError, DatasetError, SettingError, OSError: see `export_encoder` and `settle_shares`.
    """
    image_size = scenario.frame_size
    bundle = export_encoder(encoder, scenario.encoder.name, folder / ENCODER_NAME, image_size=image_size)
    cloud = scenario.cloud_config()
    write_tensors(folder / NETWORK_NAME, dict(network_weights), {"network": cloud.network.name})
    source = open_frames(scenario.dataset.name, data_folder(scenario, folder), scenario.dataset.test_split)
    [share] = settle_shares(scenario, folder, source).values()
    cache = FrameCache(source, image_size)
    _write_features(folder / FEATURES_NAME, bundle, cache, share, bits=scenario.coding.bits)
    _write_head(scenario, folder, bundle, source.label_space)
    return write_spec(
        folder,
        encoder=scenario.encoder.name,
        network=cloud.network.name,
        image_size=image_size,
        label_space=source.label_space.name,
        feature_shape=bundle.spec.feature_shape,
        seed=scenario.seed,
        dataset=scenario.dataset.name,
        cities=tuple(sorted({cache.ref(key).city for key in share.train + share.val + share.test})),
        val=share.val,
        test=share.test,
        test_label_digests=tuple(content_hash(cache.full_label(key)).hex() for key in share.test),
        val_miou=val_miou,
        test_miou=test_miou,
    )


def _write_features(path: Path, bundle: EncoderBundle, cache: FrameCache, share: Share, *, bits: int) -> None:
    """As a vehicle would upload them: by ONNX Runtime, quantised."""
    encoder = Encoder(bundle, mode="rebuild", providers=["CPUExecutionProvider"])
    frames = [cache.resized(key) for key in evenly_spaced(share.train, SOURCE_FEATURES_KEPT)]
    features = [
        encoder.forward(bundle.theta0, np.stack([image_HWC for image_HWC, _ in frames[start:stop]]))
        for start, stop in batch_bounds(len(frames), _BATCH_FRAMES)
    ]
    label_nHW = np.stack([label_HW for _, label_HW in frames])
    write_source_features(path, np.concatenate(features), label_nHW, bits)


def _write_head(scenario: Scenario, folder: Path, bundle: EncoderBundle, classes: LabelSpace) -> None:
    """A head that stands for the network, taught by the source's labels."""
    source = SourceFeatures.load(folder / FEATURES_NAME, classes.num_classes)
    features_nCHW, label_nHW = source.batch(range(len(source)))
    head = head_for(
        bundle.spec,
        classes,
        width=scenario.local_head.width,
        depth=scenario.local_head.depth,
        seed=scenario.seed,
        fixed=True,
    )
    teach_head(head, torch.from_numpy(features_nCHW), torch.from_numpy(label_nHW), seed=scenario.seed)
    write_head(head, bundle.spec, folder / HEAD_NAME, classes.name)
