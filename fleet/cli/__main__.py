"""`blackfleet`, and `python -m fleet.cli`: heeds signals before the rest is loaded, which takes seconds."""

from __future__ import annotations

from typing import NoReturn

from fleet.cli.interrupts import interrupt_on_signals, stopping_line
from protocol.showing import show_anything


def main() -> NoReturn:
    """Run the command."""
    interrupt_on_signals()
    show_anything()
    with stopping_line():
        import fleet.cli.app

        fleet.cli.app.main()


if __name__ == "__main__":
    main()
