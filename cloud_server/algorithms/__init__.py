"""Algorithms: a file and a row of `cloud_server.algorithms.table` each."""
