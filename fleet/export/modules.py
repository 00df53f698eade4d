"""Any torch module as an encoder: its ONNX graph by `torch.export`, its parameters by their names.

Shapes: B frames, H by W pixels, C channels.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from edge_client.encoder.bundle import ParameterSpec
from fleet.export.errors import ExportError
from fleet.export.graphs import PIXEL_MEAN, PIXEL_STD, Graph, pixels_graph
from protocol.noise import derive_seed
from protocol.plans.adaptation import SubspaceName

PROJECTION = "projection"
"""What a module calls the layers at its end that may learn alone."""
_PROBE_SIDE = 64
OPSET = 18


class ModuleEncoder(nn.Module):
    """A module from normalised image_BCHW to features_BCHW, with what an encoder is asked for.

    Args:
        build: makes the module; called again where initial weights are drawn.
        rgb_mean, rgb_std: what is subtracted from RGB scaled to [0, 1], and what it is divided by.

    Attributes:
        stride: image pixels per feature cell, along each side.
        channels: C of the features.

    Raises:
        ExportError: the module gives no features_BCHW for an image, or of a stride that is no whole number,
            or has a parameter that would never learn.
    """

    mean: torch.Tensor
    std: torch.Tensor
    subspace: SubspaceName = "all"
    """What learns where nobody says."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        rgb_mean: tuple[float, float, float] = PIXEL_MEAN,
        rgb_std: tuple[float, float, float] = PIXEL_STD,
    ) -> None:
        super().__init__()
        self._build = build
        self.rgb_mean, self.rgb_std = rgb_mean, rgb_std
        self.register_buffer("mean", 255 * torch.tensor(rgb_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(rgb_std).view(1, 3, 1, 1), persistent=False)
        self.module = build().eval()
        self.stride, self.channels = _probed(self.module)

    def forward(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Features float32 (B, C, H / stride, W / stride) of RGB pixels 0 to 255 (uint8 or float)."""
        pixels_BCHW = image_BHWC.permute(0, 3, 1, 2).to(torch.float32)
        features_BCHW: torch.Tensor = self.module((pixels_BCHW - self.mean) / self.std)
        return features_BCHW

    def initialise(self, seed: int) -> None:
        """Build the module anew, with torch's generator at a seed of its own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "encoder") % 2**63)
            self.module = self._build().eval()

    def folded(self) -> ModuleEncoder:
        """The same function, BatchNorm folded into convolutions where torch.fx can; always a new module."""
        plain = copy.copy(self)
        plain._modules = dict(self._modules)
        from torch.fx.experimental.optimization import fuse  # compiles scripts when it is imported

        module = copy.deepcopy(self.module).eval()
        with contextlib.suppress(Exception):  # whatever tracing meets: such a module keeps its BatchNorm
            module = fuse(module)
        plain.module = module.eval().requires_grad_(True)
        return plain

    def forward_graph(self, image_size: tuple[int, int]) -> Graph:
        """`image_BHWC` uint8 RGB to `features_BCHW` float32, parameters left out.

        Raises:
            ExportError: torch can't export the module.
        """
        width, height = image_size
        model = _exported(self.module, torch.zeros(2, 3, height, width))
        graph = pixels_graph(image_size, self.rgb_mean, self.rgb_std)
        graph.opset = OPSET
        graph.nodes += model.graph.node
        own = dict(self.module.named_parameters())
        for tensor in model.graph.initializer:
            if tensor.name not in own:
                graph.constant(tensor.name, numpy_helper.to_array(tensor))
        shape: list[str | int] = ["B", self.channels, height // self.stride, width // self.stride]
        graph.outputs = [("features_BCHW", TensorProto.FLOAT, shape)]
        return graph

    def projection(self) -> tuple[str, ...]:
        """Names of the parameters of its projection: those of the module's child of that name."""
        return tuple(name for name, _ in self.module.named_parameters() if name.startswith(f"{PROJECTION}."))

    def parameter_specs(self) -> tuple[ParameterSpec, ...]:
        """What θ consists of, in the order of `parameters()`."""
        specs: list[ParameterSpec] = []
        offset = 0
        for name, parameter in self.module.named_parameters():
            shape = tuple(parameter.shape)
            specs.append(
                ParameterSpec(
                    name=name, shape=shape or (1,), offset=offset, kind="weight" if len(shape) > 1 else "bias"
                )
            )
            offset += parameter.numel()
        return tuple(specs)


def _probed(module: nn.Module) -> tuple[int, int]:
    """(stride, channels) of a module, by trying it; what stands in the way of learning is refused."""
    features = module(torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE))
    if not isinstance(features, torch.Tensor) or features.ndim != 4 or features.shape[0] != 1:
        got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ExportError(f"must turn an image (1, 3, H, W) into features (1, C, H', W'), got {got}")
    _, channels, rows, columns = features.shape
    if rows != columns or _PROBE_SIDE % rows:
        raise ExportError(
            f"must have a whole stride, the same down and across; {_PROBE_SIDE}x{_PROBE_SIDE} pixels became "
            f"{rows}x{columns} cells"
        )
    if not bool(torch.isfinite(features).all()):
        raise ExportError("gives features of a grey image that are not finite")
    named = dict(module.named_parameters())
    if not named:
        raise ExportError("has no parameters: there is nothing to learn")
    gradients = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
    still = [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]
    if still:
        raise ExportError(f"its parameter {still[0]!r} has no part in the features: it would never learn")
    return _PROBE_SIDE // rows, channels


def _exported(module: nn.Module, image_BCHW: torch.Tensor) -> onnx.ModelProto:
    """The module's ONNX graph from `x0` to `features_BCHW`, for any batch, constants folded.

    The weights in it are random: the optimiser must not see a bias of zeros, which it would take away.
    """
    drawn = copy.deepcopy(module)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.copy_(torch.from_numpy(random.uniform(0.5, 1, parameter.shape).astype(np.float32)))
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                drawn,
                (image_BCHW,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("B")},),
                opset_version=OPSET,
                input_names=["x0"],
                output_names=["features_BCHW"],
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # whatever stands in the way of torch's exporter
        raise ExportError(f"torch can't export it to ONNX: {' '.join(str(error).split())[:300]}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's progress, and its remarks about packages that nobody needs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
