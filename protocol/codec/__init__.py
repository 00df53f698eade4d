"""How features, labels and weights are coded for the wire."""
