"""The encoder and the network that serve a vehicle at the end of a run, whatever the algorithm.

Legend: B frames, C channels, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloud_server.algorithms.table import algorithm_row
from cloud_server.config import CloudConfig, network_seed, read_config
from cloud_server.networks.build import build_network
from cloud_server.run.ended import EndedRun
from datasets.catalog import label_space
from edge_client.encoder.bundle import EncoderBundle, bundle_digest, write_theta
from edge_client.encoder.subspaces import subspace_of
from edge_client.host_config import read_host_config
from edge_client.learners.federated import own_statistics
from edge_client.learners.shared_steps import theta_after
from edge_client.learners.subspaces import displaced
from edge_client.state import StateStore, VehicleState
from edge_client.state_files import StateDatabase, StateFiles
from edge_client.updates.store import UpdateStore
from fleet.export.convolutions import ConvolutionEncoder
from fleet.export.encoders import folder_name
from fleet.export.local_model import build_whole_network
from fleet.export.modules import ModuleEncoder
from fleet.export.onnx_encoder import OnnxEncoder
from fleet.frames.allocation import vehicle_encoder
from fleet.run.fleet_run import CLOUD_SETTINGS_NAME
from fleet.run.joint_network import read_trained
from fleet.scenario import Scenario
from fleet.start import ENCODER_NAME
from fleet.start import FOLDER_NAME as START_FOLDER
from protocol.local_model import FOLDER_NAME as LOCAL_MODEL_FOLDER
from protocol.local_model import LocalModel
from protocol.messages import FederatedPlan, SpsaPlan
from protocol.plans.coding import Coding


@dataclass(frozen=True, kw_only=True)
class Served:
    """What serves one vehicle."""

    encoder_name: str
    encoder: bytes
    """ONNX: image_BHWC to features_BCHW, θ inside."""
    theta: NDArray[np.float32]
    """float32 (n,)."""
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    network: nn.Module
    """features_BCHW to logits_BKhw, in evaluation mode."""
    feature_shape: tuple[int, int, int]
    """C, H, W."""
    coding: Coding | None
    """How features came to the network in the run; None: as they are."""
    frames_at_once: int
    """Test frames whose features were coded together."""

    @property
    def theta_sha256(self) -> str:
        """Of θ as little-endian float32."""
        return hashlib.sha256(self.theta.astype("<f4").tobytes()).hexdigest()

    @property
    def network_sha256(self) -> str:
        """Of the network's arrays by name."""
        return _digest(self.network.state_dict())


def read_served(scenario: Scenario, run_folder: Path, vehicle: str) -> Served:
    """Read what serves a vehicle from the folder of a run that has ended.

    Raises:
        Mistake, OSError: something of it is missing, damaged, or of another network.
    """
    row = algorithm_row(scenario.algorithm)
    if row.build is None:
        return _centralized(scenario, run_folder)
    config = read_config(run_folder / CLOUD_SETTINGS_NAME)
    run = EndedRun(config, run_folder)
    bundle = EncoderBundle.load(
        _updated_bundle(config, run_folder, vehicle) or _bundle_folder(scenario, run_folder, vehicle)
    )
    state = _last_state(run, bundle, run_folder, vehicle)
    if row.needs.whole_network:
        return _federated(scenario, config, run, run_folder, vehicle, state)
    return Served(
        encoder_name=bundle.spec.name,
        encoder=write_theta(bundle.spec, "forward", bundle.graphs["forward"], state.theta),
        theta=state.theta,
        pixel_mean=bundle.spec.pixel_mean,
        pixel_std=bundle.spec.pixel_std,
        network=run.network(vehicle),
        feature_shape=bundle.spec.feature_shape,
        coding=config.coding,
        frames_at_once=run.evaluated_at_once(vehicle),
    )


def _num_classes(scenario: Scenario, run_folder: Path) -> int:
    return label_space(scenario.dataset.classes_name, run_folder).num_classes


def _bundle_folder(scenario: Scenario, run_folder: Path, vehicle: str) -> Path:
    if scenario.start is not None:
        return run_folder / START_FOLDER / ENCODER_NAME
    return run_folder / "bundles" / folder_name(vehicle_encoder(scenario, vehicle))


def _updated_bundle(config: CloudConfig, run_folder: Path, vehicle: str) -> Path | None:
    """Of the update that a vehicle has run last; None: it has run what it was started with."""
    state = run_folder / "vehicles" / vehicle
    return UpdateStore(state, fleet=config.fleet, vehicle=vehicle, key=None).folder_of("bundle")


