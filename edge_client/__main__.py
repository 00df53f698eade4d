"""`python -m edge_client`: heeds signals before the rest is loaded, which takes a while."""

from __future__ import annotations

import sys

from protocol.stopping import end_on_stop_signals

if __name__ == "__main__":
    end_on_stop_signals()
    from edge_client.command import main

    sys.exit(main())
