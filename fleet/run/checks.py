"""Names and sizes in a scenario that only other parts can judge, looked at before anything is done."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cloud_server.algorithms.table import algorithm_row
from cloud_server.networks.build import build_network
from cloud_server.networks.table import NETWORK_DOOR
from cloud_server.run.combinations import check_combination
from cloud_server.training.compute import check_device
from cloud_server.training.losses import LOSSES
from datasets.partition import METHODS
from edge_client.encoder.providers import candidates
from edge_client.encoder.subspaces import check_subspace
from edge_client.learners.own import check_settings, find_learner
from edge_client.local.network import TRAINING_DEVICES
from fleet import broker
from fleet.broker import MEMORY_BUS, OWN_BROKERS
from fleet.errors import OperatorError
from fleet.export.encoders import check_image_size
from fleet.export.onnx_encoder import OnnxEncoder
from fleet.privacy_budget import guarantee
from fleet.run.file_encoders import check_file_encoder
from fleet.scenario import Scenario
from fleet.simulation.availability import check_availability
from fleet.start import StartSpec
from protocol.messages import OwnPlan
from protocol.mqtt.broker_url import parse_broker_url
from protocol.plans.federated import FederatedPlan
from protocol.plans.local_loss import LocalLossPlan


def check_runnable(scenario: Scenario) -> None:
    """Refuse a scenario whose names nobody knows, whose frames no encoder takes, or whose broker can't be.

    Raises:
        OperatorError, SettingError: the message names the value and what was expected.
    """
    check_combination(scenario.cloud_config())
    check_device(scenario.device)
    NETWORK_DOOR.find(scenario.network.name)
    _check_learners(scenario)
    _check_name("first_order.loss", scenario.first_order.loss, LOSSES)
    _check_name("dataset.partition", scenario.dataset.partition, METHODS)
    candidates(scenario.encoder.provider)
    _check_name("encoder.training_device", scenario.encoder.training_device, TRAINING_DEVICES)
    _check_name("encoder.mode", scenario.encoder.mode, ("auto", "bind", "rebuild"))
    frame_size = scenario.frame_size
    for name in {scenario.encoder.name, *scenario.encoders.values()}:
        features = scenario.architecture(name)
        if isinstance(features, OnnxEncoder):
            check_file_encoder(scenario, name, features)
        check_image_size(frame_size, name, features.stride)
        check_subspace(scenario.adaptation.subspace or "all", features.projection(), encoder=name)
        width, height = (side // features.stride for side in frame_size)
        _check_network(scenario, (features.channels, height, width), features.stride)
        _check_loss_maps(scenario, name, width, height)
    if scenario.broker in OWN_BROKERS:
        broker.choose_kind(scenario.broker)
    elif scenario.broker != MEMORY_BUS:
        parse_broker_url(scenario.broker)
    _check_noise(scenario)
    _check_what_crosses(scenario)
    if scenario.simulation.is_on:
        _check_simulation(scenario)
    if scenario.broker == MEMORY_BUS and scenario.patience.on_failure == "wait":
        raise OperatorError(
            "with the broker in memory all is one process, and nothing can come back: take "
            "--on-vehicle-failure continue or stop, or another broker"
        )
    if scenario.broker_port is not None:
        broker.check_port_number(scenario.broker_port)


def _check_what_crosses(scenario: Scenario) -> None:
    """Whether there is what is to be hidden."""
    row, objective = algorithm_row(scenario.algorithm), scenario.adaptation.objective
    if scenario.privacy.decoder_weight and not row.needs.local_head:
        raise OperatorError(
            "privacy.decoder_weight needs vehicles that learn from their own labels, as those of blackfleet; "
            f"those of {scenario.algorithm} don't: set it to 0"
        )
    if scenario.privacy.label_square == 1:
        return
    if row.build is None or row.needs.whole_network or objective != "labels":
        without = "" if objective == "labels" else f" with the objective {objective}"
        raise OperatorError(
            f"privacy.label_square needs vehicles that send train labels; those of {scenario.algorithm}"
            f"{without} don't: set it to 1"
        )


def _check_noise(scenario: Scenario) -> None:
    """Whether noised updates can keep what they promise."""
    if scenario.privacy.update_clip is None:
        return
    if not algorithm_row(scenario.algorithm).needs.whole_network:
        raise OperatorError(
            f"privacy.update_clip needs vehicles that send weights, as those of fedavg; those of "
            f"{scenario.algorithm} don't: leave it out"
        )
    statistics = scenario.way(FederatedPlan).statistics
    if statistics == "average":
        raise OperatorError(
            "privacy.update_clip needs federated.statistics to be local or frozen, as statistics can't be "
            f"noised; got {statistics!r}"
        )
    guarantee(scenario)


def _check_simulation(scenario: Scenario) -> None:
    if scenario.broker != MEMORY_BUS:
        raise OperatorError(
            f"links, devices and virtual time are simulated on the bus in memory alone, got broker "
            f"{scenario.broker}: leave --broker out, or take --broker memory"
        )
    if algorithm_row(scenario.algorithm).build is None:
        raise OperatorError(
            f"{scenario.algorithm} has no fleet, so that no link or device can be simulated; leave out "
            f"--time, --link, --profile and --availability"
        )
    check_availability(scenario.simulation.availability, scenario.vehicle_ids)


def named_learners(scenario: Scenario) -> tuple[str, ...]:
    """Estimators and learners that are not ours and that the run's turns name."""
    estimator = scenario.estimator
    own = (estimator.target,) if isinstance(estimator, OwnPlan) else ()
    return tuple(dict.fromkeys((*own, *algorithm_row(scenario.algorithm).learners)))


