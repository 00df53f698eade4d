"""`python -m fleet.cli.app`: the same as `blackfleet`."""

from fleet.cli.app import main

main()
