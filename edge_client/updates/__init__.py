"""Updates of what a vehicle runs: fetched, checked, tried, switched to, and taken back if they don't work."""
