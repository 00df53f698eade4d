"""What can end an evaluation.

EvaluationError         a mistake or a fault to show in one line
"""

from __future__ import annotations

from protocol.errors import Mistake


class EvaluationError(Mistake):
    """Ends the evaluation with one readable line."""
