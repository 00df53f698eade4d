"""What can go wrong when a network becomes ONNX."""

from __future__ import annotations

from fleet.errors import OperatorError


class ExportError(OperatorError):
    """The network can't be exported, or its graphs don't compute what the torch module computes."""
