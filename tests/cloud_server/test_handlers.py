"""Which requests a run answers follows from its algorithm's row; all others are refused in one way."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_server.algorithms.table import algorithm_handlers
from cloud_server.desk.handlers.every_turn import EVERY_TURN
from cloud_server.desk.handlers.visit import refusal
from protocol.messages import (
    FetchEncoder,
    FetchLossMaps,
    FetchSteps,
    FetchWeights,
    LabelOffer,
    Labels,
    MovedQuery,
    Query,
    SeededQuery,
    SendEncoder,
    SplitScores,
    TrainStep,
    TurnDone,
    TurnFailed,
    Update,
    Upload,
)

SHARED = {FetchEncoder, FetchSteps, SendEncoder, TurnDone}
NOTHING: Any = object()
"""Handlers look at their algorithm when they are called."""


def test_every_turn_has_labels_uploads_and_an_end() -> None:
    assert set(EVERY_TURN) == {LabelOffer, Labels, Upload, TurnDone, TurnFailed}


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        ({"blackfed-v1", "blackfed-v2"}, {Query, SeededQuery, MovedQuery} | SHARED),
        ({"split", "splitfed-v1", "splitfed-v2"}, {TrainStep} | SHARED),
        ({"individual"}, {TrainStep}),
        ({"blackfleet"}, {FetchLossMaps} | SHARED),
        ({"fedavg"}, {FetchWeights, Update, SplitScores, TurnDone}),
        ({"frozen", "centralized"}, set()),
    ],
)
def test_rows_answer_what_their_vehicles_ask(names: set[str], kinds: set[type]) -> None:
    assert all(set(algorithm_handlers(name, NOTHING)) == kinds for name in names)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Query, "this turn has no queries"),
        (SeededQuery, "this turn has no seeded queries"),
        (TrainStep, "this turn has no training steps"),
        (FetchLossMaps, "this turn fetches no loss maps"),
        (Update, "this run exchanges no weights"),
        (dict, "this turn has no dict"),
    ],
)
def test_request_that_a_turn_has_no_use_for_is_told_so(kind: type, words: str) -> None:
    assert str(refusal(kind)) == words
