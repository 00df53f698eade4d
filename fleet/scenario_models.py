"""The scenario's sections about what vehicles run."""

from __future__ import annotations

from protocol.errors import SettingError
from protocol.plans.checks import Section


class EncoderPart(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the vehicles run."""

    section = "encoder"

    name: str = "stride8-c8"
    """An architecture of `fleet.export.encoders.ENCODERS`, `package.module:name` of your own, or the path of
    an ONNX file."""
    trainable: tuple[str, ...] = ()
    """Of an ONNX file: names of the weights that learn, or patterns such as `block3.*`; none = it stays."""
    weights: str | None = None
    """File of pretrained weights, for an architecture that takes one; None = those that come with it."""
    mode: str = "auto"
    """How a changed θ runs: `bind`, `rebuild`, or `auto` = `rebuild` on the CPU, elsewhere the faster,
    measured once at launch."""
    provider: str = "auto"
    """ONNX Runtime's: `cpu`, `cuda`, `tensorrt`, or another that it has here; `auto` = CUDA where every graph
    gives what it gives on the CPU, else the CPU. With options of its own: `cuda:device_id=1`."""
    training_device: str = "cpu"
    """What vehicles train the whole network on (`fedavg`): `cpu`, or `cuda`, by torch."""
    threads: int = 1
    """ONNX Runtime threads of each vehicle process."""


class LocalHeadPart(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The head by which vehicles learn from their own labels (`blackfleet`), or that stands for the cloud's
    network on them (the estimator `surrogate`)."""

    section = "local_head"

    width: int = 32
    """Channels inside."""
    depth: int = 2
    """Residual blocks, of dilation 2, 4, 8, …"""
    pretrained: bool = True
    """Of `surrogate`, with a `start`: it begins with the head that was pretrained there, whose width and
    depth count; else with random weights."""

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 1024:
            raise SettingError(f"local_head.width must be from 1 to 1024, got {self.width}")
        if not 0 <= self.depth <= 8:
            raise SettingError(f"local_head.depth must be from 0 to 8, got {self.depth}")
