"""`python -m edge_client.predict`: as `blackfleet predict`, where only the vehicle's part is installed."""

from __future__ import annotations

import sys

from edge_client.predict.command import main
from protocol.showing import show_anything
from protocol.stopping import STOPPED_CODE

if __name__ == "__main__":
    show_anything()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("blackfleet: stopped", file=sys.stderr)
        sys.exit(STOPPED_CODE)
