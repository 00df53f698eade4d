"""Cloud → vehicle, whatever the way of learning."""

from __future__ import annotations

from protocol.base import Answer, Id, Index, Message, Step, Text, Token, Turned


class Welcome(Message, frozen=True, array_like=True, kw_only=True, tag="welcome"):
    """The cloud knows this vehicle session from now on."""

    vehicle: Id
    session: Token


class LabelWant(Answer, frozen=True, array_like=True, kw_only=True, tag="want"):
    """The offered labels that the cloud does not hold yet."""

    indices: tuple[Index, ...]


class Ack(Answer, frozen=True, array_like=True, kw_only=True, tag="ack"):
    """The request is safe with the cloud."""


class Resend(Turned, frozen=True, array_like=True, kw_only=True, tag="resend"):
    """The request that is recalled has not arrived, or was lost with a process: send it again."""


WHOLE_TURN = 2**53
"""`Reject.step` of a turn that is over for the vehicle, whatever it has asked in it."""


class Reject(Message, frozen=True, array_like=True, kw_only=True, tag="reject"):
    """What was sent does not fit and has changed nothing."""

    vehicle: Id
    grant: str
    """Of the rejected request, or the session of a rejected hello; empty where it could not be read."""
    step: Step
    """Of the rejected request; `WHOLE_TURN`: the round went on without the vehicle, which is not to go on."""
    reason: Text
    final: bool
    """True: the same message would be rejected again, the vehicle should stop and show the reason. False: the
    message is lost, or, where a grant is named, the whole attempt: the vehicle says hello again."""


class Finish(Message, frozen=True, array_like=True, kw_only=True, tag="finish"):
    """The run is over; the vehicle may leave."""

    vehicle: Id
    reason: Text
