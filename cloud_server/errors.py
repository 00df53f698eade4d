"""What can end the cloud's work.

CloudError              a mistake or a fault to show in one line; the process ends with exit code 2
RequestError            one request does not fit: it is rejected and counted, nothing changes
Stopped                 the process was asked to stop; the last commit is on disk
"""

from __future__ import annotations

from protocol.errors import Mistake, WireError


class CloudError(Mistake):
    """Ends the cloud with one readable line."""


class RequestError(WireError):
    """A vehicle's request that does not fit."""


class Stopped(Exception):
    """The process was asked to stop."""
