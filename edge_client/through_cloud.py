"""Class maps by the cloud's network: features of the newest frame up, its class map down, one at a time.

Shapes: H W rows and columns of the camera's picture, h w those of the encoder's input; θ is float32 (n,).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.frame import resize_image
from datasets.labels import LabelSpace
from edge_client.encoder.runtime import Encoder
from edge_client.predict.newest import Taken
from edge_client.predict.newest_served import NewestServed
from protocol.codec.deflate import CodecError
from protocol.codec.labels import decode_label
from protocol.codec.quantiser import UncodableError
from protocol.errors import SettingError
from protocol.messages import Classes, ClassMap, Reject, Seen, Serving, WantServing
from protocol.plans.coding import Coding
from protocol.seldom import is_logged
from protocol.session.intake import Intake
from protocol.session.link import Malformed, MessageTooLarge, VehicleLink

log = logging.getLogger(__name__)

CLOUD = "cloud"
"""Names the cloud's network where else a model's file is named."""

_POLL_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
"""Between two questions whether the cloud serves."""
_ASK_S = 2.0
_PATIENT = 4
"""Questions without an answer before that is said: the cloud may just be starting."""


@dataclass(frozen=True)
class _Line:
    """The way to the cloud, and what goes up."""

    link: VehicleLink
    answers: Intake
    session: str
    encoder: Encoder
    label_space: LabelSpace


class ThroughCloud(NewestServed):
    """A context in which frames that are offered are served; its folder always holds a whole class map.

    One frame is under way, and the newest one waits. An answer that comes later than `answer_s` is dropped.
    """

    def __init__(
        self, folder: Path, *, alive: Callable[[], None] = lambda: None, answer_s: float = 5.0
    ) -> None:
        """`folder` is made if it is missing; `alive` is called as long as the loop comes on.

        Raises:
            OSError: it can't be made.
        """
        super().__init__(folder, alive)
        self._alive = alive
        self._answer_s = answer_s
        self._line: _Line | None = None
        self._theta: NDArray[np.float32] | None = None
        self._coding: Coding | None = None
        """Of the features, once the cloud has said that it serves this vehicle."""
        self._announced: Coding | None = None
        self._number = 0
        self._pause_s = _FIRST_PAUSE_S
        self._complaints = 0
        self.late = 0
        """Frames whose answer did not come in time."""

    def attach(self, link: VehicleLink, session: str, encoder: Encoder, label_space: LabelSpace) -> None:
        """From now on there is a way to the cloud, once θ is told; the encoder is used by no other thread."""
        self._theta = self._coding = None
        self._line = _Line(link, link.hear_classes(), session, encoder, label_space)

    def follow(self, theta: NDArray[np.float32]) -> None:
        """The vehicle's encoder is this θ from now on."""
        self._theta = theta.copy()

    @property
    def dropped(self) -> int:
        """Frames that a newer one has replaced before their turn came, or whose answer came too late."""
        return super().dropped + self.late

    @property
    def _by(self) -> str:
        return "by the cloud"

    # In its own thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._frames.is_over:
            line, theta = self._line, self._theta
            if line is None or theta is None or not line.link.transport.connected:
                self._frames.rest(_POLL_S)
            elif self._coding is None:
                self._ask(line)
            elif (taken := self._frames.take()) is not None:
                self._serve(line, theta, self._coding, taken)

    def _ask(self, line: _Line) -> None:
        """Whether the cloud serves; patiently, for it may not be there yet, or may not have welcomed us."""
        line.link.show(WantServing(vehicle=line.link.vehicle, session=line.session))
        answer = self._answer(line, lambda message: isinstance(message, Serving | Reject), _ASK_S)
        if isinstance(answer, Serving):
            self._coding = answer.coding
            if answer.coding != self._announced:
                self._announced = answer.coding
                log.info("the cloud serves this vehicle: features of %d bits go up", answer.coding.bits)
            return
        self._complain(
            answer.reason
            if isinstance(answer, Reject)
            else "the cloud does not answer: it serves if it was started with --serve, and the broker must "
            "let this vehicle publish on its topic seen and subscribe to classes",
            patient=_PATIENT,
        )

    def _serve(self, line: _Line, theta: NDArray[np.float32], coding: Coding, taken: Taken) -> None:
        self._number += 1
        number = self._number
        width, height = line.encoder.spec.image_size
        rgb_hwC = np.ascontiguousarray(resize_image(taken.image_HWC, width, height)[:, :, ::-1])
        try:
            features = coding.encode(line.encoder.forward(theta, rgb_hwC[None]))
            line.link.show(
                Seen(vehicle=line.link.vehicle, session=line.session, number=number, features=features)
            )
        except (SettingError, UncodableError, MessageTooLarge) as error:
            self._complain(f"features can't be sent: {error}")
            return
        answer = self._answer(
            line,
            lambda message: (
                (isinstance(message, ClassMap) and message.number == number)
                or (isinstance(message, Reject) and message.step == number)
            ),
            self._answer_s,
        )
        if isinstance(answer, ClassMap):
            self._write(line, taken, answer)
            return
        self.late += answer is None
        # Another cloud may be there by now, which codes otherwise, or serves nobody.
        self._coding = None
        self._complain(
            answer.reason if isinstance(answer, Reject) else f"no class map within {self._answer_s:g} s"
        )

    def _write(self, line: _Line, taken: Taken, answer: ClassMap) -> None:
        try:
            label_hw = decode_label(
                answer.classes,
                height=answer.height,
                width=answer.width,
                num_classes=line.label_space.num_classes,
            )
        except CodecError as error:
            self._complain(f"the class map that came is none: {error}")
            return
        self._complaints, self._pause_s = 0, _FIRST_PAUSE_S
        height, width = taken.image_HWC.shape[:2]
        label_HW = cv2.resize(label_hw, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        ids_HW = line.label_space.to_ids(np.asarray(label_HW, np.uint8))
        self._served.write(
            ids_HW, taken, dropped=self.dropped, uncertainty=answer.uncertainty, stage=answer.stage
        )
        self._served.report(self)

    def _answer(self, line: _Line, is_it: Callable[[Classes], bool], within_s: float) -> Classes | None:
        """The message that is waited for; None: it has not come in time, or all is over."""
        deadline = time.monotonic() + within_s
        while not self._frames.is_over and (left_s := deadline - time.monotonic()) > 0:
            self._alive()
            received = line.answers.receive(min(left_s, _POLL_S))
            if received is None or isinstance(received, Malformed):
                continue
            message = received.message
            is_ours = isinstance(message, Serving | ClassMap) and message.session == line.session
            if isinstance(message, Reject):
                is_ours = message.grant == line.session
            if is_ours and is_it(message):  # type: ignore[arg-type]  # the channel decodes only Classes
                return message  # type: ignore[return-value]
        return None

    def _complain(self, reason: str, *, patient: int = 1) -> None:
        """Say so, from the `patient`-th time on and ever more rarely, and wait for a while."""
        self._complaints += 1
        is_news = self._complaints >= patient and is_logged(self._complaints, first=patient)
        if not self._frames.is_over and is_news:
            log.warning("not served: %s", reason)
        self._frames.rest(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
