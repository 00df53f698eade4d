"""The options that decide how a fleet learns, by what they are about and by algorithm."""

from __future__ import annotations

from pathlib import Path

from fleet.cli.option import OptionGroup, ScenarioOption
from protocol.codec.tensor import BITS
from protocol.doors import FOREIGN_CHOICE
from protocol.plans import ESTIMATORS
from protocol.plans.adaptation import OBJECTIVES, SUBSPACES
from protocol.plans.blackfleet import SERVINGS
from protocol.plans.sharing import SHARINGS

LEARNING = OptionGroup(
    "Learning, whatever the algorithm",
    (
        ScenarioOption(
            "foo_epochs",
            "first_order.epochs",
            int,
            "Passes over the train frames in a turn, by first-order steps.",
        ),
        ScenarioOption(
            "participation",
            "participation",
            str,
            "Vehicles of a round: all; a number or share of them, drawn: 200, 0.2; first:M/N: M of N drawn; "
            "async:K: K contributions, nobody waits.",
        ),
        ScenarioOption(
            "deadline", "late.deadline_s", float, "Longest that a round waits for its vehicles, in seconds."
        ),
        ScenarioOption(
            "late_work",
            "late.work",
            str,
            "Work that is late for a round: drop it, or keep it for the round in which it is done.",
            choices=("drop", "keep"),
        ),
        ScenarioOption(
            "class_weights",
            "class_weights",
            str,
            "What a pixel counts by its class in every loss: none: all alike; balanced: rare ones more.",
            choices=("none", "balanced"),
        ),
        ScenarioOption(
            "subspace",
            "adaptation.subspace",
            str,
            f"What of an encoder learns: {', '.join(SUBSPACES)} (film: each channel's scale and bias).",
            choices=tuple(SUBSPACES),
        ),
        ScenarioOption(
            "share_encoder",
            "sharing.encoder",
            str,
            "One encoder for the fleet: none; weights: what learns crosses; seeds (BlackFed): steps do.",
            choices=SHARINGS,
        ),
        ScenarioOption(
            "replay_steps",
            "first_order.replay_steps",
            int,
            "Steps on features uploaded earlier that follow each first-order step.",
        ),
        ScenarioOption(
            "cache_frames", "first_order.cache_frames", int, "Most frames whose features are kept for them."
        ),
    ),
)
BYTES = OptionGroup(
    "What crosses the network",
    (
        ScenarioOption(
            "bits",
            "coding.bits",
            int,
            "Bits of a feature element: 32, 8, 6, 4, 3 or 2.",
            choices=tuple(map(str, BITS)),
        ),
        ScenarioOption(
            "frame_bytes",
            "coding.frame_bytes",
            int,
            "Most bytes of a frame's features: each channel gets as many bits as fit, --bits at most.",
        ),
        ScenarioOption(
            "upload_frames",
            "uploads.train_frames",
            int,
            "blackfleet, BlackFed, frozen: at most so many train frames uploaded in a turn, others in "
            "the next.",
        ),
        ScenarioOption(
            "upload_val_frames",
            "uploads.val_frames",
            int,
            "Not fedavg: at most so many validation frames uploaded in a turn.",
        ),
        ScenarioOption(
            "train_labels",
            "uploads.train_labels",
            str,
            "Not fedavg: size of the train labels that are sent: input, or logits: the same run in fewer "
            "bytes.",
            choices=("input", "logits"),
        ),
    ),
)
BLACKFLEET = OptionGroup(
    "Of blackfleet",
    (
        ScenarioOption(
            "warm_up_epochs",
            "local_loss.warm_up_epochs",
            int,
            "Passes over the train frames on the vehicle before its first upload.",
        ),
        ScenarioOption(
            "local_epochs",
            "local_loss.epochs",
            int,
            "Passes over the train frames on the vehicle in each round.",
        ),
        ScenarioOption(
            "weight_power",
            "local_loss.weight_power",
            float,
            "How much the cloud's loss maps weight a vehicle's own loss; 0 = not at all.",
        ),
        ScenarioOption(
            "serving",
            "blackfleet.serving",
            str,
            f"Which weights predict for a vehicle: {', '.join(SERVINGS)}.",
            choices=tuple(SERVINGS),
        ),
    ),
)
BLACKFED = OptionGroup(
    "Of BlackFed: blackfed-v1 and blackfed-v2",
    (
        ScenarioOption(
            "zoo_epochs",
            "zeroth_order.epochs",
            int,
            "Passes over the train frames in a turn, by queries.",
        ),
        ScenarioOption(
            "zoo_batches",
            "zeroth_order.batches",
            int,
            "At most so many batches in such a pass; 0 = all.",
        ),
        ScenarioOption(
            "estimator",
            "zeroth_order.estimator",
            str,
            f"From losses to gradients: {', '.join(ESTIMATORS)}, {FOREIGN_CHOICE}.",
            choices=tuple(ESTIMATORS),
        ),
        ScenarioOption(
            "queries", "spsa.queries", int, "BlackFed: two-sided SPSA queries averaged for one update."
        ),
    ),
)
FEDERATED = OptionGroup(
    "Of fedavg and fedprox",
    (
        ScenarioOption(
            "client_fraction",
            "federated.client_fraction",
            float,
            "Share of the vehicles that is drawn for each round.",
        ),
    ),
)
ADAPTING = OptionGroup(
    "Adapting a pretrained fleet",
    (
        ScenarioOption(
            "start", "start", Path, "Start from what `blackfleet pretrain` has written to this folder."
        ),
        ScenarioOption(
            "network_learns",
            "network.learns",
            bool,
            "Whether the cloud's network learns, or stays as it starts.",
        ),
        ScenarioOption(
            "objective",
            "adaptation.objective",
            str,
            "What vehicles learn from: labels; or, without train labels, the entropy of the cloud's "
            "predictions, or pseudo-labels, where it is sure.",
            choices=OBJECTIVES,
        ),
        ScenarioOption(
            "own_statistics",
            "present.statistics",
            float,
            "Share of a vehicle's own frames in the BatchNorm statistics of a network that stays; 0 = none.",
        ),
        ScenarioOption(
            "guard",
            "present.guard",
            float,
            "Take a turn back after which predictions agree less than this with the first ones; 0 = never.",
        ),
        ScenarioOption(
            "anchor",
            "adaptation.anchor",
            float,
            "Hold encoders back: weight of the penalty on their distance to where they started.",
        ),
        ScenarioOption(
            "source_replay",
            "network.source_replay",
            float,
            "With --start: probability that the cloud follows a training step with one on source features.",
        ),
    ),
)

GROUPS_OF_LEARNING = (LEARNING, BYTES, BLACKFLEET, BLACKFED, FEDERATED, ADAPTING)
