"""A run's processes on the nodes of a Ray cluster. Only the files that are asked for import ray."""
