"""What a vehicle process is told: one JSON file, or the options of the command."""

from __future__ import annotations

from pathlib import Path

import msgspec

from datasets.conditions import Condition
from edge_client.conversation import DEFAULT_OFFLINE_S
from edge_client.errors import VehicleError
from edge_client.frames import Sight
from edge_client.local.network import TRAINING_DEVICES
from edge_client.local.noised_update import UpdateNoise
from edge_client.naming import KEYS, check_naming
from edge_client.source.settings import SourceConfig
from edge_client.spool import DEFAULT_SPOOL_MB
from edge_client.updates.pull import check_update_url
from protocol.errors import SettingError
from protocol.json_files import decode_json
from protocol.plans.checks import at_least
from protocol.session.link import DEFAULT_PAYLOAD_LIMIT_BYTES, SMALLEST_PAYLOAD_LIMIT_BYTES
from protocol.session.presence import DEFAULT_STEP_S
from protocol.session.topics import check_id, check_vehicle_id

_DURATIONS = (
    "heartbeat_s",
    "connect_timeout_s",
    "retry_s",
    "give_up_s",
    "offline_s",
    "step_s",
    "when_poll_s",
)


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read from and written to JSON; unknown keys are refused."""


class SightConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What frames are seen through."""

    condition: str
    """`fog:3`: a row of `datasets.conditions.CONDITIONS` and its severity, 1 to 5."""
    seed: int = 0

    def __post_init__(self) -> None:
        Condition.parse(self.condition)

    def sight(self) -> Sight:
        """The same, to apply."""
        return Sight(Condition.parse(self.condition), self.seed)


class VehicleConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One vehicle of a host."""

    id: str
    bundle: str
    """Folder of its encoder bundle."""
    state: str
    """Folder for what it learns."""
    local_model: str | None = None
    """Folder of the whole network's programs, for federated averaging alone."""
    local_head: str | None = None
    """Folder of its local head, for learning from its own labels alone."""
    decoder: str | None = None
    """Folder of a decoder from features to pictures that it learns against; None = none."""
    decoder_weight: float = 0.0
    """Of that beside the loss of labels."""
    predictions: dict[str, str] = {}
    """Folders for what it predicts where nobody else can, in federated averaging: on its own test frames
    (`test`), on the test split of the whole fleet (`fleet`)."""
    latest: str | None = None
    """Folder for the latest predictions of a few frames, where nobody else can make them; None = none."""
    frames: dict[str, tuple[str, ...]] = {}
    """Frame keys by split (train, val, test, ood, source, fleet); empty = the whole data set, split by
    contiguous blocks."""
    sight: SightConfig | None = None
    """What it sees its own frames through; None = clear."""
    ood_sights: dict[str, SightConfig] = {}
    """What its ood frames were seen through by the vehicles that own them, by key; others are clear."""
    names: str = KEYS
    """What its frames are called to the cloud: by their `keys`, or by their `numbers` alone."""
    label_square: int = 1
    """Train labels go to the cloud in squares of so many pixels a side; 1 = as they are."""

    update_clip: float | None = None
    """Of federated averaging: longest change of all weights, as one vector, that is sent; None = any."""
    update_noise: float = 1.0
    """Standard deviation of the noise on each number of a clipped change, in clips."""
    noise_seed: int | None = None
    """The vehicle's secret, of which that noise is made; needed with `update_clip`."""

    def __post_init__(self) -> None:
        check_vehicle_id(self.id)
        if self.update_clip is not None and self.noise_seed is None:
            raise SettingError("update_clip needs a noise_seed, a large number that nobody else knows")
        check_naming(self.names)
        at_least(self.label_square, 1, "label_square")
        at_least(self.decoder_weight, 0, "decoder_weight")

    @property
    def update(self) -> UpdateNoise | None:
        """How updates are noised."""
        if self.update_clip is None or self.noise_seed is None:
            return None
        return UpdateNoise(clip=self.update_clip, noise=self.update_noise, seed=self.noise_seed)


class HostConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One vehicle process."""

    fleet: str
    dataset: str = "cityscapes"
    """A row of `datasets.catalog.DATASETS`."""
    label_space: str = "cityscapes"
    """Classes of the network that looks at frames without labels (`datasets.catalog.label_space`); others
    bring their own."""
    data_root: str | None = None
    """Folder of the data set; None: frames come from `source`."""
    source: SourceConfig | None = None
    """The camera of the host's one vehicle; None: frames are a data set's."""
    test_split: str | None = None
    """The data set's test split, of which `fleet` frames are (`datasets.divided.open_frames`)."""
    vehicles: tuple[VehicleConfig, ...]
    state_database: str | None = None
    """One file for what all of them learn; None = each has it in its own folder."""
    threads: int = 1
    """ONNX Runtime threads of one inference."""
    provider: str = "auto"
    """What encoders and heads run on: `cpu`, `cuda`, `tensorrt`, or another that this ONNX Runtime has;
    `auto` = CUDA where it gives what the CPU gives, else the CPU. With options: `cuda:device_id=1`."""
    training_device: str = "cpu"
    """What torch trains the whole network on, in federated averaging: `cpu` or `cuda`."""
    warm_up: tuple[int, ...] = (1, 8)
    """Batch sizes for which a device other than the CPU prepares itself before the vehicle joins."""
    encoder_mode: str = "auto"
    """How a changed θ runs: `bind`, `rebuild`, or `auto` = `rebuild` on the CPU, elsewhere the faster,
    measured at the start."""
    allowed_learners: tuple[str, ...] = ()
    """Estimators and learners that are not ours and that the cloud may name, by `package.module:name`."""
    payload_limit_bytes: int = DEFAULT_PAYLOAD_LIMIT_BYTES
    """Messages are sent in parts of at most this size; brokers have limits of their own."""
    heartbeat_s: float = 10.0
    connect_timeout_s: float = 60.0
    retry_s: float = 5.0
    give_up_s: float = 600.0
    offline_s: float = DEFAULT_OFFLINE_S
    """How long its vehicles wait for a network that is gone; `give_up_s` is for a cloud that is silent."""
    spool_mb: int = DEFAULT_SPOOL_MB
    """How much of a turn may wait on a vehicle's disk while there is no network."""
    frames_checked: bool = False
    """Whether somebody has read every frame already, as the launcher has; else this process does, first."""
    when: str | None = None
    """Whether its vehicles may work: a file with `yes` or `no`, or `command:` and a command line; None =
    always (`edge_client.permission`)."""
    seals: str | None = None
    """Folder of the vehicles' keys, by which they know their cloud and it knows them; None = nothing that
    they say is sealed, and they hear anybody."""
    update_key: str | None = None
    """File of the operator's public key, with which updates must be signed; None = no update is taken."""
    update_url: str | None = None
    """An https:// address from which updates are fetched, too; None = the cloud's alone."""
    when_poll_s: float = 10.0
    """How often that is looked at."""
    health: bool = False
    """Whether it tells how its machine is, in status, log and metrics; one of its vehicles does for all."""
    step_s: float = DEFAULT_STEP_S
    """The longest that one step of a vehicle's work may take, a batch for instance; after that it no longer
    says that it is alive."""

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet id")
        if not self.vehicles:
            raise SettingError("a vehicle host needs at least one vehicle, got none")
        if (self.data_root is None) == (self.source is None):
            raise SettingError("a vehicle host needs a data_root or a source, not both and not neither")
        if self.source is not None and (len(self.vehicles) > 1 or self.vehicles[0].frames or self.test_split):
            raise SettingError("a source has one vehicle, which divides its frames by itself: no test_split")
        if self.payload_limit_bytes < SMALLEST_PAYLOAD_LIMIT_BYTES:
            raise SettingError(
                f"payload_limit_bytes must be at least {SMALLEST_PAYLOAD_LIMIT_BYTES}, "
                f"got {self.payload_limit_bytes}"
            )
        if self.threads < 1:
            raise SettingError(f"threads must be at least 1, got {self.threads}")
        if any(size < 1 for size in self.warm_up):
            raise SettingError(f"warm_up must be batch sizes of at least 1, got {min(self.warm_up)}")
        if self.training_device not in TRAINING_DEVICES:
            raise SettingError(
                f"training_device must be one of {', '.join(TRAINING_DEVICES)}, got {self.training_device!r}"
            )
        if self.encoder_mode not in ("auto", "bind", "rebuild"):
            raise SettingError(f"encoder_mode must be auto, bind or rebuild, got {self.encoder_mode!r}")
        for name in _DURATIONS:
            if not getattr(self, name) > 0:
                raise SettingError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.update_url is not None:
            check_update_url(self.update_url)
        if self.spool_mb < 0:
            raise SettingError(f"spool_mb must be at least 0, got {self.spool_mb}")


def read_host_config(path: Path) -> HostConfig:
    """Read a JSON file.

    Raises:
        VehicleError: it is missing or does not describe a host; the message names the key.
    """
    try:
        return decode_json(path.read_bytes(), HostConfig)
    except OSError as error:
        raise VehicleError(f"can't read the vehicle host's settings {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VehicleError(f"{path}: {error}") from error
