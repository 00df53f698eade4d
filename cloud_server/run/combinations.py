"""Which settings of one run contradict each other: who learns, what of an encoder, from what."""

from __future__ import annotations

from typing import Any

from cloud_server.algorithms.base import own_settings
from cloud_server.algorithms.participation import check_participation
from cloud_server.algorithms.row import AlgorithmRow
from cloud_server.algorithms.table import ALGORITHMS, algorithm_row
from cloud_server.config import CloudConfig
from cloud_server.desk.declaration import Declaration
from datasets.catalog import label_space
from datasets.class_weights import table_weights
from protocol.doors import is_foreign
from protocol.errors import SettingError
from protocol.plans import ESTIMATORS
from protocol.plans.adaptation import Adaptation
from protocol.plans.checks import EstimatorPlan
from protocol.plans.federated import FederatedPlan, drawn_count
from protocol.plans.own import OwnSettings
from protocol.plans.participation import drawn_of
from protocol.plans.present import Present
from protocol.plans.sharing import Sharing
from protocol.plans.trust import Trust


def check_combination(config: CloudConfig) -> None:
    """Refuse settings that the algorithm can't follow.

    Raises:
        SettingError: the message names the setting, its value and what to do.
    """
    row, objective = algorithm_row(config.algorithm), config.adaptation.objective
    _check_own_settings(row, config)
    row.check(config)
    if row.in_one_piece:
        for name, value, needed in (
            ("network.learns", str(config.network.learns).lower(), "true"),
            ("adaptation.objective", objective, "labels"),
            ("adaptation.anchor", f"{config.adaptation.anchor:g}", "0"),
            ("network.source_replay", f"{config.network.source_replay:g}", "0"),
        ):
            if value != needed:
                raise SettingError(
                    f"{row.name} trains encoder and network in one piece, on labels: {name} must be "
                    f"{needed}, got {value}; choose another algorithm"
                )
    if row.needs.whole_network and config.adaptation.subspace not in (None, "all"):
        raise SettingError(
            f"{row.name}'s vehicles train the whole network: adaptation.subspace must be all, got "
            f"{config.adaptation.subspace}; choose another algorithm"
        )
    if row.needs.whole_network and config.serving is not None:
        raise SettingError(
            f"the vehicles of {row.name} have the whole network, the cloud serves none: leave out --serve "
            f"(serving), and let them serve what `blackfleet export` writes"
        )
    for name, steps in (
        ("first_order.replay_steps", config.first_order.replay_steps),
        ("network.source_replay", config.network.source_replay),
    ):
        if steps and not config.network.learns:
            raise SettingError(
                f"a network that does not learn (network.learns is false) takes no steps: {name} must be 0, "
                f"got {steps:g}"
            )
    check_participation(config, row, ALGORITHMS.values())
    _check_augmentation(row, config)
    _check_sharing(row, config)
    _check_rates(row, config)
    if row.needs.whole_network:
        check_liars(config)
    if not isinstance(config.class_weights, str):
        table_weights(config.class_weights, label_space(config.label_space))
    if objective != "labels" and row.needs.local_head:
        raise SettingError(
            f"{row.name}'s vehicles learn with a local head, which needs labels: "
            f"adaptation.objective must be labels, got {objective}; choose another algorithm"
        )
    if objective != "labels" and config.network.learns:
        raise SettingError(
            f"adaptation.objective {objective} needs network.learns false (--no-network-learns): a network "
            f"that learns with it collapses, certain of one class everywhere"
        )
    _check_present_frames(row, config)
    _check_trust(row, config)


def check_liars(config: CloudConfig) -> None:
    """Refuse an average that so many liars decide.

    Raises:
        SettingError: they are half of a round's vehicles, or more.
    """
    federated = config.way(FederatedPlan)
    liars = 1 if federated.aggregate == "median" else federated.liars
    drawn = drawn_count(federated, drawn_of(config.participation, len(config.vehicles)))
    if federated.aggregate != "average" and 2 * liars >= drawn:
        raise SettingError(
            f"federated.aggregate {federated.aggregate} bears {liars} liar(s) of at least {2 * liars + 1} "
            f"vehicles a round, and a round of this run has {drawn}: have more vehicles, or fewer "
            f"federated.liars, or average"
        )


def _check_trust(row: AlgorithmRow[Any], config: CloudConfig) -> None:
    """Whether one vehicle's turns can be told from the others'."""
    trust = config.way(Trust)
    if not trust.is_on:
        return
    if not row.looks_at_agreement:
        able = [name for name, other in ALGORITHMS.items() if other.looks_at_agreement]
        instead = "; it has federated.aggregate" if row.needs.whole_network else ""
        raise SettingError(
            f"trust.quarantine {trust.quarantine} is for {', '.join(able)}, got {row.name}{instead}; "
            f"set it to none"
        )
    if not config.network.learns:
        raise SettingError(
            f"trust.quarantine {trust.quarantine} is about what the network learns from vehicles, and "
            f"network.learns is false: set it to none"
        )


def settled_adaptation(config: CloudConfig, declared: Declaration) -> Adaptation:
    """With the subspace that a vehicle's encoder learns in: as set, or else as the encoder says."""
    whole = algorithm_row(config.algorithm).needs.whole_network
    return config.adaptation.of_encoder("all" if whole else declared.subspace)


