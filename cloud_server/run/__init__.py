"""One run of the cloud: its service on the bus, its loop of stages, what is committed and what comes out."""
