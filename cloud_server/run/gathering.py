"""The start of a run: whose vehicles have come, and what becomes of it without the others."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cloud_server.config import CloudConfig
from cloud_server.desk.registry import Registry
from cloud_server.errors import CloudError

log = logging.getLogger(__name__)


def gather(
    config: CloudConfig,
    registry: Registry,
    serve: Callable[[], None],
    turn_away: Callable[[], bool],
    now: Callable[[], float],
) -> dict[str, str]:
    """Wait, and `serve` meanwhile, until every vehicle has said hello; returns why those are left out that
    have not. `turn_away` settles what settings leave open, and says whether some then don't fit.

    Raises:
        CloudError: not all have, and the run does not go on without them; or none has.
    """
    patience, records = config.patience, registry.vehicles
    deadline = now() + patience.join_s
    while (missing := registry.missing()) or turn_away():
        if missing and now() > deadline:
            absence = f"did not join within {patience.join_s:g} s"
            refused = [f"{name} {records[name].refused}" for name in missing if records[name].refused]
            said = (
                f"{len(missing)} of {len(config.vehicles)} vehicles {absence}: {', '.join(missing[:10])}"
                + (f"; refused: {' | '.join(refused[:3])}" if refused else "")
            )
            if patience.on_failure == "wait":
                log.warning("waiting for them: %s", said)
                deadline = now() + patience.join_s
            elif patience.goes_on and any(record.hello for record in records.values()):
                log.warning("the run goes on without them: %s", said)
                turn_away()
                return {
                    name: f"{absence}{records[name].refused and ': ' + records[name].refused}"
                    for name in registry.missing()
                }
            else:
                raise CloudError(said)
        serve()
    return {}
