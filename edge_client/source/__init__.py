"""Where a car's frames come from: cameras, streams, recorded drives, folders that grow."""
