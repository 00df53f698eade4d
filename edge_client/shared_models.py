"""What the vehicles of one process share: bundles, encoder sessions, local heads, whole networks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from datasets.labels import LabelSpace
from edge_client.encoder.bundle import EncoderBundle, bundle_digest
from edge_client.encoder.providers import AUTO, Outputs, choose_encoder, runs_as_on_cpu, short_name
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.sessions import CPU
from edge_client.errors import VehicleError
from edge_client.local.against_decoder import PICTURES, AgainstDecoder
from edge_client.local.head import HeadFolder, LocalHead, head_outputs
from edge_client.local.network import require_torch
from edge_client.local.noised_update import UpdateNoise
from edge_client.turn import LocalModelTools
from protocol.local_model import LocalModel

log = logging.getLogger(__name__)


class SharedModels:
    """Each is loaded once, when the first vehicle asks for it."""

    def __init__(
        self,
        label_space: LabelSpace,
        *,
        provider: str,
        mode: Literal["auto", "bind", "rebuild"],
        threads: int,
        training_device: str = "cpu",
    ) -> None:
        """For vehicles with labels of this space; the rest as in `HostConfig`."""
        self._label_space = label_space
        self._provider = provider
        self._mode: Literal["auto", "bind", "rebuild"] = mode
        self._threads = threads
        self._training_device = training_device
        self._bundles: dict[str, EncoderBundle] = {}
        self._encoders: dict[str, Encoder] = {}
        self._local_models: dict[str, LocalModel] = {}
        self._local_heads: dict[str, LocalHead] = {}

    def bundle(self, folder: str) -> EncoderBundle:
        """The bundle of a folder.

        Raises:
            BundleError: it can't be used.
        """
        if folder not in self._bundles:
            self._bundles[folder] = EncoderBundle.load(Path(folder))
        return self._bundles[folder]

    def encoder(self, bundle: EncoderBundle) -> Encoder:
        """One encoder for all vehicles whose bundles are the same.

        Raises:
            SettingError: this ONNX Runtime has no such provider.
            VehicleError: the provider that was named does not run here.
        """
        digest = bundle_digest(bundle)
        if digest not in self._encoders:
            chosen = choose_encoder(bundle, self._provider, mode=self._mode, threads=self._threads)
            self._encoders[digest] = chosen
            on = short_name(chosen.provider)
            log.info("encoder %s runs a changed θ by %s, on %s", bundle.spec.name, chosen.mode, on)
        return self._encoders[digest]

    def encoder_alone(self, bundle: EncoderBundle) -> Encoder:
        """One that runs as `encoder` does, and is opened anew for nobody else's θ.

        Raises:
            SettingError, VehicleError: as `encoder`.
        """
        shared = self.encoder(bundle)
        return Encoder(bundle, mode=shared.mode, threads=self._threads, providers=[shared.provider])

    def local_model(
        self,
        folder: str | None,
        bundle: EncoderBundle,
        predictions: Mapping[str, str],
        latest: str | None,
        update_noise: UpdateNoise | None,
    ) -> LocalModelTools | None:
        """The whole network of a folder, where what it predicts goes, and how what it learns is noised; None
        without a folder.

        Raises:
            VehicleError: torch or its device is missing, or it is for other labels or images.
        """
        if folder is None:
            return None
        require_torch(self._training_device)
        if folder not in self._local_models:
            self._local_models[folder] = LocalModel.load(Path(folder))
        model = self._local_models[folder]
        ours = (self._label_space.name, bundle.spec.image_size)
        if (model.spec.label_space, model.spec.image_size) != ours:
            raise VehicleError(
                f"the local model in {folder} is for {model.spec.label_space} labels and images "
                f"of {model.spec.image_size}, this vehicle has {ours[0]} labels and images of {ours[1]}; "
                f"take the folder of this run"
            )
        return LocalModelTools(
            model=model,
            label_space=self._label_space,
            predictions={split: Path(where) for split, where in predictions.items()},
            latest=Path(latest) if latest else None,
            threads=self._threads,
            device=self._training_device,
            update_noise=update_noise,
        )

    def local_head(self, folder: str | None, bundle: EncoderBundle) -> LocalHead | None:
        """The local head of a folder; None without one.

        Raises:
            VehicleError: it is for other labels or features, or the provider that was named does not run it.
        """
        if folder is None:
            return None
        if folder not in self._local_heads:
            self._local_heads[folder] = self._open_head(HeadFolder.load(Path(folder)), bundle)
        head = self._local_heads[folder]
        ours = (self._label_space.name, bundle.spec.feature_shape)
        if (head.spec.label_space, head.spec.feature_shape) != ours:
            raise VehicleError(
                f"the local head in {folder} is for {head.spec.label_space} labels and features "
                f"of {head.spec.feature_shape}, this vehicle has {ours[0]} labels and features of {ours[1]}; "
                f"take the folder that was exported for its encoder"
            )
        return head

    def against_decoder(
        self, folder: str | None, bundle: EncoderBundle, weight: float
    ) -> AgainstDecoder | None:
        """The decoder of a folder, to learn against with this weight; None without either.

        Raises:
            VehicleError: it is no decoder of these features, or the provider that was named does not run it.
        """
        if folder is None or weight == 0:
            return None
        if folder not in self._local_heads:
            self._local_heads[folder] = self._open_head(HeadFolder.load(Path(folder)), bundle)
        decoder = self._local_heads[folder]
        spec = decoder.spec
        if spec.label_space != PICTURES or spec.feature_shape != bundle.spec.feature_shape:
            raise VehicleError(
                f"{folder} holds a head for {spec.label_space} and features of {spec.feature_shape}, this "
                f"vehicle needs one for {PICTURES} and features of {bundle.spec.feature_shape}; take the "
                "folder that was exported for its encoder"
            )
        return AgainstDecoder(decoder=decoder, weight=weight)

    def _open_head(self, folder: HeadFolder, bundle: EncoderBundle) -> LocalHead:
        """On the encoder's provider, if that gives what the CPU gives."""
        provider = self.encoder(bundle).provider

        def outputs(device: str) -> Outputs:
            return head_outputs(LocalHead(folder, provider=device, threads=self._threads))

        if provider != CPU:
            is_named = self._provider != AUTO
            if not runs_as_on_cpu("the local head", provider, outputs, is_named=is_named):
                provider = CPU
        return LocalHead(folder, provider=provider, threads=self._threads)