def _last_state(run: EndedRun, bundle: EncoderBundle, run_folder: Path, vehicle: str) -> VehicleState:
    """The fleet's encoder, or else the vehicle's state after the last turn that it has learnt in, or what it
    began with."""
    displacement = run.displacement(vehicle)
    if displacement is not None:
        subspace = run.adaptation(vehicle).subspace
        assert subspace is not None
        shared = subspace_of(subspace, bundle.spec, bundle.theta0)
        return displaced(VehicleState(theta=bundle.theta0, optimizer={}), shared, displacement)
    steps = run.steps(vehicle)
    if steps is not None:
        plan, adaptation = run.config.way(SpsaPlan), run.adaptation(vehicle)
        theta = theta_after(bundle.spec, bundle.theta0, adaptation, plan, steps.seeds, steps.losses)
        return VehicleState(theta=theta, optimizer={})
    turn = run.last_trained.get(vehicle)
    if turn is None:
        return VehicleState(theta=bundle.theta0, optimizer={})
    return StateStore(
        run_folder / "vehicles" / vehicle,
        vehicle=vehicle,
        bundle_digest=bundle_digest(bundle),
        files=_database_files(run_folder, vehicle),
    ).load(turn)


def _database_files(run_folder: Path, vehicle: str) -> StateFiles | None:
    """Where the vehicle's host keeps what its vehicles learn, if that is one file."""
    for path in sorted((run_folder / "hosts").glob("host-*.json")):
        host = read_host_config(path)
        if host.state_database is not None and any(each.id == vehicle for each in host.vehicles):
            return StateDatabase(run_folder / "vehicles" / Path(host.state_database).name).of(vehicle)
    return None


def _federated(
    scenario: Scenario,
    config: CloudConfig,
    run: EndedRun,
    run_folder: Path,
    vehicle: str,
    state: VehicleState,
) -> Served:
    """The whole network with the fleet's weights, and the statistics that have stayed on the vehicle."""
    statistics = config.way(FederatedPlan).statistics
    model = LocalModel.load(run_folder / LOCAL_MODEL_FOLDER)
    own = own_statistics(state) if statistics == "local" else {}
    received = run.whole_weights(model.spec.shapes(statistics=statistics == "average"))
    name = vehicle_encoder(scenario, vehicle)
    whole = build_whole_network(
        name,
        config.network.name,
        image_size=scenario.frame_size,
        num_classes=_num_classes(scenario, run_folder),
        encoder_seed=scenario.seed,
        network_seed=network_seed(config.seed),
        encoder_weights=scenario.encoder_weights(name),
        network_weights=Path(config.network.weights) if config.network.weights else None,
    )
    arrays = {**model.weights, **own, **received}
    weights = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    whole.load_state_dict({**whole.state_dict(), **weights})
    return _in_one_piece(scenario, name, whole.encoder, whole.network)


def _centralized(scenario: Scenario, run_folder: Path) -> Served:
    config = scenario.cloud_config()
    encoder, weights, _ = read_trained(scenario, run_folder)
    width, height = scenario.frame_size
    network = build_network(
        config.network.name,
        feature_shape=(encoder.channels, height // encoder.stride, width // encoder.stride),
        feature_stride=encoder.stride,
        num_classes=_num_classes(scenario, run_folder),
        seed=network_seed(config.seed),
        weights=Path(config.network.weights) if config.network.weights else None,
    )
    network.load_state_dict(weights)
    return _in_one_piece(scenario, scenario.encoder.name, encoder, network)


def _in_one_piece(scenario: Scenario, name: str, encoder: nn.Module, network: nn.Module) -> Served:
    """Of halves that were trained as one: the features between them were never coded."""
    assert isinstance(encoder, ConvolutionEncoder | ModuleEncoder | OnnxEncoder)
    image_size = scenario.frame_size
    encoder.eval()
    theta = torch.nn.utils.parameters_to_vector(encoder.parameters()).detach().numpy()
    width, height = image_size
    with torch.inference_mode():
        shape = encoder(torch.zeros(1, height, width, 3, dtype=torch.uint8)).shape[1:]
    return Served(
        encoder_name=name,
        encoder=encoder.forward_graph(image_size).serialise(encoder.parameter_specs(), theta),
        theta=theta,
        pixel_mean=encoder.rgb_mean,
        pixel_std=encoder.rgb_std,
        network=network.eval(),
        feature_shape=(shape[0], shape[1], shape[2]),
        coding=None,
        frames_at_once=1,
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
