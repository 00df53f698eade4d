"""What an exported model says of itself, in its ONNX metadata: classes, pictures, and where it comes from.

Each entry is JSON under a name of its own, so that any ONNX tool shows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from datasets.labels import LabelClass, LabelSpace
from protocol.errors import Mistake, SettingError

FORMAT_VERSION = 1
_PREFIX = "blackfleet."

IMAGE = "image_BHWC"
"""Input of a model and of an encoder alone: uint8 RGB."""
FEATURES = "features_BCHW"
"""Output of an encoder alone, input of a network alone: float32."""
LOGITS = "logits_BKhw"
"""Output: float32."""
IDS = "ids_Bhw"
"""Output of a model: uint8 trainIds at the logits' size."""


class ModelError(Mistake):
    """A file that is no model of ours, or not the part of one that was asked for."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The metadata of one exported file."""

    part: str
    """`model`, `encoder` or `network`."""
    label_space: LabelSpace
    dataset: str
    """Name of the data set that it was trained on."""
    image_size: tuple[int, int]
    """Width and height in pixels."""
    pixel_mean: tuple[float, float, float]
    """Of RGB scaled to [0, 1]; subtracted inside the graph."""
    pixel_std: tuple[float, float, float]
    coding_bits: int | None
    """Bits that features are rounded to inside the graph, each frame's by itself; None = they are not."""
    precision: str = "float32"
    """`float32` or `int8`."""
    run: str
    """Name of the run's folder."""
    vehicle: str
    algorithm: str
    rounds: int
    seed: int
    encoder: str
    """As a scenario names it."""
    network: str
    """As a scenario names it."""
    theta_sha256: str
    """Of θ as little-endian float32."""
    network_sha256: str
    """Of the network's arrays by name: name, shape and bytes of each, sorted by name."""
    version: str
    """Of blackfleet."""

    def properties(self) -> dict[str, str]:
        """Names and JSON texts, for `metadata_props`."""
        content = {"format": FORMAT_VERSION, **asdict(self)}
        content["label_space"] = self.label_space.name
        content["classes"] = [asdict(row) for row in self.label_space.classes]
        return {_PREFIX + name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}

    @classmethod
    def read(cls, properties: Mapping[str, str]) -> ModelCard:
        """Rebuild from `properties`; what others have added is left out.

        Raises:
            ModelError: they are not those of an exported model, or of another format.
        """
        if f"{_PREFIX}format" not in properties:
            raise ModelError("has no metadata of `blackfleet export`")
        try:
            content: dict[str, Any] = {
                name.removeprefix(_PREFIX): json.loads(text)
                for name, text in properties.items()
                if name.startswith(_PREFIX)
            }
            if content["format"] != FORMAT_VERSION:
                raise ModelError(
                    f"is of format {content['format']}, this version reads {FORMAT_VERSION}; export it again"
                )
            rows = tuple(
                LabelClass(**{**row, "color_rgb": tuple(row["color_rgb"])}) for row in content["classes"]
            )
            content["label_space"] = LabelSpace(content["label_space"], rows)
            for name in ("image_size", "pixel_mean", "pixel_std"):
                content[name] = tuple(content[name])
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (ValueError, TypeError, KeyError, SettingError) as error:
            raise ModelError(f"has damaged metadata ({error}); export it again") from error
