"""An exported model on ONNX Runtime: a picture of any size in, a label map of that size out.

Shapes: H height, W width, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.frame import resize_image
from edge_client.encoder.onnx_runtime import ort
from edge_client.encoder.sessions import CPU, DEFAULT_PROVIDERS, base_name, open_session
from edge_client.predict.card import IDS, IMAGE, LOGITS, ModelCard, ModelError
from evaluation.likeliest import likeliest, uncertainty

log = logging.getLogger(__name__)


class Model:
    """What `blackfleet export` has written.

    Attributes:
        card: what the file says of itself.
        gives_logits: whether label maps are made from logits; else from ids, enlarged by nearest pixel.
        provider: ONNX Runtime's execution provider.
    """

    def __init__(self, path: Path, *, threads: int = 1, providers: Sequence[str] = DEFAULT_PROVIDERS) -> None:
        """Load the file at `path`, on the first of `providers` that runs it.

        Raises:
            ModelError: it can't be read, or is no whole model of ours.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"can't read the model {path}: {error.strerror}") from error
        self._session = _open(path, content, threads, providers)
        self.provider: str = self._session.get_providers()[0]
        try:
            self.card = ModelCard.read(self._session.get_modelmeta().custom_metadata_map)
        except ModelError as error:
            raise ModelError(f"{path} is no model that can be used: it {error}") from error
        if self.card.part != "model":
            raise ModelError(
                f"{path} is the {self.card.part} alone; give the whole model that lies beside it"
            )
        self.gives_logits = LOGITS in {output.name for output in self._session.get_outputs()}

    def predict(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the likeliest trainId of each pixel, uint8 [H, W], of a picture, uint8 RGB [H, W, 3]."""
        return self.predict_with_uncertainty(image_HWC)[0]

    def predict_with_uncertainty(
        self, image_HWC: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], float | None]:
        """The same with the model's `uncertainty`, None where it gives no logits."""
        height, width = image_HWC.shape[:2]
        image_1HWC = np.ascontiguousarray(resize_image(image_HWC, *self.card.image_size))[None]
        if self.gives_logits:
            [logits_1Khw] = self._session.run([LOGITS], {IMAGE: image_1HWC})
            return likeliest(logits_1Khw[0], (height, width)), uncertainty(logits_1Khw[0])
        [ids_1hw] = self._session.run([IDS], {IMAGE: image_1HWC})
        label_HW = cv2.resize(ids_1hw[0], (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(label_HW, np.uint8), None


def _open(path: Path, model: bytes, threads: int, providers: Sequence[str]) -> Any:
    """A session on the first provider that is there and takes the model; the CPU is the last resort."""
    there = [name for name in providers if base_name(name) in ort.get_available_providers() and name != CPU]
    for provider in (*there, CPU):
        try:
            return open_session(model, provider, threads)
        except Exception as error:  # ONNX Runtime raises whatever the provider's library does
            reason = " ".join(str(error).split())[:200]
            if provider == CPU:
                raise ModelError(
                    f"{path} is no ONNX model that ONNX Runtime {ort.__version__} loads: {reason}"
                ) from error
            log.warning("%s does not run here (%s); trying the next provider", provider, reason)
    raise AssertionError("the CPU was tried")
