"""Every algorithm, one row each. Whoever treats one differently from another asks its row.

Rows are read by the operator's command, too: what builds an algorithm, and with it torch, is loaded when one
is built.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cloud_server.algorithms.base import Algorithm, Context
from cloud_server.algorithms.participation import taking_part
from cloud_server.algorithms.row import AlgorithmRow, BuildsAlgorithm, Needs, no_handlers, one_model
from cloud_server.algorithms.traits import (
    averages_statistics,
    first_order_epochs,
    first_order_passes,
    has_no_proximal,
    local_passes,
    needs_proximal,
    one_encoder,
    same_statistics,
    shares_all,
)
from cloud_server.desk.handlers.feedback import feedback_handlers
from cloud_server.desk.handlers.gradients import gradient_handlers
from cloud_server.desk.handlers.loss_maps import loss_map_handlers
from cloud_server.desk.handlers.shared_encoder import shared_encoder_handlers
from cloud_server.desk.handlers.smashed import aligning_handlers, smashed_handlers
from cloud_server.desk.handlers.visit import Handlers
from cloud_server.desk.handlers.weights import weight_handlers
from protocol.doors import Door, is_foreign, misfit

if TYPE_CHECKING:
    from cloud_server.algorithms.blackfed import BlackFed
    from cloud_server.algorithms.blackfleet import BlackFleet
    from cloud_server.algorithms.cse_fsl import CseFsl, FslSage
    from cloud_server.algorithms.fedavg import FedAvg
    from cloud_server.algorithms.splitfed import SplitFed
    from cloud_server.algorithms.white_box import WhiteBox


def _blackfleet(context: Context, *, feedback: bool) -> BlackFleet:
    from cloud_server.algorithms.blackfleet import BlackFleet

    return BlackFleet(context, feedback=feedback)


def _blackfleet_handlers(algorithm: BlackFleet) -> Handlers:
    return {**loss_map_handlers(algorithm), **shared_encoder_handlers(algorithm)}


def _blackfed(context: Context, *, personal: bool, frozen_encoders: bool = False) -> BlackFed:
    from cloud_server.algorithms.blackfed import BlackFed

    return BlackFed(context, personal=personal, frozen_encoders=frozen_encoders)


def _blackfed_handlers(algorithm: BlackFed) -> Handlers:
    return {**feedback_handlers(algorithm), **shared_encoder_handlers(algorithm)}


def _split(context: Context) -> WhiteBox:
    from cloud_server.algorithms.split import split

    return split(context)


def _splitfed(context: Context, *, copies: bool) -> SplitFed:
    from cloud_server.algorithms.splitfed import splitfed_v1, splitfed_v2

    return splitfed_v1(context) if copies else splitfed_v2(context)


def _white_box_handlers(algorithm: WhiteBox) -> Handlers:
    return {**gradient_handlers(algorithm), **shared_encoder_handlers(algorithm)}


def _cse_fsl(context: Context) -> CseFsl:
    from cloud_server.algorithms.cse_fsl import CseFsl

    return CseFsl(context)


def _cse_fsl_handlers(algorithm: CseFsl) -> Handlers:
    return {**smashed_handlers(algorithm), **shared_encoder_handlers(algorithm)}


def _fsl_sage(context: Context) -> FslSage:
    from cloud_server.algorithms.cse_fsl import FslSage

    return FslSage(context)


def _fsl_sage_handlers(algorithm: FslSage) -> Handlers:
    return {**_cse_fsl_handlers(algorithm), **aligning_handlers(algorithm)}


def _individual(context: Context) -> WhiteBox:
    from cloud_server.algorithms.individual import individual

    return individual(context)


def _fedavg(context: Context, *, proximal: bool = False) -> FedAvg:
    from cloud_server.algorithms.fedavg import FedAvg

    return FedAvg(context, proximal=proximal)


_BLACKFLEET: AlgorithmRow[BlackFleet] = AlgorithmRow(
    name="blackfleet",
    title="a local loss on each vehicle, weighted by where the cloud's lay, all at once",
    build=partial(_blackfleet, feedback=True),
    handlers=_blackfleet_handlers,
    colour="#0c8599",
    heeds_views=True,
    may_go_on=True,
    needs=Needs(local_head=True),
    weights_losses=True,
    control="blackfleet-no-feedback",
    side_by_side=True,
    rounds_overlap=True,
    own_passes=local_passes,
    looks_at_agreement=True,
    cloud_rests=True,
    shares=("weights",),
    ends_with_one_model=shares_all,
)

_ROWS: tuple[AlgorithmRow[Any], ...] = (
    _BLACKFLEET,
    replace(
        _BLACKFLEET,
        name=_BLACKFLEET.control,
        title="the same without loss feedback: what that buys",
        build=partial(_blackfleet, feedback=False),
        weights_losses=False,
        control="",
        colour="#7fc4cf",
    ),
    AlgorithmRow(
        name="blackfed-v1",
        title="losses alone, one network for all",
        build=partial(_blackfed, personal=False),
        handlers=_blackfed_handlers,
        colour="#74b3f0",
        shares=("seeds", "weights"),
        ends_with_one_model=one_encoder,
        heeds_views=True,
        follows_estimator=True,
        knows_present_frames=True,
        looks_at_agreement=True,
        may_go_on=True,
    ),
    AlgorithmRow(
        name="blackfed-v2",
        title="losses alone, each vehicle served by its best weights",
        build=partial(_blackfed, personal=True),
        handlers=_blackfed_handlers,
        colour="#2b6fe0",
        shares=("seeds", "weights"),
        heeds_views=True,
        follows_estimator=True,
        knows_present_frames=True,
        looks_at_agreement=True,
        may_go_on=True,
    ),
    AlgorithmRow(
        name="frozen",
        title="encoders never learn: the lower bound",
        build=partial(_blackfed, personal=False, frozen_encoders=True),
        moves_encoders=False,
        handlers=no_handlers,
        colour="#8a94a3",
        heeds_views=True,
        knows_present_frames=True,
        looks_at_agreement=True,
        may_go_on=True,
        ends_with_one_model=same_statistics,
    ),
    AlgorithmRow(
        name="split",
        title="gradients cross the network: the upper bound",
        build=_split,
        handlers=_white_box_handlers,
        colour="#2f9e55",
        shares=("weights",),
        ends_with_one_model=one_encoder,
        trains_in_turns=True,
        heeds_views=True,
        knows_present_frames=True,
        looks_at_agreement=True,
        may_go_on=True,
    ),
    AlgorithmRow(
        name="splitfed-v1",
        title="gradients and encoders' weights cross, all at once; copies of the network are averaged",
        build=partial(_splitfed, copies=True),
        handlers=_white_box_handlers,
        colour="#5aa02c",
        trains_in_turns=True,
        heeds_views=True,
        may_go_on=True,
        shares=("weights",),
        ends_with_one_model=one_model,
    ),
    AlgorithmRow(
        name="splitfed-v2",
        title="the same with one network, vehicles one after the other in random order",
        build=partial(_splitfed, copies=False),
        handlers=_white_box_handlers,
        colour="#94b447",
        trains_in_turns=True,
        heeds_views=True,
        may_go_on=True,
        shares=("weights",),
        ends_with_one_model=one_model,
    ),
    AlgorithmRow(
        name="cse-fsl",
        title="a local loss, rare uploads; encoders' and heads' weights cross, no gradient",
        build=_cse_fsl,
        handlers=_cse_fsl_handlers,
        colour="#12b5a5",
        heeds_views=True,
        needs=Needs(local_head=True),
        side_by_side=True,
        own_passes=first_order_epochs,
        cloud_rests=True,
        shares=("weights",),
        ends_with_one_model=one_model,
    ),
    AlgorithmRow(
        name="fsl-sage",
        title="the same with heads aligned to gradients, which cross now and then",
        build=_fsl_sage,
        handlers=_fsl_sage_handlers,
        colour="#0b6e4f",
        heeds_views=True,
        needs=Needs(local_head=True),
        side_by_side=True,
        own_passes=first_order_epochs,
        cloud_rests=True,
        shares=("weights",),
        ends_with_one_model=one_model,
    ),
    AlgorithmRow(
        name="individual",
        title="a network for each vehicle, nothing shared",
        build=_individual,
        handlers=gradient_handlers,
        colour="#d04a7a",
        trains_in_turns=True,
        heeds_views=True,
        knows_present_frames=True,
        may_go_on=True,
    ),
    AlgorithmRow(
        name="fedavg",
        title="vehicles train the whole network, the cloud averages",
        build=_fedavg,
        handlers=weight_handlers,
        colour="#e8701a",
        heeds_views=True,
        may_go_on=True,
        needs=Needs(whole_network=True),
        in_one_piece=True,
        side_by_side=True,
        rounds_overlap=True,
        own_passes=first_order_passes,
        cloud_rests=True,
        ends_with_one_model=averages_statistics,
        remark=has_no_proximal,
    ),
    AlgorithmRow(
        name="fedprox",
        title="as fedavg, each vehicle held near the round's weights",
        build=partial(_fedavg, proximal=True),
        handlers=weight_handlers,
        colour="#b5541c",
        heeds_views=True,
        may_go_on=True,
        needs=Needs(whole_network=True),
        in_one_piece=True,
        side_by_side=True,
        rounds_overlap=True,
        own_passes=first_order_passes,
        cloud_rests=True,
        ends_with_one_model=averages_statistics,
        check=needs_proximal,
    ),
    AlgorithmRow(
        name="centralized",
        title="all frames in one place, without a fleet",
        build=None,
        handlers=no_handlers,
        colour="#9357c9",
        heeds_views=True,
        may_go_on=True,
        in_one_piece=True,
        ends_with_one_model=one_model,
    ),
)

ALGORITHMS = {row.name: row for row in _ROWS}
"""What `algorithm` in a scenario may name, besides somebody else's."""
FLEET_ALGORITHMS = {row.name: row for row in _ROWS if row.build is not None}
"""What `algorithm` in the cloud's settings may name, besides somebody else's."""

