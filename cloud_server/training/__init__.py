"""First-order learning of the cloud's network."""
