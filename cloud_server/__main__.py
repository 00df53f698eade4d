"""`python -m cloud_server`: heeds signals before the rest is loaded, which takes a while."""

from __future__ import annotations

import sys

from protocol.stopping import end_on_stop_signals

if __name__ == "__main__":
    end_on_stop_signals()
    from cloud_server.command import main

    sys.exit(main())
