"""The `blackfleet` command."""
