"""Learning from the vehicle's own labels."""
