"""A local head as two ONNX graphs of plain operators: forward with tape, and the way back.

BatchNorm in training couples the frames of a batch: its statistics are computed inside the graphs, and the
way back has their exact gradient. Of a head whose normalisation is fixed they are constants.
Shapes: B frames, C channels, H W feature rows and columns, K classes, O output and I input channels, T kernel
taps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto
from torch import nn

from edge_client.encoder.bundle import ParameterSpec
from fleet.export.graphs import Graph
from fleet.export.heads import HeadModule

_WayBack = Callable[[str], str]
"""Appends to the graph of the way back: the gradient at a part's output → that at its input."""


def head_graphs(head: HeadModule, size_HW: tuple[int, int]) -> tuple[Graph, Graph]:
    """The graphs `forward` and `vjp` of a head for features of `size_HW` rows and columns.

    forward: `features_BCHW` → `logits_BKhw`, then what `vjp` needs. vjp: that and `v_BKhw` → `gradient` (n,)
    of the parameters, summed over the frames, and `features_gradient_BCHW`, of ⟨logits, v⟩. The parameters
    are an input `theta` of both.
    """
    writer = _Writer(head, size_HW)
    writer.write()
    return writer.forward, writer.vjp


def head_parameter_specs(head: HeadModule) -> tuple[ParameterSpec, ...]:
    """What the flat parameter vector consists of, in the order of `head.parameters()`."""
    specs: list[ParameterSpec] = []
    offset = 0
    for name, parameter in head.named_parameters():
        kind = name.rpartition(".")[2]
        assert kind in ("weight", "bias")
        specs.append(
            ParameterSpec(
                name=name,
                shape=tuple(parameter.shape),
                offset=offset,
                kind="weight" if kind == "weight" else "bias",
            )
        )
        offset += parameter.numel()
    return tuple(specs)


