"""What can end an operator's command.

OperatorError           a mistake or a fault to show in one line; exit code 2
"""

from __future__ import annotations

from protocol.errors import Mistake


class OperatorError(Mistake):
    """Ends the command with one readable line."""