ALGORITHM_DOOR = Door("algorithm", AlgorithmRow, ALGORITHMS)
_FLEET_DOOR = Door("algorithm", AlgorithmRow, FLEET_ALGORITHMS)


def algorithm_row(name: str) -> AlgorithmRow[Any]:
    """The row of a name: one of ours, or `package.module:name` of an `AlgorithmRow`.

    Raises:
        SettingError: nothing that fits is behind the name; the message says which there are.
    """
    row = ALGORITHM_DOOR.find(name)
    if is_foreign(name):
        reason = misfit(row.build, BuildsAlgorithm)
        if reason is not None:
            raise ALGORITHM_DOOR.refuse(name, f"its build {reason}")
    return row


def build_algorithm(name: str, context: Context) -> Algorithm:
    """The algorithm of a fleet.

    Raises:
        SettingError: nothing that fits is behind the name.
    """
    build = _FLEET_DOOR.find(name).build
    assert build is not None
    with ALGORITHM_DOOR.guard(name):
        algorithm: Algorithm = build(context)
    if is_foreign(name):
        reason = misfit(algorithm, Algorithm)
        if reason is not None:
            raise ALGORITHM_DOOR.refuse(name, f"what it builds {reason}")
    algorithm.stages = taking_part(algorithm.stages, context.config)
    return algorithm


def algorithm_handlers(name: str, algorithm: Algorithm) -> Handlers:
    """What answers requests in the turns of an algorithm that `name` has built, besides those of every turn.

    Raises:
        SettingError: nothing that fits is behind the name.
    """
    with ALGORITHM_DOOR.guard(name):
        return algorithm_row(name).handlers(algorithm)


def check_fleet_algorithm(name: str) -> None:
    """Refuse an algorithm that is unknown, or needs no fleet.

    Raises:
        SettingError: the message says which there are.
    """
    _FLEET_DOOR.find(name)
    algorithm_row(name)