class _Writer:
    """Writes each part into the forward graph, then, last part first, into the way back."""

    def __init__(self, head: HeadModule, size_HW: tuple[int, int]) -> None:
        self._head = head
        self._height, self._width = size_HW
        self.forward = Graph([("features_BCHW", TensorProto.FLOAT, self._shape(head.channels))])
        self.vjp = Graph([])
        self._kept: set[str] = set()
        self._gradients: dict[str, str] = {}
        """Flat gradient by parameter."""

    def write(self) -> None:
        head = self._head
        rows, columns = self._height * head.enlargement, self._width * head.enlargement
        logit_shape: list[str | int] = ["B", head.classes, rows, columns]
        self.forward.outputs.append(("logits_BKhw", TensorProto.FLOAT, logit_shape))
        x, ways = "features_BCHW", list[_WayBack]()
        x = self._norm("input_norm", x, head.channels, ways)
        x = self._convolution("entry", x, head.entry, ways)
        x = self._norm("entry_norm", x, head.width, ways)
        x = self._relu("entry", x, head.width, ways)
        for index, block in enumerate(head.blocks):
            x = self._block(f"blocks.{index}", x, block, ways)
        x = self._convolution("classify", x, head.classify, ways)
        self._shuffle(x, ways)
        self.vjp.inputs.append(("v_BKhw", TensorProto.FLOAT, logit_shape))
        gradient = "v_BKhw"
        for way in reversed(ways):
            gradient = way(gradient)
        self.vjp.add("Identity", [gradient], "features_gradient_BCHW")
        parts = [self._gradients[name] for name, _ in head.named_parameters()]
        self.vjp.add("Concat", parts, "gradient", axis=0)
        count = sum(parameter.numel() for parameter in head.parameters())
        self.vjp.outputs = [
            ("gradient", TensorProto.FLOAT, [count]),
            ("features_gradient_BCHW", TensorProto.FLOAT, self._shape(head.channels)),
        ]

    # Parts --------------------------------------------------------------------------------------------

    def _norm(self, name: str, x: str, channels: int, ways: list[_WayBack]) -> str:
        """BatchNorm: y = c · scale / σ + shift with c = x − mean."""
        norm = self._head.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        if norm.track_running_stats:
            return self._fixed_norm(name, norm, x, channels, ways)
        return self._batch_norm(name, x, channels, ways)

    def _fixed_norm(
        self, name: str, norm: nn.BatchNorm2d, x: str, channels: int, ways: list[_WayBack]
    ) -> str:
        """With statistics that are constants: an affine map of each channel."""
        vjp = self.vjp
        assert norm.running_mean is not None and norm.running_var is not None
        mean_1C11 = norm.running_mean.numpy().reshape(1, -1, 1, 1)
        inverse_1C11 = (norm.running_var + norm.eps).rsqrt().numpy().reshape(1, -1, 1, 1)
        for graph in (self.forward, vjp):
            graph.constant(f"{name}.inverse", inverse_1C11)
        centred = self.forward.add("Sub", [x, self.forward.constant(f"{name}.mean", mean_1C11)], f"{name}.c")
        normalised = self.forward.add("Mul", [centred, f"{name}.inverse"], f"{name}.normalised")
        scaled = self.forward.add(
            "Mul", [normalised, self._column(self.forward, f"{name}.weight")], f"{name}.scaled"
        )
        output = self.forward.add("Add", [scaled, self._column(self.forward, f"{name}.bias")], f"{name}.y")
        self._keep(normalised, self._shape(channels))

        def way_back(dy: str) -> str:
            axes = vjp.constant("axes_BHW", np.array([0, 2, 3], np.int64))
            product = vjp.add("Mul", [dy, normalised], f"{name}.dy_n")
            scale_gradient = vjp.add("ReduceSum", [product, axes], f"{name}.dweight", keepdims=1)
            self._flat(f"{name}.weight", scale_gradient)
            self._flat(f"{name}.bias", vjp.add("ReduceSum", [dy, axes], f"{name}.dbias", keepdims=1))
            scale = self._column(vjp, f"{name}.weight")
            factor = vjp.add("Mul", [f"{name}.inverse", scale], f"{name}.factor")
            return vjp.add("Mul", [dy, factor], f"{name}.dx")

        ways.append(way_back)
        return output

    def _batch_norm(self, name: str, x: str, channels: int, ways: list[_WayBack]) -> str:
        """With the statistics of the batch."""
        forward, vjp = self.forward, self.vjp
        epsilon = forward.constant("epsilon", np.array(nn.BatchNorm2d(1).eps, np.float32))
        mean = forward.add("ReduceMean", [x], f"{name}.mean", axes=[0, 2, 3], keepdims=1)
        centred = forward.add("Sub", [x, mean], f"{name}.centred")
        square = forward.add("Mul", [centred, centred], f"{name}.square")
        variance = forward.add("ReduceMean", [square], f"{name}.variance", axes=[0, 2, 3], keepdims=1)
        safe = forward.add("Add", [variance, epsilon], f"{name}.safe")
        deviation = forward.add("Sqrt", [safe], f"{name}.deviation")
        inverse = forward.add("Reciprocal", [deviation], f"{name}.inverse")
        factor = forward.add("Mul", [inverse, self._column(forward, f"{name}.weight")], f"{name}.factor")
        scaled = forward.add("Mul", [centred, factor], f"{name}.scaled")
        output = forward.add("Add", [scaled, self._column(forward, f"{name}.bias")], f"{name}.y")
        self._keep(centred, self._shape(channels))
        self._keep(inverse, [1, channels, 1, 1])

        def way_back(dy: str) -> str:
            axes = vjp.constant("axes_BHW", np.array([0, 2, 3], np.int64))
            shift_gradient = vjp.add("ReduceSum", [dy, axes], f"{name}.dbias", keepdims=1)
            product = vjp.add("Mul", [dy, centred], f"{name}.dy_c")
            correlation = vjp.add("ReduceSum", [product, axes], f"{name}.sum_dy_c", keepdims=1)
            scale_gradient = vjp.add("Mul", [correlation, inverse], f"{name}.dweight")
            self._flat(f"{name}.weight", scale_gradient)
            self._flat(f"{name}.bias", shift_gradient)
            # dx = scale/σ · (dy − mean dy − c/σ² · mean(dy·c))
            size = vjp.add("Size", [dy], f"{name}.size")
            size = vjp.add("Cast", [size], f"{name}.size_float", to=TensorProto.FLOAT)
            per_value = vjp.constant(f"{name}.channels", np.array(channels, np.float32))
            count = vjp.add("Div", [size, per_value], f"{name}.count")
            mean_dy = vjp.add("Div", [shift_gradient, count], f"{name}.mean_dy")
            slope = vjp.add("Mul", [scale_gradient, inverse], f"{name}.slope_sum")
            slope = vjp.add("Div", [slope, count], f"{name}.slope")
            along = vjp.add("Mul", [centred, slope], f"{name}.along")
            rest = vjp.add("Sub", [vjp.add("Sub", [dy, mean_dy], f"{name}.dy0"), along], f"{name}.rest")
            factor = vjp.add("Mul", [inverse, self._column(vjp, f"{name}.weight")], f"{name}.factor")
            return vjp.add("Mul", [rest, factor], f"{name}.dx")

        ways.append(way_back)
        return output

    def _relu(self, name: str, x: str, channels: int, ways: list[_WayBack]) -> str:
        output = self.forward.add("Relu", [x], f"{name}.relu")
        self._keep(output, self._shape(channels))

        def way_back(dy: str) -> str:
            zero = self.vjp.constant("zero", np.zeros((), np.float32))
            positive = self.vjp.add("Greater", [output, zero], f"{name}.positive")
            passes = self.vjp.add("Cast", [positive], f"{name}.passes", to=TensorProto.FLOAT)
            return self.vjp.add("Mul", [dy, passes], f"{name}.dz")

        ways.append(way_back)
        return output

    def _block(self, name: str, x: str, block: nn.Module, ways: list[_WayBack]) -> str:
        inner = list[_WayBack]()
        y = self._convolution(f"{name}.depthwise", x, block.get_submodule("depthwise"), inner)
        y = self._convolution(f"{name}.pointwise", y, block.get_submodule("pointwise"), inner)
        y = self._norm(f"{name}.norm", y, self._head.width, inner)
        y = self._relu(name, y, self._head.width, inner)
        output = self.forward.add("Add", [x, y], f"{name}.y")

        def way_back(dy: str) -> str:
            gradient = dy
            for way in reversed(inner):
                gradient = way(gradient)
            return self.vjp.add("Add", [dy, gradient], f"{name}.dx")

        ways.append(way_back)
        return output

    def _convolution(self, name: str, x: str, convolution: nn.Module, ways: list[_WayBack]) -> str:
        """Stride 1, the size stays; either dense or depthwise."""
        assert isinstance(convolution, nn.Conv2d)
        vjp, weight = self.vjp, f"{name}.weight"
        kernel, dilation = convolution.kernel_size[0], convolution.dilation[0]
        same = {
            "kernel_shape": [kernel] * 2,
            "pads": [dilation * (kernel // 2)] * 4,
            "dilations": [dilation] * 2,
            "group": convolution.groups,
        }
        bias = [] if convolution.bias is None else [f"{name}.bias"]
        output = self.forward.add("Conv", [x, weight, *bias], f"{name}.z", **same)
        self._keep(x, self._shape(convolution.in_channels))

        def way_back(dy: str) -> str:
            if bias:
                axes = vjp.constant("axes_BHW", np.array([0, 2, 3], np.int64))
                self._flat(f"{name}.bias", vjp.add("ReduceSum", [dy, axes], f"{name}.dbias", keepdims=0))
            depthwise = convolution.groups > 1
            taps = self._taps(name, x, kernel, dilation)
            if depthwise:
                self._depthwise_gradient(weight, taps, dy)
            else:
                self._dense_gradient(weight, taps, dy, convolution)
            # a convolution of stride 1 is undone by one with the kernel turned around
            turned = self._turned(name, weight, kernel)
            if not depthwise:
                turned = vjp.add("Transpose", [turned], f"{name}.turned_IO", perm=[1, 0, 2, 3])
            return vjp.add("Conv", [dy, turned], f"{name}.dx", **same)

        ways.append(way_back)
        return output

    def _shuffle(self, x: str, ways: list[_WayBack]) -> None:
        step, classes = self._head.enlargement, self._head.classes
        self.forward.add("DepthToSpace", [x], "logits_BKhw", blocksize=step, mode="CRD")

        def way_back(dy: str) -> str:
            # SpaceToDepth has the other order of channels
            fine = self._reshape("v.fine", dy, -1, classes, self._height, step, self._width, step)
            ordered = self.vjp.add("Transpose", [fine], "v.ordered", perm=[0, 1, 3, 5, 2, 4])
            return self._reshape("v.coarse", ordered, -1, classes * step**2, self._height, self._width)

        ways.append(way_back)

    # Weight gradients ---------------------------------------------------------------------------------

    def _taps(self, name: str, x: str, kernel: int, dilation: int) -> list[str]:
        """The input pixels under each tap of the kernel, row by row, each (B, I, H, W)."""
        if kernel == 1:
            return [x]
        edge = dilation * (kernel // 2)
        pads = self.vjp.constant(f"{name}.pads", np.array([0, 0, edge, edge] * 2, np.int64))
        padded = self.vjp.add("Pad", [x, pads], f"{name}.padded")
        axes = self.vjp.constant("axes_HW", np.array([2, 3], np.int64))
        taps = []
        for row in range(kernel):
            for column in range(kernel):
                top, left = row * dilation, column * dilation
                tap = f"{name}.tap{row}{column}"
                start = self.vjp.constant(f"{tap}.start", np.array([top, left], np.int64))
                bottom_right = np.array([top + self._height, left + self._width], np.int64)
                end = self.vjp.constant(f"{tap}.end", bottom_right)
                taps.append(self.vjp.add("Slice", [padded, start, end, axes], tap))
        return taps

    def _depthwise_gradient(self, weight: str, taps: list[str], dy: str) -> None:
        axes = self.vjp.constant("axes_BHW", np.array([0, 2, 3], np.int64))
        columns = []
        for number, tap in enumerate(taps):
            product = self.vjp.add("Mul", [tap, dy], f"{weight}.product{number}")
            total = self.vjp.add("ReduceSum", [product, axes], f"{weight}.sum{number}", keepdims=0)
            columns.append(self._reshape(f"{weight}.column{number}", total, -1, 1))
        self._flat(weight, self.vjp.add("Concat", columns, f"{weight}.dCT", axis=1))

    def _dense_gradient(self, weight: str, taps: list[str], dy: str, convolution: nn.Conv2d) -> None:
        inputs, outputs, pixels = (
            convolution.in_channels,
            convolution.out_channels,
            self._height * self._width,
        )
        rows = taps[0] if len(taps) == 1 else self.vjp.add("Concat", taps, f"{weight}.taps", axis=1)
        rows = self._reshape(f"{weight}.rows", rows, 0, len(taps) * inputs, pixels)
        gradient = self._reshape(f"{weight}.dz", dy, 0, outputs, pixels)
        columns = self.vjp.add("Transpose", [gradient], f"{weight}.columns", perm=[0, 2, 1])
        product = self.vjp.add("MatMul", [rows, columns], f"{weight}.frames")
        axis = self.vjp.constant("axis_B", np.array([0], np.int64))
        total = self.vjp.add("ReduceSum", [product, axis], f"{weight}.sum", keepdims=0)
        total = self._reshape(f"{weight}.dTIO", total, len(taps), inputs, outputs)
        self._flat(weight, self.vjp.add("Transpose", [total], f"{weight}.dOIT", perm=[2, 1, 0]))

    def _turned(self, name: str, weight: str, kernel: int) -> str:
        """The kernel turned by half a turn."""
        if kernel == 1:
            return weight
        axes = self.vjp.constant("axes_HW", np.array([2, 3], np.int64))
        last = self.vjp.constant("last", np.array([-1, -1], np.int64))
        before_first = self.vjp.constant("before_first", np.full(2, np.iinfo(np.int64).min, np.int64))
        return self.vjp.add("Slice", [weight, last, before_first, axes, last], f"{name}.turned")

    # Small things -------------------------------------------------------------------------------------

    def _shape(self, channels: int) -> list[str | int]:
        return ["B", channels, self._height, self._width]

    def _keep(self, name: str, shape: list[str | int]) -> None:
        """Hand a value of the forward graph on to the way back."""
        if name not in self._kept:
            self._kept.add(name)
            if name != "features_BCHW":
                self.forward.outputs.append((name, TensorProto.FLOAT, shape))
            self.vjp.inputs.append((name, TensorProto.FLOAT, shape))

    def _column(self, graph: Graph, parameter: str) -> str:
        """A parameter of each channel as (1, C, 1, 1)."""
        shape = graph.constant("shape_channels", np.array([1, -1, 1, 1], np.int64))
        return graph.add("Reshape", [parameter, shape], f"{parameter}.column")

    def _flat(self, parameter: str, gradient: str) -> None:
        self._gradients[parameter] = self._reshape(f"{parameter}.gradient", gradient, -1)

    def _reshape(self, output: str, x: str, *sizes: int) -> str:
        """On the way back; 0 keeps the dimension and -1 takes the rest."""
        shape = self.vjp.constant("shape_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))
        return self.vjp.add("Reshape", [x, shape], output)