def _check_learners(scenario: Scenario) -> None:
    for name in named_learners(scenario):
        find_learner(name)
    if isinstance(scenario.estimator, OwnPlan):
        check_settings(scenario.estimator.target, scenario.estimator.settings)


def _check_network(scenario: Scenario, feature_shape: tuple[int, int, int], stride: int) -> None:
    """Whether the network can be built for an encoder's features; one that is not ours is tried on them."""
    build_network(
        scenario.network.name,
        feature_shape=feature_shape,
        feature_stride=stride,
        num_classes=scenario.dataset.label_space.num_classes,
        seed=scenario.seed,
        weights=Path(scenario.network.weights) if scenario.network.weights else None,
    )


def _check_loss_maps(scenario: Scenario, encoder: str, width: int, height: int) -> None:
    local = scenario.way(LocalLossPlan)
    if not algorithm_row(scenario.algorithm).weights_losses or local.weight_power == 0:
        return
    if width % local.weight_map_stride or height % local.weight_map_stride:
        raise OperatorError(
            f"local_loss.weight_map_stride must divide the features of encoder {encoder}, {width}x{height} "
            f"cells, got {local.weight_map_stride}"
        )


def check_start(scenario: Scenario, start: StartSpec) -> None:
    """Refuse a start that is of other architectures, images or labels than the scenario.

    Raises:
        OperatorError: the message names what differs, and what to do.
    """
    width, height = start.image_size
    encoders = sorted(
        {scenario.encoders.get(vehicle, scenario.encoder.name) for vehicle in scenario.vehicle_ids}
    )
    for what, wanted, given in (
        ("images of", f"{width}x{height}", "{}x{}".format(*scenario.frame_size)),
        ("encoder", start.encoder, " and ".join(encoders)),
        ("network", start.network, scenario.network.name),
        ("labels of", start.label_space, scenario.dataset.label_space.name),
    ):
        if given != wanted:
            raise OperatorError(
                f"the start {scenario.start} was pretrained with {what} {wanted}, this run has {given}; give "
                f"the same, or pretrain again"
            )


def _check_name(key: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise OperatorError(f"unknown {key} {name!r}, expected one of: {', '.join(known)}")
