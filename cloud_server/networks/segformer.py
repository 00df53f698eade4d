"""SegFormer (Xie et al., NeurIPS 2021) behind the split: transformers' model with another first projection.

Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cloud_server.networks.spec import NetworkSpec
from protocol.errors import SettingError

_FIRST_STRIDE = 4


class SegformerNetwork(nn.Module):
    """Features in, logits at a quarter of the image out."""

    def __init__(self, model: nn.Module, channels: int) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm2d(channels)
        self.model = model

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BKhw, float32."""
        logits_BKhw: Tensor = self.model(pixel_values=self.normalise(features_BCHW)).logits
        return logits_BKhw


def build_segformer(size: Mapping[str, Any], spec: NetworkSpec) -> SegformerNetwork:
    """Return a SegFormer whose stages have strides 4, 8, 16 and 32 of the image.

    `size` are arguments of `SegformerConfig`.
    `spec.weights` is a folder written by transformers' `save_pretrained` (config.json, model.safetensors), of
    an encoder alone or of a whole segmentation model; it decides the size then, and what doesn't fit (the
    first projection, a classifier for other classes) starts at random, from torch's generator.

    Raises:
        SettingError: transformers is not installed.
        OSError: `weights` is not such a folder.
    """
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError as exc:
        raise SettingError(
            "the SegFormer networks need the transformers package: pip install 'blackfleet[segformer]', "
            "or choose the network `compact`"
        ) from exc
    weights = spec.weights
    if weights is None:
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=spec.num_classes, **size))
    else:
        if not (weights / "config.json").is_file():
            raise FileNotFoundError(
                f"no SegFormer weights in {weights}: expected config.json and safetensors"
            )
        model = SegformerForSemanticSegmentation.from_pretrained(
            weights,
            num_labels=spec.num_classes,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
        )
    channels = spec.feature_shape[0]
    _replace_first_convolution(model, channels, spec.feature_stride)
    return SegformerNetwork(model, channels)


def _replace_first_convolution(model: nn.Module, channels: int, feature_stride: int) -> None:
    # Found by its place, because transformers 5 renamed the modules around the first patch embedding.
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, _projection(channels, old.out_channels, feature_stride))


def _projection(channels: int, width: int, feature_stride: int) -> nn.Conv2d | nn.ConvTranspose2d:
    """A projection from the features' stride to that of the first stage, down or up."""
    if feature_stride > _FIRST_STRIDE:
        up = feature_stride // _FIRST_STRIDE
        return nn.ConvTranspose2d(channels, width, 2 * up, stride=up, padding=up // 2)
    down = _FIRST_STRIDE // feature_stride
    kernel = max(3, 2 * down - 1)
    return nn.Conv2d(channels, width, kernel, stride=down, padding=kernel // 2)
