"""The operator's side of updates: made, signed, put where the cloud offers them, followed."""
