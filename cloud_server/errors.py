"""What can end the cloud's work.

CloudError              a mistake or a fault to show in one line; the process ends with exit code 2
OutOfMemory             a CloudError: the network needs more memory than the device has
RequestError            one request does not fit: it is rejected and counted, nothing changes
Stopped                 the process was asked to stop; the last commit is on disk
"""

from __future__ import annotations

from protocol.errors import Mistake, WireError


class CloudError(Mistake):
    """Ends the cloud with one readable line."""


class OutOfMemory(CloudError):
    """What was to be computed needs more memory than there is; what was committed is safe."""


class RequestError(WireError):
    """A vehicle's request that does not fit."""


class Stopped(Exception):
    """The process was asked to stop."""
