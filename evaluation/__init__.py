"""How good predictions are: scores, predictions on disk, ground truth, the official tool; without torch."""
