"""Updates of what a vehicle runs: files in one container that the operator signs."""
