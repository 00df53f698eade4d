"""`blackfleet`, and `python -m fleet.cli`: heeds signals before the rest is loaded, which takes seconds.

`predict` is the vehicle's own command, and works where the operator's packages are missing; so does `doctor`.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from fleet.cli.interrupts import interrupt_on_signals, stopped_at_once, stopping_line
from fleet.cli.vehicle_only import DOCTOR, PREDICT, end_without_operator, missing_package
from protocol.showing import show_anything


def main() -> NoReturn:
    """Run the command, and end the process with it."""
    with stopped_at_once():
        run()


def run() -> NoReturn:
    """Run the command, and raise its exit code."""
    interrupt_on_signals()
    show_anything()
    arguments = sys.argv[1:]
    with stopping_line():
        try:
            if arguments[:1] == [PREDICT]:
                import edge_client.predict.command

                sys.exit(edge_client.predict.command.main(arguments[1:]))
            if arguments[:1] == [DOCTOR]:
                sys.exit(_doctor(arguments[1:]))
            import fleet.cli.app
        except ModuleNotFoundError as error:
            end_without_operator(arguments, missing_package(error))
        fleet.cli.app.main()


def _doctor(arguments: list[str]) -> int:
    import fleet.doctor.command

    return fleet.doctor.command.main(arguments)


if __name__ == "__main__":
    main()