def _check_augmentation(row: AlgorithmRow[Any], config: CloudConfig) -> None:
    """Whether labels can be varied as their frames are."""
    if not config.augmentation.is_on:
        return
    if not row.heeds_views:
        raise SettingError(
            f"{row.name} does not say that it looks up labels as augmentation has shown their frames "
            f"(AlgorithmRow.heeds_views): augmentation must be off"
        )
    varies_labels = config.augmentation.flip or config.augmentation.crop > 0
    if varies_labels and config.uploads.train_labels != "input":
        raise SettingError(
            "augmentation.flip and augmentation.crop vary labels in the cloud, too, which needs them at the "
            f"encoder's size: uploads.train_labels must be input, got {config.uploads.train_labels}"
        )


def _check_present_frames(row: AlgorithmRow[Any], config: CloudConfig) -> None:
    """Whether what `present` says can be done, where it says anything."""
    plan, objective = config.way(Present), config.adaptation.objective
    wanted = {
        "adaptation.objective pseudo-labels": objective == "pseudo-labels",
        "present.statistics": plan.statistics > 0,
        "present.guard": plan.guard > 0,
    }
    name = next((name for name, is_wanted in wanted.items() if is_wanted), None)
    if name is None:
        return
    if not row.knows_present_frames:
        able = [name for name, other in ALGORITHMS.items() if other.knows_present_frames]
        raise SettingError(
            f"{name} is for {', '.join(able)}, got {row.name}; remove it (blackfleet can serve with "
            f"blackfleet.serving statistics)"
        )
    for needed, is_given in (
        ("a network that stays (network.learns false, --no-network-learns)", not config.network.learns),
        ("encoders of each vehicle's own (sharing.encoder none)", not config.way(Sharing).is_on),
        ("train frames as they are (no augmentation)", not config.augmentation.is_on),
    ):
        if not is_given:
            raise SettingError(f"{name} needs {needed}")
    if config.uploads.train_frames is not None and (plan.guard or objective == "pseudo-labels"):
        raise SettingError(
            f"present.guard and pseudo-labels look at the same frames after each turn: uploads.train_frames "
            f"must not be given, got {config.uploads.train_frames}"
        )
    if plan.guard and not row.moves_encoders:
        raise SettingError(
            f"present.guard has nothing to guard where no encoder learns: {row.name}; remove it"
        )
    estimator = config.estimator
    knows = isinstance(estimator, EstimatorPlan) and estimator.knows_targets and row.follows_estimator
    if objective == "pseudo-labels" and knows:
        raise SettingError(
            f"adaptation.objective pseudo-labels are the cloud's alone, and zeroth_order.estimator "
            f"{config.zeroth_order.estimator} has to know what frames are compared with: choose another "
            f"estimator, or objective entropy"
        )


def _check_sharing(row: AlgorithmRow[Any], config: CloudConfig) -> None:
    """Whether vehicles can have one encoder in the way that is wanted."""
    sharing = config.way(Sharing)
    if sharing.encoder not in ("none", *row.shares):
        able = [name for name, other in ALGORITHMS.items() if sharing.encoder in other.shares]
        raise SettingError(
            f"{row.name}'s vehicles can't share an encoder by {sharing.encoder}: sharing.encoder must be one "
            f"of {', '.join(('none', *row.shares))}; algorithms that can: {', '.join(able)}"
        )
    if sharing.is_on and row.follows_estimator and is_foreign(config.zeroth_order.estimator):
        raise SettingError(
            f"an estimator of your own keeps its state as it likes, and can't share an encoder: "
            f"sharing.encoder must be none with {config.zeroth_order.estimator}, got {sharing.encoder}"
        )
    plan = config.estimator
    if sharing.encoder == "seeds" and not (isinstance(plan, EstimatorPlan) and plan.steps_by_seeds):
        able = [name for name, other in ESTIMATORS.items() if other.steps_by_seeds]
        raise SettingError(
            f"sharing.encoder seeds needs steps that follow from seeds and losses alone, "
            f"zeroth_order.estimator {config.zeroth_order.estimator} takes others: "
            f"take one of {', '.join(able)}, or sharing.encoder weights"
        )
    apart = row.needs.local_head and sharing.encoder == "weights"
    for name, given in (("head", sharing.head), ("deadline_s", sharing.deadline_s is not None)):
        if given and not apart:
            raise SettingError(
                f"sharing.{name} is for blackfleet with sharing.encoder weights, got {row.name} with "
                f"{sharing.encoder}; remove it"
            )


def _check_rates(row: AlgorithmRow[Any], config: CloudConfig) -> None:
    """Whether the estimator's rate can follow the schedule."""
    zeroth = config.zeroth_order
    if zeroth.schedule == "constant" or not row.follows_estimator:
        return
    why = None
    if is_foreign(zeroth.estimator):
        why = f"{zeroth.estimator}, an estimator of your own with rates of its own"
    elif config.way(Sharing).encoder == "seeds":
        why = "sharing.encoder seeds, whose record of steps has one rate"
    if why is not None:
        raise SettingError(f"zeroth_order.schedule must be constant with {why}, got {zeroth.schedule}")


def _check_own_settings(row: AlgorithmRow[Any], config: CloudConfig) -> None:
    """Whether `own.algorithm` is what the algorithm takes."""
    if row.settings is not None:
        own_settings(config, row.settings)
    elif given := config.way(OwnSettings).algorithm:
        raise SettingError(
            f"{config.algorithm} takes no settings in own.algorithm, got {', '.join(given)}; remove them"
        )
