"""The live page of a run, and its replay: one page folds the log's events, from a server or from a file."""
