"""The cloud's part of the network, by name."""
