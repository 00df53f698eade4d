"""What a run can do with an encoder that is an ONNX file, said before anything is done."""

from __future__ import annotations

from cloud_server.algorithms.table import algorithm_row
from fleet.errors import OperatorError
from fleet.export.onnx_encoder import OnnxEncoder, missing_way_back, some_of
from fleet.scenario import Scenario
from protocol.plans.checks import EstimatorPlan


def check_file_encoder(scenario: Scenario, name: str, encoder: OnnxEncoder) -> None:
    """Refuse a run whose algorithm needs more of a file than it has.

    Raises:
        OperatorError: frames are of another size than the file takes, the algorithm trains the encoder in
            torch, nobody has named the weights that are to learn, or there is no way back to them.
    """
    encoder.check_size(scenario.frame_size)
    row = algorithm_row(scenario.algorithm)
    if row.in_one_piece:
        raise OperatorError(
            f"{row.name} trains encoder and network in torch as one, and encoder {name} is an ONNX file; "
            f"take another algorithm, or the torch module that the file was exported from"
        )
    if not row.moves_encoders:
        return
    if not encoder.is_named:
        where = "encoder.trainable" if name == scenario.encoder.name else "--encoder and encoder.trainable"
        raise OperatorError(
            f"nothing of encoder {name} learns unless you name its weights with {where}, such as "
            f"{encoder.weights[-1]!r} or '*'; it has {some_of(encoder.weights)}; or take --algorithm frozen"
        )
    if not _needs_way_back(scenario):
        return
    reason = missing_way_back(encoder, scenario.frame_size)
    if reason is not None:
        raise OperatorError(
            f"{row.name} goes back through encoder {name}, and {reason}; take --algorithm blackfed-v2 "
            f"--estimator spsa-gc or region-spsa, which need forward passes alone, or activation with "
            f"activation.forward_passes above 0, or name weights behind it"
        )


def _needs_way_back(scenario: Scenario) -> bool:
    """Whether vehicles of our own algorithms derive features by weights; of others nobody knows."""
    row = algorithm_row(scenario.algorithm)
    if row.learners or row.settings is not None:
        return False
    plan = scenario.estimator
    return not row.follows_estimator or (isinstance(plan, EstimatorPlan) and plan.needs_way_back)
